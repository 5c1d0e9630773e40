"""Turns a settled config and pictures into optimiser steps, alone or together with other processes.

The rule: as `ddib_fed.training.loop`, step k is a function of (config, k) and the state after step k - 1. The
gradient of a step is the mean over the whole batch, whichever microbatches and processes it was computed in.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddib_fed.diffusion.schedule import schedule_from_config
from ddib_fed.errors import MemoryExhausted, SettingsInvalid
from ddib_fed.models.normalisation import Normalisation
from ddib_fed.networks.registry import network_with
from ddib_fed.networks.spectrum import Moments
from ddib_fed.networks.unet import UNet
from ddib_fed.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from ddib_fed.training.config import PictureTrainConfig, learning_rate
from ddib_fed.training.ema import Ema
from ddib_fed.training.pictures.batches import Batches, Samples
from ddib_fed.training.pictures.levels import level_sampler
from ddib_fed.training.pictures.losses import Objective
from ddib_fed.training.pictures.sources import PictureSource, normalisation
from ddib_fed.training.pictures.starts import Start, channels_last, new_network
from ddib_fed.training.pictures.world import World

HELD_OUT_PICTURES = 256
MEASURED_PICTURES, MEASURED_NUMBERS = 8_192, 1 << 28
"""At most so many pictures, and numbers in them, that a spectrum is measured of."""
_MEASURED_AT_ONCE = 64
_PROBE_STEPS = 12
_PROBE_MARGIN = 0.93


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        step: Steps done.
        steps: Steps in all.
        loss: Smoothed training loss.
        held_out: Loss on held-out pictures when it was last measured; None before.
        rate: Steps a second since this process began.
    """

    step: int
    steps: int
    loss: float
    held_out: float | None
    rate: float


OnProgress = Callable[[Progress], None]


