"""Optimiser steps on points or pictures, alone or together with other processes of torchrun.

Step k is a function of (config, plan, k) and the state after step k - 1, so that a resumed run ends bit for bit as one
that was not killed. Its gradient is the mean over the whole batch, whichever microbatches and processes computed it.
"""

from __future__ import annotations

import importlib
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn

from ddib_fed.errors import DdibError, MemoryExhausted, SettingsInvalid
from ddib_fed.models.manifest import DifferentialPrivacy
from ddib_fed.networks.build import build_network, network_with
from ddib_fed.networks.config import AnyConfig
from ddib_fed.networks.placement import keep_freed_memory
from ddib_fed.terminal import end_with_parent, processes_here, require_torchrun, started_together
from ddib_fed.training.config import RunPlan, TrainConfig, learning_rate

T = TypeVar("T")
_BUCKET = 16 << 20  # numbers that are summed in one message
_PROBE_STEPS, _PROBE_S = 12, 3.0
"""At most so many steps, in about so many seconds, measure the cost of a step before the first."""


class World(NamedTuple):
    """One process of a run. Process 0 decides and writes."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def part(self, total: int) -> range:
        return range(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def add(self, tensors: list[Tensor]) -> None:
        """Sum tensors over all processes, in place, in few messages: a copy of all takes too much memory."""
        while self.size > 1 and tensors:
            ends = accumulate(tensor.numel() for tensor in tensors)
            count = max(1, sum(end <= _BUCKET for end in ends))
            bucket, tensors = tensors[:count], tensors[count:]
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            distributed.all_reduce(flat)
            for tensor, part in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def decide(self, choose: Callable[[], T]) -> T:
        """Return, or raise, in every process what `choose` does in process 0."""
        if self.size == 1:
            return choose()
        shared: list[Any] = [None, None]
        if self.leads:
            try:
                shared[0] = choose()
            except DdibError as error:
                shared[1] = type(error), error.detail, error.hint
        distributed.broadcast_object_list(shared, 0)
        if shared[1] is not None:
            kind, detail, hint = shared[1]
            raise kind(detail, hint=hint)
        return shared[0]  # type: ignore[no-any-return]


@contextmanager
def open_world(device: str) -> Iterator[World]:
    """Join the processes that torchrun's variables name; without them this one is alone."""
    require_torchrun("training")
    size, rank = started_together()[0], int(os.environ.get("RANK", "0"))
    place = place_of(device)
    if size == 1:
        yield World(0, 1, place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()  # torchrun cannot end its processes when it is itself killed
    started = not distributed.is_initialized()
    if started:
        # Default arguments of this module keep the group that there is when it is first imported, and an optimizer
        # imports it. The group's threads would then outlive it, and end the process by SIGABRT when it exits.
        importlib.import_module("torch.distributed.nn.functional")
        distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield World(rank, size, place)
    finally:
        if started:
            distributed.destroy_process_group()


def place_of(device: str) -> torch.device:
    """Return this process's GPU, or the CPU; raise if a GPU is asked for and there is none."""
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise SettingsInvalid("torch finds no usable CUDA device", hint="--device cpu")
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local) if cuda and device != "cpu" else torch.device("cpu")


class Ema:
    """Averages of all entries of a module's state dict."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.averages = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take the module's weights after step `step` (from 0) into the averages."""
        kept = min(self.decay, (1 + step) / (10 + step))
        weights = module.state_dict()
        moving = [name for name, value in weights.items() if value.is_floating_point()]
        averages = [self.averages[name] for name in moving]
        torch._foreach_lerp_(averages, [weights[name] for name in moving], 1.0 - kept)
        for name in weights.keys() - set(moving):
            self.averages[name].copy_(weights[name])


class Piece(NamedTuple):
    step: int
    first: int
    stop: int


