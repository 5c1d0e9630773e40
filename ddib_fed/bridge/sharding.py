"""Distributes work over devices: one spawned process each, or this process for a single device.

A piece of work gives the same result wherever it is done, so neither the number of devices nor their order
shows in what comes out.
"""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from ddib_fed.bridge.workers.process import Channel, WorkerProcess, portable
from ddib_fed.errors import DdibError, InternalError, SettingsInvalid
from ddib_fed.models.devices import device_problem

MAX_WORKERS = 256
Piece = TypeVar("Piece")
Piece_contra = TypeVar("Piece_contra", contravariant=True)
Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)
OnTick = Callable[[int], None]


class Worker(Protocol[Piece_contra, Result_co]):
    """What does one piece of work after another on one device, and tells of each unit of it."""

    def __call__(self, piece: Piece_contra, on_tick: OnTick, /) -> Result_co: ...


def parse_devices(text: str) -> tuple[str, ...]:
    """The devices of `--devices`, one for each worker."""
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
    """Do all pieces and give their results as they come."""
    if not pieces:
        return
    if len(devices) == 1 or len(pieces) == 1:
        worker = start(devices[0])
        for piece in pieces:
            yield worker(piece, on_tick)
        return
    yield from _in_processes(pieces, devices, start, on_tick)


class _Ended:
    """A worker process has ended."""


@dataclass(slots=True)
class _Pool(Generic[Piece, Result]):
    """Worker processes, and what they say."""

    start: Callable[[str], Worker[Piece, Result]]
    workers: list[WorkerProcess] = field(default_factory=list)
    said: SimpleQueue[tuple[int, Any]] = field(default_factory=SimpleQueue)

    def add(self, device: str) -> None:
        """Start a process, and listen to it."""
        worker = WorkerProcess(_serve, (self.start, device), name=f"worker on {device}")
        number = len(self.workers)
        self.workers.append(worker)
        threading.Thread(
            target=self._listen, args=(number, worker), name=f"listen-{number}", daemon=True
        ).start()

    def _listen(self, number: int, worker: WorkerProcess) -> None:
        with suppress(EOFError, OSError):
            while True:
                self.said.put((number, worker.channel.receive()))
        self.said.put((number, _Ended()))


def _in_processes(
    pieces: Sequence[Piece],
    devices: Sequence[str],
    start: Callable[[str], Worker[Piece, Result]],
    on_tick: OnTick,
) -> Iterator[Result]:
    pool: _Pool[Piece, Result] = _Pool(start)
    finished = False
    try:
        for device in devices[: len(pieces)]:
            pool.add(device)
        yield from _hand_out(pieces, pool, on_tick)
        finished = True
    except DdibError:
        finished = True
        raise
    finally:  # what was interrupted (Ctrl-C, or nobody takes further results) is not waited for
        for worker in pool.workers:
            worker.end() if finished else worker.kill()


def _hand_out(pieces: Sequence[Piece], pool: _Pool[Piece, Result], on_tick: OnTick) -> Iterator[Result]:
    """Give each worker a piece at a time until all are done, or until one failed and the others have done theirs."""
    left = deque(pieces)
    busy = set(range(len(pool.workers)))
    failure: Exception | None = None
    for number in busy:
        _give(pool.workers[number], left.popleft())
    while busy:
        number, said = pool.said.get()
        if isinstance(said, _Tick):
            on_tick(said.units)
            continue
        busy.discard(number)
        if isinstance(said, _Done):
            if left and failure is None:
                _give(pool.workers[number], left.popleft())
                busy.add(number)
            yield said.result
        elif isinstance(said, _Failure):
            failure = failure or said.error
        else:
            failure = failure or _killed(pool.workers[number])
    if failure is not None:
        raise failure


def _give(worker: WorkerProcess, piece: Any) -> None:
    with suppress(OSError):  # it has ended, which who listens to it tells
        worker.channel.send(piece)


def _killed(worker: WorkerProcess) -> InternalError:
    return InternalError(
        f"a worker process {worker.ending}, perhaps for want of memory",
        hint="the same command resumes where it stopped; fewer --devices or a smaller --batch need less",
    )


@dataclass(frozen=True, slots=True)
class _Tick:
    units: int


@dataclass(frozen=True, slots=True)
class _Done:
    result: Any


@dataclass(frozen=True, slots=True)
class _Failure:
    error: Exception


def _serve(channel: Channel, start: Callable[[str], Worker[Any, Any]], device: str) -> None:
    """In the process: do one piece after another, until one fails."""
    try:
        worker = start(device)
    except Exception as error:  # noqa: BLE001 - the parent raises it
        channel.send(_Failure(portable(error)))
        return
    while True:
        piece = channel.receive()
        try:
            result = worker(piece, lambda units: channel.send(_Tick(units)))
        except Exception as error:  # noqa: BLE001 - as above
            channel.send(_Failure(portable(error)))
            return
        channel.send(_Done(result))


def _check_there(device: str) -> None:
    if problem := device_problem(device):
        raise SettingsInvalid(
            f"there is no device {device} here: {problem}",
            hint="--devices cpu works everywhere",
            facts={"device": device},
        )
