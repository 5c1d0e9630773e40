"""The processes that share one run: alone, or as many as `torchrun` started.

Process 0 decides and writes; sums over processes are the only thing that makes a run
of several differ from a run of one.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from ddib_fed.errors import DdibError, SettingsInvalid
from ddib_fed.processes import killed_with, require_torchrun, started_together

T = TypeVar("T")

_BUCKET = 16 << 20
"""Numbers that are summed in one message."""


@dataclass(frozen=True, slots=True)
class World:
    """One process of a run."""

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def part(self, total: int) -> range:
        return range(total * self.rank // self.size, total * (self.rank + 1) // self.size)

    def add(self, tensors: list[Tensor]) -> None:
        """Sum tensors over all processes, in place, in few messages."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            distributed.all_reduce(flat)
            for tensor, part in zip(bucket, torch.split(flat, [t.numel() for t in bucket]), strict=True):
                tensor.copy_(part.view_as(tensor))

    def hand_out(self, tensors: list[Tensor]) -> None:
        """Give all processes the leader's values, in place."""
        if self.size == 1:
            return
        for tensor in tensors:
            there = tensor.to(self.device).contiguous()
            distributed.broadcast(there, 0)
            tensor.copy_(there)

    def decide(self, choose: Callable[[], T]) -> T:
        """What the leader's `choose` gives, or raises, in every process."""
        if self.size == 1:
            return choose()
        shared: list[Any] = [None, None]
        if self.leads:
            try:
                shared[0] = choose()
            except DdibError as error:
                shared[1] = _plain(error)
        distributed.broadcast_object_list(shared, 0)
        if shared[1] is not None:
            kind, detail, hint = shared[1]
            raise kind(detail, hint=hint)
        return shared[0]  # type: ignore[no-any-return]


@contextmanager
def open_world(device: str) -> Iterator[World]:
    """The world that the environment says (torchrun's variables), or one process."""
    require_torchrun("training")
    size, rank = started_together()[0], int(os.environ.get("RANK", "0"))
    place = _device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield World(0, 1, place)
        return
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        killed_with(os.getppid())  # torchrun cannot end its processes when it is itself killed
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


def _device(name: str, local: int) -> torch.device:
    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise SettingsInvalid("there is no CUDA device that torch can use", hint="--device cpu")
    return torch.device("cuda", local) if there and name != "cpu" else torch.device("cpu")


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    numbers = 0
    for tensor in tensors:
        if bucket and numbers + tensor.numel() > _BUCKET:
            yield bucket
            bucket, numbers = [], 0
        bucket.append(tensor)
        numbers += tensor.numel()
    if bucket:
        yield bucket


def _plain(error: DdibError) -> tuple[type[DdibError], str, str]:
    return type(error), error.detail, error.hint
