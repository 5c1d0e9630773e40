"""Distributes work over devices: one spawned process each, or this process for a single device.

A piece of work gives the same result wherever it is done, so neither the number of devices nor their order
shows in what comes out. Processes are spawned, never forked: torch and CUDA do not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.queues import SimpleQueue
from typing import Any, Protocol, TypeVar

from ddib_fed.errors import InternalError, SettingsInvalid
from ddib_fed.models.devices import device_problem

MAX_WORKERS = 256
POLL_S = 0.2
Piece = TypeVar("Piece")
Piece_contra = TypeVar("Piece_contra", contravariant=True)
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
OnTick = Callable[[int], None]


class Worker(Protocol[Piece_contra, Result_co]):
    """What does one piece of work after another on one device, and tells of each unit of it."""

    def __call__(self, piece: Piece_contra, on_tick: OnTick, /) -> Result_co:
        """Do one piece; `on_tick` gets the number of units that were completed since the last call."""


def parse_devices(text: str) -> tuple[str, ...]:
    """The devices of `--devices`, one for each worker.

    Args:
        text: "all" for every GPU, or without any one worker for each core; else a list such as "cuda:0,cuda:1",
            where "cpu" is one worker on the CPU and "cpu:4" are four.

    Raises:
        SettingsInvalid: Not of that form, too many, or a GPU that is not there.
    """
    if text.strip() == "all":
        import torch  # not above: a process that is spawned imports this module first, and its work may not need torch

        gpus = torch.cuda.device_count()
        return tuple(f"cuda:{i}" for i in range(gpus)) or ("cpu",) * (os.cpu_count() or 1)
    devices: list[str] = []
    for part in text.split(","):
        match = re.fullmatch(r"(cpu|cuda|mps)(?::(\d{1,4}))?", part.strip())
        if match is None or match[0] == "cpu:0" or (match[1] == "mps" and match[2]):
            raise SettingsInvalid(
                f"{part.strip()[:40]!r} is no device", hint="write all, cpu, cpu:4, or cuda:0,cuda:1"
            )
        if match[1] == "cpu":
            devices += ["cpu"] * int(match[2] or 1)
        else:
            devices.append("mps" if match[1] == "mps" else f"cuda:{int(match[2] or 0)}")
    if len(devices) > MAX_WORKERS:
        raise SettingsInvalid(f"{len(devices)} workers; at most {MAX_WORKERS} are started")
    for device in devices:
        _check_there(device)
    return tuple(devices)


def spread(
    pieces: Sequence[Piece],
    devices: Sequence[str],
    start: Callable[[str], Worker[Piece, Result]],
    on_tick: OnTick,
) -> Iterator[Result]:
    """Do all pieces and give their results as they come.

    Args:
        pieces: The work; with several devices it can be pickled, and so can results.
        devices: From `parse_devices`.
        start: Makes the worker of a device, in its process; with several devices a function of a module, or a
            `functools.partial` of one.
        on_tick: Told how many units of work more are done.

    Raises:
        InternalError: A worker process was killed.
        DdibError: What a worker raised; work that has begun is finished, the rest is left.
    """
    if not pieces:
        return
    if len(devices) == 1 or len(pieces) == 1:
        worker = start(devices[0])
        for piece in pieces:
            yield worker(piece, on_tick)
        return
    yield from _in_processes(pieces, devices, start, on_tick)


def _in_processes(
    pieces: Sequence[Piece],
    devices: Sequence[str],
    start: Callable[[str], Worker[Piece, Result]],
    on_tick: OnTick,
) -> Iterator[Result]:
    context = multiprocessing.get_context("spawn")
    count = min(len(devices), len(pieces))
    free: SimpleQueue[str] = context.SimpleQueue()
    ticks: SimpleQueue[int] = context.SimpleQueue()
    for device in devices[:count]:
        free.put(device)
    pool = ProcessPoolExecutor(count, context, _begin, (start, free, ticks))
    try:
        waiting: set[Future[Result]] = {pool.submit(_do, piece) for piece in pieces}
        while waiting:
            done, waiting = wait(waiting, timeout=POLL_S, return_when=FIRST_COMPLETED)
            results = [future.result() for future in done]
            while not ticks.empty():
                on_tick(ticks.get())
            yield from results
    except BrokenProcessPool as error:
        raise InternalError(
            "a worker process was killed, perhaps for want of memory",
            hint="the same command again goes on where it stopped; fewer --devices or a smaller --batch need less",
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


# The worker of this process, made once by `_begin`; whoever runs a pool has no other place for it.
_OWN: dict[str, Any] = {}


def _begin(start: Callable[[str], Worker[Any, Any]], free: SimpleQueue[str], ticks: SimpleQueue[int]) -> None:
    _OWN["tick"] = ticks.put
    try:
        _OWN["worker"] = start(free.get())
    except Exception as error:  # noqa: BLE001 - the pool would only say that it is broken: the first piece tells why
        _OWN["error"] = error


def _do(piece: Any) -> Any:
    if "error" in _OWN:
        raise _OWN["error"]
    return _OWN["worker"](piece, _OWN["tick"])


def _check_there(device: str) -> None:
    if problem := device_problem(device):
        raise SettingsInvalid(
            f"there is no device {device} here: {problem}",
            hint="--devices cpu works everywhere",
            facts={"device": device},
        )