class Prefetch:
    """Gives pieces, and has the one that comes next made in the meantime by a thread."""

    def __init__(self, make: Callable[[Piece], Any], device: torch.device, *, ahead: bool) -> None:
        self._make = make
        self._thread = ThreadPoolExecutor(1, "training-batches") if ahead else None
        if self._thread is not None and device.type == "cuda":
            # Which GPU is the current one is a fact of each thread.
            self._thread.submit(torch.cuda.set_device, device)
        self._next: tuple[Piece, Future[Any]] | None = None

    def get(self, piece: Piece, following: Piece | None) -> Any:
        """Return the samples of a piece, and begin those of `following`."""
        if self._thread is None:
            return self._make(piece)
        expected, self._next = self._next, None
        if expected is None or expected[0] != piece:  # after a restart or a smaller microbatch
            expected = piece, self._thread.submit(self._make, piece)
        if following is not None:
            self._next = following, self._thread.submit(self._make, following)
        return expected[1].result()

    def close(self) -> None:
        """End the thread; pieces are made when they are asked for from now on."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread, self._next = None, None


def _thread_pays(device: torch.device, threads: int) -> bool:
    """Return whether a core is free beside the threads of torch, or a GPU computes."""
    if device.type == "cuda":
        return True
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return free > threads * processes_here()


class Task(ABC):
    """What is learned: data, network and loss, for one config."""

    def __init__(self, config: TrainConfig, network: AnyConfig) -> None:
        self.config, self.network = config, network
        self.figures: dict[str, float] = {}
        self.autoencoder: Path | None = None
        """The folder of the autoencoder that is copied into a bundle of a model of latents."""

    def initial_network(self) -> nn.Module:
        """A network with its first weights, in training mode, on the CPU; torch's own generator is left alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed)
            return build_network(self.network).train()

    def averaged(self, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
        return network_with(self.network, state, device=device)

    @abstractmethod
    def fetch(self, piece: Piece, device: torch.device) -> Any:
        """Return rows of a step's batch on the device; a function of seed and piece, called on a thread of its own."""

    @abstractmethod
    def loss(self, network: nn.Module, piece: Piece, samples: Any) -> tuple[Tensor, Tensor]:
        """Return the piece's share of the batch's loss, to be differentiated, and the losses of its samples (n,)."""

    @abstractmethod
    def held_out_loss(self, network: nn.Module, at_once: int) -> float:
        """Return the loss on samples that are never trained on, always with the same noise."""

    @abstractmethod
    def show(self, trainer: Trainer, folder: Path, *, last: bool) -> str:
        """Draw what the averaged weights make into samples.png; what is to be said about it, or nothing."""

    @abstractmethod
    def manifest(self) -> dict[str, Any]:
        """Return the fields of the bundle's manifest that follow from the task."""

    def aside(self) -> NDArray[np.float32] | None:
        """Return pictures (N, C, H, W) in [-1, 1] that are never trained on, for the gate's bounds; None for none."""
        return None


class Trainer:
    """A network in training, with everything that a step changes."""

    def __init__(
        self, task: Task, world: World, plan: RunPlan | None = None, *, ahead: bool | None = None
    ) -> None:
        self.task, self.world, self.config = task, world, task.config
        config = self.config
        self.plan = plan or RunPlan(total=config.steps or config.usual_steps())
        self.step = 0
        self.microbatch = config.microbatch
        self.notes: list[str] = []
        if world.device.type == "cpu":
            keep_freed_memory()  # a step of points takes 5,000 page faults without, a fifth of its time
        self.network = task.initial_network().to(world.device)
        self.ema = Ema(self.network, config.ema)
        self._parameters = [p for p in self.network.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._parameters, lr=config.learning_rate, betas=(0.9, config.beta2), weight_decay=0.0, fused=True
        )
        ahead = _thread_pays(world.device, config.threads) if ahead is None else ahead
        self._prefetch = Prefetch(lambda piece: task.fetch(piece, world.device), world.device, ahead=ahead)

    def advance(self) -> Tensor:
        """Take one optimiser step; return its loss, which on CUDA is not waited for."""
        losses = self._gradients()
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.plan, self.step)
        self._bound_gradient()
        self._optimizer.step()
        self.ema.update(self.network, self.step)
        self.step += 1
        return losses.double().mean()

    def spent(self) -> DifferentialPrivacy | None:
        """Return the privacy spent so far; None without differential privacy."""
        return None

    def close(self) -> None:
        self._prefetch.close()

    def averaged(self) -> nn.Module:
        return self.task.averaged(self.ema.averages, self.world.device)

    def held_out_loss(self) -> float:
        with torch.no_grad():
            return self.task.held_out_loss(self.averaged().eval(), self.microbatch)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors of a checkpoint, on the CPU."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "network": self.network.state_dict(),
            "ema": self.ema.averages,
        }
        for number, parameter in enumerate(self._parameters):
            parts[f"optimizer.{number}"] = self._optimizer.state.get(parameter, {})
        return {
            f"{part}.{name}": value.cpu() for part, state in parts.items() for name, value in state.items()
        }

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(_part_of(tensors, "network"))
        for name, average in self.ema.averages.items():
            average.copy_(tensors[f"ema.{name}"])
        for number, parameter in enumerate(self._parameters):
            state = self._optimizer.state[parameter] = _part_of(tensors, f"optimizer.{number}")
            for name, value in state.items():
                state[name] = value.to(parameter.device)
                if value.shape == parameter.shape:
                    # In the memory layout of the parameter, as in a run that was not stopped.
                    state[name] = torch.empty_like(parameter).copy_(value)

    def _bound_gradient(self) -> None:
        if self.config.clip:
            nn.utils.clip_grad_norm_(self._parameters, self.config.clip, foreach=True)

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
        losses = torch.zeros(self.config.batch, device=self.world.device)
        pieces = self._pieces(self.step)
        for piece, following in pairwise([*pieces, *self._pieces(self.step + 1)[:1]]):
            samples = self._prefetch.get(piece, following)
            share, of_each = self.task.loss(self.network, piece, samples)
            share.backward()  # type: ignore[no-untyped-call]
            losses[piece.first : piece.stop] = of_each.detach()
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return losses

    def _pieces(self, step: int) -> list[Piece]:
        own = self.world.part(self.config.batch)
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
        self.notes.append(f"out of memory with {before} samples at once: continuing with {self.microbatch}")