class PictureTrainer:
    """A network in training, with everything that a step changes.

    Args:
        config: The run, settled.
        source: Its pictures.
        start: Its network and first weights.
        world: The processes that share it.

    Attributes:
        step: Steps done.
        network: The network.
        ema: Its averages.
        normal: From pictures in [-1, 1] to the network's units.
        microbatch: Pictures that go through the network at once, here and now.
        notes: What is to be said; whoever says it clears them.
    """

    def __init__(self, config: PictureTrainConfig, source: PictureSource, start: Start, world: World) -> None:
        self.config, self.source, self.start, self.world = config, source, start, world
        self.step = 0
        self.batch = int(config.batch or 1)
        self.microbatch = int(config.microbatch or self.batch)
        self.notes: list[str] = []
        self.normal = start.normal or normalisation(config, source)
        schedule = schedule_from_config(start.schedule)
        self.levels = level_sampler(config.sampler, schedule)
        self._batches = Batches(config, source, self.normal)
        self._objective = Objective(
            schedule,
            start.parameterisation,
            start.time_input,
            learn_sigma=config.learn_sigma,
            half_bin=_half_bin(source, self.normal),
        )
        self.network = new_network(start, config.seed)
        if isinstance(self.network, UNet) and self.network.spectrum is not None:
            self.network.spectrum.measure(self._moments())
        self.network.to(world.device)
        self.ema = Ema(self.network, float(config.ema or 0.0))
        self._parameters = [p for p in self.network.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=float(config.learning_rate or 0.0),
            betas=(0.9, 0.99),
            weight_decay=config.weight_decay,
            fused=True,
        )

    @property
    def steps(self) -> int:
        """Steps in all."""
        if self.config.steps is None:
            raise SettingsInvalid("the number of steps is not settled")
        return self.config.steps

    def advance(self) -> float:
        """One optimiser step; returns its loss.

        Raises:
            SettingsInvalid: The loss is no longer finite.
            MemoryExhausted: Not even one picture at a time fits into memory.
        """
        lams, weights = self.levels.draw(self._batches.levels(self.step))
        losses = self._gradients(lams, weights)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        nn.utils.clip_grad_norm_(self._parameters, self.config.clip)
        self._optimizer.step()
        self.ema.update(self.network, self.step)
        self.levels.learn(lams, losses)
        self.step += 1
        value = float((losses * weights).mean())
        if not math.isfinite(value):
            raise SettingsInvalid(
                f"the loss is {value} after {self.step} steps",
                hint="lower the learning rate, or train in float32",
            )
        return value

    def held_out_loss(self) -> float:
        """The loss of the averaged weights on held-out pictures, always with the same noise and even levels."""
        samples = self._batches.held_out(HELD_OUT_PICTURES)
        count = len(samples.x0)
        places = (torch.arange(count, dtype=torch.float64) + 0.5) / count
        lams = level_sampler("grid", schedule_from_config(self.start.schedule)).draw(places)[0]
        network = self.averaged().eval()
        losses = []
        with torch.no_grad():
            for first in range(0, count, self.microbatch):
                part = slice(first, first + self.microbatch)
                labels = None if samples.labels is None else samples.labels[part]
                piece = Samples(samples.x0[part], samples.eps[part], labels)
                losses.append(self._losses(network, piece, lams[part]).cpu())
        return float(torch.cat(losses).double().mean())

    def averaged(self) -> nn.Module:
        """A network of its own with the averaged weights."""
        return channels_last(
            network_with(self.start.network, self.ema.state_dict(), device=self.world.device)
        )

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must hold, on the CPU."""
        parts = {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": optimizer_tensors(self._optimizer),
            "levels": self.levels.state(),
        }
        return {
            f"{part}.{name}": value.cpu() for part, state in parts.items() for name, value in state.items()
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same run."""
        self.network.load_state_dict(checkpoint.part("network"))
        self.ema.load_state_dict(checkpoint.part("ema"))
        restore_optimizer(self._optimizer, checkpoint.part("optimizer"))
        self._arrange()
        self.levels.restore(checkpoint.part("levels"))
        self.step = checkpoint.info.step

    def _moments(self) -> Moments:
        """Of the first training pictures, as a step would have them."""
        channels, size, _ = self.source.shape
        found = Moments(channels, size)
        count = max(
            1, min(len(self.source.train), MEASURED_PICTURES, MEASURED_NUMBERS // (channels * size**2))
        )
        for first in range(0, count, _MEASURED_AT_ONCE):
            found.add(self._batches.take(0, first, min(_MEASURED_AT_ONCE, count - first)).x0)
        return found

    def _gradients(self, lams: Tensor, weights: Tensor) -> Tensor:
        """Put the batch's gradient into the parameters; losses of all samples (batch,) float64, unweighted."""
        while True:
            try:
                losses = self._accumulate(lams, weights)
                break
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                self._halve(error)
        self.world.add([p.grad for p in self._parameters if p.grad is not None])
        self.world.add([losses])
        return losses.cpu()

    def _accumulate(self, lams: Tensor, weights: Tensor) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros(self.batch, dtype=torch.float64, device=self.world.device)
        own = self.world.part(self.batch)
        for first in range(own.start, own.stop, self.microbatch):
            part = slice(first, min(first + self.microbatch, own.stop))
            samples = self._batches.take(self.step, first, part.stop - first)
            # Only dropout asks torch for numbers; its masks are the one thing that the cut of a batch changes.
            torch.manual_seed((self.config.seed * 1_000_003 + self.step) * 65_537 + first & 2**63 - 1)
            found = self._losses(self.network, samples, lams[part])
            scaled = (found * weights[part].float().to(found.device)).sum() / self.batch
            scaled.backward()  # type: ignore[no-untyped-call]
            losses[part] = found.detach().double()
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return losses

    def _losses(self, network: nn.Module, samples: Samples, lams: Tensor) -> Tensor:
        device = self.world.device
        x0, eps = (part.to(device, non_blocking=True) for part in (samples.x0, samples.eps))
        question = self._objective.ask(x0, eps, lams)
        labels = None if samples.labels is None else samples.labels.to(device)
        extra = {} if labels is None or self.start.classifies else {"y": labels}
        x = question.x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
            answer = network(x, question.times, **extra)
        if labels is not None and self.start.classifies:
            return functional.cross_entropy(answer.float(), labels, reduction="none")
        return self._objective.losses(question, answer, x0, lams)

    def _halve(self, error: BaseException) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        if self.microbatch == 1:
            raise MemoryExhausted(
                "the memory does not suffice for one picture at a time",
                hint="a smaller network or size, --precision bfloat16, or another machine",
            ) from error
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        before, self.microbatch = self.microbatch, max(1, self.microbatch // 2)
        self.notes.append(f"out of memory with {before} pictures at once: going on with {self.microbatch}")

    def _arrange(self) -> None:
        """Give restored optimiser state the memory layout of its parameters, in which it was before."""
        for parameter, state in self._optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step costs on this machine.

    Attributes:
        parameters: Numbers in the network.
        seconds: Of one step of the whole batch.
        memory: Bytes in use at the most: on CUDA by torch, else by this process.
        microbatch: Pictures at once that fit into memory.
    """

    parameters: int
    seconds: float
    memory: int
    microbatch: int

    def __str__(self) -> str:
        size = f"{self.parameters:,} parameters, {self.memory / 2**30:.1f} GiB of memory"
        return f"{size}, {self.seconds:.3g} s a step, {self.microbatch} pictures at once"


def measure(
    config: PictureTrainConfig, source: PictureSource, start: Start, world: World, *, within_s: float
) -> Cost:
    """Take a few steps of one microbatch for about `within_s` seconds, on a network that is thrown away."""
    settled = config.settled(steps=1_000_000)
    batch, microbatch = int(settled.batch or 1), int(settled.microbatch or 1)
    small = min(batch, microbatch * world.size)
    trial = PictureTrainer(settled.model_copy(update={"batch": small}), source, start, world)
    begun = time.monotonic()
    trial.advance()
    slowest = time.monotonic() - begun
    # The leader chooses how many: processes that disagreed would wait for one another for ever.
    count = world.decide(lambda: max(1, min(_PROBE_STEPS, int(within_s / slowest))))
    begun = time.monotonic()
    for _ in range(count):
        trial.advance()
    seconds = (time.monotonic() - begun) / count * batch / small
    parameters = sum(parameter.numel() for parameter in trial.network.parameters())
    return Cost(parameters, seconds, _memory(world), trial.microbatch)


def settle(config: PictureTrainConfig, cost: Cost | None) -> PictureTrainConfig:
    """The config with its number of steps, and a microbatch that fits, settled.

    Args:
        config: The run.
        cost: What was measured; a run that fits a time needs it.
    """
    settled = config.settled() if cost is None else config.settled(microbatch=cost.microbatch)
    if config.time_s is None or cost is None:
        return settled.settled(steps=config.steps or config.defaults.steps)
    return settled.settled(steps=max(1, int(config.time_s * _PROBE_MARGIN / cost.seconds)))


def _memory(world: World) -> int:
    if world.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(world.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _half_bin(source: PictureSource, normal: Normalisation) -> Tensor:
    deviations = torch.tensor(normal.std, dtype=torch.float32).reshape(-1)
    return source.quantum / 2 / deviations


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The last is what oneDNN says when it finds no room for its code and its buffers.
    signs = ("can't allocate memory", "out of memory", "could not create a primitive")
    return any(sign in str(error) for sign in signs)
