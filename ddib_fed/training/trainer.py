"""Optimiser steps on points or pictures, alone or together with other processes.

Step k is a function of (config, k) and the state after step k - 1: nothing random is stored, and nothing depends on the
clock but the number of steps, whose plans are recorded. So a run that was killed and resumed ends bit for bit as one
that was not (same threads, same processes, same torch). The gradient of a step is the mean over the whole batch,
whichever microbatches and processes it was computed in.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddib_fed.errors import MemoryExhausted, SettingsInvalid
from ddib_fed.models.manifest import DifferentialPrivacy
from ddib_fed.networks.placement import keep_freed_memory
from ddib_fed.processes import beside_here
from ddib_fed.training.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from ddib_fed.training.config import TrainConfig, learning_rate
from ddib_fed.training.distributed import World


class Ema:
    """Averages of all entries of a module's state dict."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._averages = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self._moving = [value for value in self._averages.values() if value.is_floating_point()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take the module's weights after step `step` (from 0) into the averages."""
        kept = min(self.decay, (1 + step) / (10 + step))
        weights = module.state_dict()
        torch._foreach_lerp_(
            self._moving, [value for value in weights.values() if value.is_floating_point()], 1.0 - kept
        )
        for name, average in self._averages.items():
            if not average.is_floating_point():
                average.copy_(weights[name])

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._averages)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, average in self._averages.items():
            average.copy_(state[name])


class Losses:
    """Losses in the order of the steps; on CUDA each becomes readable some time after its step was asked for."""

    def __init__(self) -> None:
        self._coming: deque[tuple[int, Tensor, torch.cuda.Event | None]] = deque()

    def add(self, step: int, loss: Tensor) -> None:
        """Take in the loss of a step."""
        event = None
        if loss.device.type == "cuda":
            loss = torch.empty((), dtype=loss.dtype, pin_memory=True).copy_(loss, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._coming.append((step, loss, event))

    def read(self, *, wait: bool = True) -> list[float]:
        """Those that were not read yet."""
        found = []
        while self._coming:
            step, loss, event = self._coming[0]
            if event is not None:
                if not wait and not event.query():  # type: ignore[no-untyped-call]
                    break
                event.synchronize()
            self._coming.popleft()
            found.append(float(loss))
            if not math.isfinite(found[-1]):
                raise SettingsInvalid(
                    f"the loss is {found[-1]} after {step} steps",
                    hint="look for outliers, lower the learning rate, or train in float32",
                )
        return found


class Piece(NamedTuple):
    """Some rows of a step's batch."""

    step: int
    first: int
    stop: int


Make = Callable[[Piece], Any]


class Prefetch:
    """Gives pieces, and has the one that comes next made in the meantime."""

    def __init__(self, make: Make, device: torch.device, *, ahead: bool) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, "training-batches") if ahead else None
        if self._thread is not None and device.type == "cuda":
            # Which GPU is the current one is a fact of each thread.
            self._thread.submit(torch.cuda.set_device, device)
        self._next: tuple[Piece, Future[Any]] | None = None

    def get(self, piece: Piece, following: Piece | None) -> Any:
        """The piece; `following` is begun, and given when it is asked for."""
        if self._thread is None:
            return self._make(piece)
        expected, self._next = self._next, None
        if expected is None or expected[0] != piece:
            # After a restart or a smaller microbatch: what was begun is of no use to anybody.
            expected = piece, self._thread.submit(self._make, piece)
        if following is not None:
            self._next = following, self._thread.submit(self._make, following)
        return expected[1].result()

    def close(self) -> None:
        """End the thread; pieces are made when they are asked for from now on."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread, self._next = None, None


def pays(device: torch.device, threads: int) -> bool:
    """Whether a thread for it pays: always beside a GPU, else where the threads of torch leave a core free."""
    if device.type == "cuda":
        return True
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return free > threads * beside_here()


_PROBE_STEPS = 12
PROBE_MARGIN = 0.93
"""Share of a time that is given to steps; the rest goes to checkpoints and records."""


class Task(Protocol):
    """What is learned: data, network and loss, for one settled config."""

    figures: dict[str, float]

    @property
    def config(self) -> TrainConfig:
        """The run, settled."""

    def initial_network(self) -> nn.Module:
        """A network with its first weights, in training mode, on the CPU."""

    def averaged(self, state: dict[str, Tensor], device: torch.device) -> nn.Module:
        """A network of its own with the averaged weights."""

    def fetch(self, piece: Piece, device: torch.device) -> Any:
        """Rows of a step's batch on the device; a function of seed and piece, called on a thread of its own."""

    def loss(self, network: nn.Module, piece: Piece, samples: Any) -> tuple[Tensor, Tensor]:
        """The piece's share of the batch's loss, to be differentiated, and the losses of its samples (n,)."""

    def held_out_loss(self, network: nn.Module, at_once: int) -> float:
        """The loss on samples that are never trained on, always with the same noise."""

    def aside(self) -> NDArray[np.float32] | None:
        """Pictures (N, C, H, W) in [-1, 1] that are never trained on, for the gate's bounds; None for none."""

    def show(self, trainer: Trainer, folder: Path, *, last: bool) -> str:
        """Draw what the averaged weights make into samples.png; what is to be said about it, or nothing."""

    def manifest(self) -> dict[str, Any]:
        """The fields of the bundle's manifest that follow from the task."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is."""

    step: int
    steps: int
    loss: float
    held_out: float | None
    rate: float