def _part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


class StepCost(NamedTuple):
    """What a step costs on this machine; `told` says it to people."""

    seconds: float
    microbatch: int
    told: str


def measure(config: TrainConfig, task: Callable[[TrainConfig], Task], world: World) -> StepCost:
    """Take a few steps of one microbatch, on a network that is thrown away."""
    small = min(config.batch, config.microbatch * world.size)
    trial = Trainer(task(config.model_copy(update={"batch": small})), world, RunPlan(total=1_000_000))
    begun = time.monotonic()
    float(trial.advance())  # waits for it
    slowest = time.monotonic() - begun
    # The leader chooses how many: processes that disagreed would wait for one another for ever.
    count = world.decide(lambda: max(1, min(_PROBE_STEPS, int(_PROBE_S / slowest))))
    begun = time.monotonic()
    for _ in range(count):
        float(trial.advance())
    trial.close()
    seconds = (time.monotonic() - begun) / count * config.batch / small
    parameters = sum(parameter.numel() for parameter in trial.network.parameters())
    told = f"{parameters:,} parameters, {seconds:.3g} s a step, {trial.microbatch} pictures at once"
    return StepCost(seconds, trial.microbatch, told)


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # The last is what oneDNN says when it finds no room for its code and its buffers.
    signs = ("can't allocate memory", "out of memory", "could not create a primitive")
    return any(sign in str(error) for sign in signs)