OnProgress = Callable[[Progress], None]


class Trainer:
    """A network in training, with everything that a step changes."""

    def __init__(self, task: Task, world: World, *, ahead: bool | None = None) -> None:
        self.task, self.world, self.config = task, world, task.config
        config = self.config
        self.step = 0
        self.batch = config.batch
        self.microbatch = config.microbatch
        self.notes: list[str] = []
        if world.device.type == "cpu":
            keep_freed_memory()  # a step of points takes 5,000 page faults without, a fifth of its time
        self.network = task.initial_network().to(world.device)
        self.ema = Ema(self.network, config.ema)
        self._parameters = [p for p in self.network.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters,
            lr=config.learning_rate,
            betas=(0.9, config.beta2),
            weight_decay=0.0,
            fused=True,
        )
        self._prefetch = Prefetch(
            lambda piece: task.fetch(piece, world.device),
            world.device,
            ahead=pays(world.device, config.threads) if ahead is None else ahead,
        )

    @property
    def steps(self) -> int:
        return self.config.total_steps

    def advance(self) -> Tensor:
        """One optimiser step, which on CUDA is not waited for."""
        losses = self._gradients()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        self._bound_gradient()
        self._optimizer.step()
        self.ema.update(self.network, self.step)
        loss = self._loss(losses)
        self.step += 1
        return loss

    def spent(self) -> DifferentialPrivacy | None:
        return None

    def close(self) -> None:
        self._prefetch.close()

    def averaged(self) -> nn.Module:
        return self.task.averaged(self.ema.state_dict(), self.world.device)

    def held_out_loss(self) -> float:
        with torch.no_grad():
            return self.task.held_out_loss(self.averaged().eval(), self.microbatch)

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint must hold, on the CPU."""
        parts = {
            "network": self.network.state_dict(),
            "ema": self.ema.state_dict(),
            "optimizer": optimizer_tensors(self._optimizer),
        }
        return {
            f"{part}.{name}": value.cpu() for part, state in parts.items() for name, value in state.items()
        }

    def restore(self, checkpoint: Checkpoint) -> None:
        """Resume from a checkpoint of the same run."""
        self.network.load_state_dict(checkpoint.part("network"))
        self.ema.load_state_dict(checkpoint.part("ema"))
        restore_optimizer(self._optimizer, checkpoint.part("optimizer"))
        self._arrange()
        self.step = checkpoint.info.step
        self.microbatch = int(checkpoint.info.config.get("microbatch") or self.microbatch)

    def _bound_gradient(self) -> None:
        if self.config.clip:
            nn.utils.clip_grad_norm_(self._parameters, self.config.clip, foreach=True)

    def _loss(self, losses: Tensor) -> Tensor:
        return losses.double().mean()

    def _gradients(self) -> Tensor:
        """Put the batch's gradient into the parameters; losses of all samples (batch,) float32 on the device."""
        while True:
            try:
                losses = self._accumulate()
                break
            except (RuntimeError, MemoryError) as error:
                if not _out_of_memory(error):
                    raise
                self._halve(error)
        # A loss is some process's own and 0 elsewhere, so the sum is exact, and goes in the gradients' message.
        self.world.add([*(p.grad for p in self._parameters if p.grad is not None), losses])
        return losses

    def _accumulate(self) -> Tensor:
        self._optimizer.zero_grad(set_to_none=True)
        losses = torch.zeros(self.batch, device=self.world.device)
        pieces = self._pieces(self.step)
        for piece, following in pairwise([*pieces, *self._pieces(self.step + 1)[:1]]):
            samples = self._prefetch.get(piece, following)
            share, found = self.task.loss(self.network, piece, samples)
            share.backward()  # type: ignore[no-untyped-call]
            losses[piece.first : piece.stop] = found.detach()
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return losses

    def _pieces(self, step: int) -> list[Piece]:
        own = self.world.part(self.batch)
        return [
            Piece(step, first, min(first + self.microbatch, own.stop))
            for first in range(own.start, own.stop, self.microbatch)
        ]

    def _halve(self, error: BaseException) -> None:
        self._optimizer.zero_grad(set_to_none=True)
        if self.microbatch <= 1:
            raise MemoryExhausted(
                f"the memory does not suffice for {self.microbatch} samples at a time",
                hint="a smaller network, size or batch, --set precision=bfloat16, or another machine",
            ) from error
        if self.world.device.type == "cuda":
            torch.cuda.empty_cache()
        before, self.microbatch = self.microbatch, max(1, self.microbatch // 2)
        what = self.config.learns_from
        self.notes.append(f"out of memory with {before} {what} at once: continuing with {self.microbatch}")

    def _arrange(self) -> None:
        for parameter, state in self._optimizer.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    state[name] = torch.empty_like(parameter).copy_(value)


@dataclass(frozen=True, slots=True)
class Cost:
    """What a step costs on this machine."""

    parameters: int
    seconds: float
    memory: int
    microbatch: int

    def __str__(self) -> str:
        size = f"{self.parameters:,} parameters, {self.memory / 2**30:.1f} GiB of memory"
        return f"{size}, {self.seconds:.3g} s a step, {self.microbatch} pictures at once"


def measure(
    config: TrainConfig, task: Callable[[TrainConfig], Task], world: World, *, within_s: float
) -> Cost:
    """Take a few steps of one microbatch for about `within_s` seconds, on a network that is thrown away."""
    settled = config.settled(1_000_000)
    batch = settled.batch
    small = min(batch, settled.microbatch * world.size)
    trial = Trainer(task(settled.model_copy(update={"batch": small})), world)
    begun = time.monotonic()
    float(trial.advance())  # waits for it
    slowest = time.monotonic() - begun
    # The leader chooses how many: processes that disagreed would wait for one another for ever.
    count = world.decide(lambda: max(1, min(_PROBE_STEPS, int(within_s / slowest))))
    begun = time.monotonic()
    for _ in range(count):
        float(trial.advance())
    trial.close()
    seconds = (time.monotonic() - begun) / count * batch / small
    parameters = sum(parameter.numel() for parameter in trial.network.parameters())
    return Cost(parameters, seconds, _memory(world), trial.microbatch)


def settle(config: TrainConfig, cost: Cost | None) -> TrainConfig:
    """The config with its number of steps, and a microbatch that fits, settled."""
    if cost is None:
        return config.settled()
    steps = (
        config.steps if config.time_s is None else max(1, int(config.time_s * PROBE_MARGIN / cost.seconds))
    )
    settled = config.settled(steps, microbatch=cost.microbatch)
    return settled.model_copy(update={"timed_s": config.time_s})


def _memory(world: World) -> int:
    if world.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(world.device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The last is what oneDNN says when it finds no room for its code and its buffers.
    signs = ("can't allocate memory", "out of memory", "could not create a primitive")
    return any(sign in str(error) for sign in signs)
