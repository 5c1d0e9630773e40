"""Workers elsewhere: a `Pool` gives trajectories to processes, each with a warm model and a batcher.

A worker is an executor of one process, asked one call at a time: new trajectories go there, ends and steps come back.
When it dies, its trajectories are done again by others, a bounded number of times, and at last each by itself. An
entry point of `ddib_fed.executors` makes a pool of other workers, as `ddib_fed.ray_actors` does.
"""

import io
import itertools
import logging
import multiprocessing
import os
import pickle
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future, InvalidStateError, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final, NamedTuple

import torch

from ddib_fed.diffusion.solvers import OnStep
from ddib_fed.engine.batcher import Recipe, Scheduler
from ddib_fed.engine.party import Control
from ddib_fed.engine.stack import End, Member, Trajectory
from ddib_fed.errors import (
    Cancelled,
    ConfigError,
    Draining,
    InternalError,
    NotReady,
    SettingsInvalid,
)
from ddib_fed.names import __version__

log = logging.getLogger(__name__)

LOOK_S: Final = 0.1  # how often deadlines and silent workers are looked for
NEWS_S: Final = 0.05
"""A worker with work answers after this time at the latest: so long a new trajectory may wait to join others there."""
IDLE_S: Final = 1.0  # how often a worker without work is asked whether it lives
SILENT_S: Final = 60.0
"""A ready worker that does not answer for so long hangs, and is ended: loading a library may hold it for seconds."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Tries to start a worker pause this long, doubled after each failure."""
SUSPECT_AFTER: Final = 2
"""Deaths of workers after which a trajectory is given to a worker that has nothing else."""
MOST_DEATHS: Final = 3
OVERHEAD_ROWS: Final = 8.0  # a trajectory costs this many rows more than its own, for fair shares

Begun = Sequence[tuple[int, bytes, float | None]]
"""Trajectories: the number of each, itself packed, and the seconds that it may take."""


class News(NamedTuple):
    """A worker's name and how many samples its network calls take best; and what is new since its last news."""

    name: str
    rows: int
    ends: Sequence[tuple[int, Any]] = ()  # numbers of trajectories, and the packed end or error of each
    steps: Mapping[int, tuple[int, int]] = {}
    calls: int = 0
    evaluated: int = 0  # network calls, and rows in them


class WarmModel:
    """A model with its batcher in a worker, which may be a Ray actor; `version` is that of the node's ddib-fed."""

    def __init__(self, recipe: bytes, device: str, version: str = __version__) -> None:
        if version != __version__:
            raise ConfigError(
                f"the cluster has ddib-fed {__version__}, and the node {version}",
                hint=f"install ddib-fed {version} with its extras node and ray in the image of the cluster",
            )
        self._batcher = replace(unpack(recipe), device=device).warm()
        self._name = f"on {device} of {socket.gethostname()}, process {os.getpid()}"
        self._controls: dict[int, Control] = {}
        self._steps: dict[int, tuple[int, int]] = {}
        self._ends: queue.SimpleQueue[tuple[int, bytes]] = queue.SimpleQueue()
        self._counted = (0, 0)

    def exchange(self, begun: Begun, over: Sequence[int]) -> News:
        """Begin trajectories, and end those that are over; return the news when one has ended, or after `NEWS_S`."""
        for number, work, remaining_s in begun:
            control = Control(None if remaining_s is None else time.monotonic() + remaining_s)
            self._controls[number] = control
            future = self._batcher.submit(unpack(work), control=control, on_step=partial(self._note, number))
            future.add_done_callback(partial(self._end, number))
        for number in over:
            if (under_way := self._controls.get(number)) is not None:
                under_way.cancel()
        ends: list[tuple[int, bytes]] = []
        with suppress(queue.Empty):
            while True:
                ends.append(self._ends.get(timeout=0 if ends or not self._controls else NEWS_S))
        steps, self._steps = self._steps, {}
        before, counters = self._counted, self._batcher.counters
        self._counted = calls, rows = counters["calls"], counters["rows"]
        return News(self._name, self._batcher.rows, ends, steps, calls - before[0], rows - before[1])

    def _note(self, number: int, done: int, of: int) -> None:
        self._steps[number] = done, of

    def _end(self, number: int, future: Future[End]) -> None:
        self._ends.put((number, packed_end(future)))
        self._controls.pop(number, None)


def packed_end(future: Future[End]) -> bytes:
    if (error := future.exception()) is not None:
        return pack(portable(error))
    end = future.result()
    return pack(end._replace(x=end.x.cpu(), beside=None if end.beside is None else end.beside.cpu()))


def pack(value: Any) -> bytes:
    """Serialise by torch.save, which writes a tensor's storage once."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpack(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=False)


def portable(error: BaseException) -> Exception:
    """Return the error itself if it can be pickled, else an InternalError with its text."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - what was just pickled
    except Exception:  # noqa: BLE001 - whatever its class does when it is pickled
        return InternalError(f"{type(error).__name__}: {error}")
    return error if isinstance(error, Exception) else InternalError(str(error))


_HELD: Final[list[Any]] = []  # what this process made, where it is a worker's


def _begin_process() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a node, which is to drain first
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=end_with_parent, name="parent-watch", daemon=True).start()


def _make(make: Callable[..., Any], *args: Any) -> Any:
    try:
        _HELD.append(make(*args))
    except Exception as error:  # noqa: BLE001 - whatever it is, the pool raises it
        raise portable(error) from None
    return _exchange((), ())


def _exchange(begun: Begun, over: Sequence[int]) -> Any:
    return _HELD[0].exchange(begun, over)


class WorkerProcess:
    """A spawned process that holds what `make` makes; `made` is its first news."""

    def __init__(self, make: Callable[..., Any], *args: Any) -> None:
        spawn = torch.multiprocessing.get_context("spawn")
        self._executor = ProcessPoolExecutor(1, spawn, _begin_process)
        self.made: Future[Any] = self._executor.submit(_make, make, *args)

    def exchange(self, begun: Begun, over: Sequence[int]) -> Future[Any]:
        return self._executor.submit(_exchange, begun, over)

    def kill(self) -> None:
        # As `kill_workers` of Python 3.14 does.
        for process in list((self._executor._processes or {}).values()):  # noqa: SLF001
            process.kill()
        self._executor.shutdown()


@dataclass(slots=True, eq=False)
class Worker:
    """The pool's side of a worker, and its work."""

    process: WorkerProcess
    name: str = ""
    rows: int = 0  # how many samples its network calls take best; 0 until it is ready
    work: dict[int, Member] = field(default_factory=dict)
    begun: list[tuple[int, bytes, float | None]] = field(default_factory=list)
    over: list[int] = field(default_factory=list)  # ended work, named to it with the next call
    asked: bool = True  # a call is under way
    heard: float = field(default_factory=time.monotonic)

    @property
    def load(self) -> int:
        return sum(member.cost_rows for member in self.work.values())

    @property
    def has_room(self) -> bool:
        """Whether it takes more work: beside a trajectory that ended other workers it takes none."""
        suspects = any(member.deaths >= SUSPECT_AFTER for member in self.work.values())
        return not self.work or (self.load < 2 * self.rows and not suspects)


class Pool:
    """Workers elsewhere in the place of a `Batcher`; one thread has them and their work, and others hand it events.

    `launch` starts the worker of a number. The pool waits for `least` workers, or all, for at most `ready_s`.
    """

    beside = True

    def __init__(
        self,
        launch: Callable[[int], WorkerProcess],
        count: int,
        *,
        what: str,
        remedy: str,
        least: int | None = None,
        ready_s: float | None = None,
        end: Callable[[], object] = lambda: None,
    ) -> None:
        self._launch, self._what, self._end = launch, what, end
        self._scheduler = Scheduler(1, lambda rows: rows + OVERHEAD_ROWS)
        self._workers: list[Worker] = []
        self._start_at = self._pause_s = 0.0
        """When a worker may be started next; how long it was waited for after the last failure."""
        self._least = count if least is None else least
        self._started: Future[None] = Future()
        self._numbers = itertools.count(1)
        self._calls = self._evaluated = self._redone = self._replaced = 0
        self._lock = threading.Lock()
        self._closed = False
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._unanswered: set[Member] = set()
        self.rows, self.width = 1, count
        self.problem: str | None = None
        self._thread = threading.Thread(target=self._run, name=f"{what} pool", daemon=True)
        self._thread.start()
        try:
            self._started.result(ready_s)
        except BaseException as error:
            there = len(self.workers())
            self.close()
            if not isinstance(error, TimeoutError):
                raise
            raise NotReady(
                f"of {self._least} {what}s {there} were ready within {ready_s:.0f} s", hint=remedy
            ) from None

    @property
    def counters(self) -> Mapping[str, int]:
        return {
            "calls": self._calls,
            "rows": self._evaluated,
            "ready": len(self.workers()),
            "wanted": self.width,
            "replaced": self._replaced,
            "redone": self._redone,
        }

    def workers(self) -> list[str]:
        return [worker.name for worker in self._ready()]

    def describe(self) -> str:
        return f"{len(self.workers())} of {self.width} {self._what}{'' if self.width == 1 else 's'}"

    def submit(
        self, trajectory: Trajectory, *, control: Control | None = None, on_step: OnStep | None = None
    ) -> Future[End]:
        member = Member(trajectory, control or Control(), on_step, next(self._numbers))
        if trajectory.draw is not None:  # it is a function of this process
            raise SettingsInvalid(
                f"decoding that draws noise at each step is not done by a {self._what}",
                hint='executor = "inline" in [engine] of node.toml, or eta 0',
            )
        with self._lock:
            if self._closed:
                raise Draining("the engine is closed")
            self._unanswered.add(member)
            self._events.put(partial(self._scheduler.add, member))
        return member.future

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        with self._lock:
            self._closed = True
        self._events.put(lambda: None)
        self._thread.join()
        for worker in self._workers:
            worker.process.kill()
        self._end()

    # What follows runs on the pool's thread, but for `_hear`.

    def _run(self) -> None:
        try:
            self._work()
        except BaseException:
            # Without this, callers would wait for their futures for ever.
            log.exception("the pool failed; nothing more is computed until the node is restarted")
        finally:
            with self._lock:
                self._closed = True
            closed = Draining("the engine was closed")
            with suppress(InvalidStateError):
                self._started.set_exception(closed)
            for member in list(self._unanswered):
                member.answer(closed)

    def _work(self) -> None:
        looked = -LOOK_S
        while not self._closed:
            # What was heard counts before silence does: this thread itself may have waited for its turn.
            with suppress(queue.Empty):
                self._events.get(timeout=LOOK_S)()
                while True:
                    self._events.get_nowait()()
            if time.monotonic() >= looked + LOOK_S:
                looked = time.monotonic()
                self._look()
            # The one that has least takes first, and leaves some for others.
            while any(self._give(worker) for worker in sorted(self._ready(), key=lambda each: each.load)):
                pass
            for worker in self._ready():
                idle = not worker.work and not worker.over and time.monotonic() < worker.heard + IDLE_S
                if not worker.asked and not idle:
                    self._ask(worker)

    def _ready(self) -> list[Worker]:
        return [worker for worker in list(self._workers) if worker.rows]

    def _look(self) -> None:
        """Answer callers whose work was cancelled or is late, end workers that hang, and start those that are due."""
        now = time.monotonic()
        for member in [each for each in self._scheduler if each.control.over]:
            self._scheduler.remove(member)
            self._answer(member, member.control.error or Cancelled())
        for worker in self._ready():
            for member in [each for each in worker.work.values() if each.control.over]:
                del worker.work[member.number]
                worker.over.append(member.number)
                self._answer(member, member.control.error or Cancelled())
            if worker.asked and now > worker.heard + SILENT_S:
                log.warning("%s %s gives no sign of life", self._what, worker.name)
                worker.process.kill()
        while len(self._workers) < self.width and now >= self._start_at:
            self._start()

    def _answer(self, member: Member, end: End | Exception) -> None:
        self._unanswered.discard(member)
        member.answer(end)

    def _start(self) -> None:
        try:
            worker = Worker(self._launch(next(self._numbers)))
        except Exception as error:  # noqa: BLE001 - any failure of a start is reported and tried again
            self._report(error)
            return
        self._workers.append(worker)
        worker.process.made.add_done_callback(partial(self._hear, worker))

    def _report(self, error: Exception) -> None:
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) or FIRST_PAUSE_S
        self._start_at = time.monotonic() + self._pause_s
        self.problem = f"a {self._what} cannot be started: {error}"
        if self._started.done():
            log.error("%s; tried again in %.1f s", self.problem, self._pause_s)
        else:
            self._started.set_exception(error)

    def _ask(self, worker: Worker) -> None:
        begun, over, worker.begun, worker.over = worker.begun, worker.over, [], []
        worker.asked, worker.heard = True, time.monotonic()
        try:
            worker.process.exchange(begun, over).add_done_callback(partial(self._hear, worker))
        except RuntimeError as error:  # its process has ended
            self._lose(worker, error)

    def _hear(self, worker: Worker, call: Future[News]) -> None:
        """Hand over a worker's news, or why there are none."""
        try:
            news = call.result()
            ends = [(number, unpack(end)) for number, end in news.ends]
            self._events.put(partial(self._take, worker, news._replace(ends=ends)))
        except Exception as error:  # noqa: BLE001 - it has ended, or e.g. there is no memory for an end
            self._events.put(partial(self._lose, worker, error))

    def _take(self, worker: Worker, news: News) -> None:
        worker.asked, worker.heard = False, time.monotonic()
        self._calls += news.calls
        self._evaluated += news.evaluated
        for number, (done, of) in news.steps.items():
            if number in worker.work:
                worker.work[number].tell(done, of)
        for number, end in news.ends:
            if (member := worker.work.pop(number, None)) is not None:  # else it was cancelled
                if isinstance(end, End):
                    member.tell(end.evaluations, end.evaluations)
                self._answer(member, end)
        if worker.rows:
            return
        worker.name, worker.rows, self.rows = news.name, news.rows, news.rows
        self._pause_s, self.problem = 0.0, None
        self._scheduler.resize(worker.rows)
        log.info("%s %s is ready", self._what, worker.name)
        if len(self._ready()) >= self._least and not self._started.done():
            self._started.set_result(None)

    def _lose(self, worker: Worker, error: Exception) -> None:
        """Give a lost worker's trajectories to others, and its place to a new one."""
        if worker not in self._workers:
            return
        self._workers.remove(worker)
        worker.process.kill()
        ended = isinstance(error, BrokenExecutor)
        if not worker.rows:
            self._report(InternalError(f"a {self._what} ended before it was ready") if ended else error)
            return
        why = "ended" if ended else f"ended: {first_line(error)}"
        self._replaced += 1
        log.warning("%s %s %s; its work is done again by another", self._what, worker.name, why)
        members = list(worker.work.values())
        for member in reversed(members):
            member.deaths += 1
            if member.deaths < MOST_DEATHS or len(members) > 1:
                self._redone += 1
                self._scheduler.add(member, first=True)
                continue
            error = InternalError(
                f"{member.deaths} times a {self._what} {why} while it worked on one trajectory, which is given "
                "up: perhaps for want of memory",
                hint="a smaller engine.merge_pixels in node.toml needs less; the log says what each said",
            )
            self._answer(member, error)

    def _give(self, worker: Worker) -> bool:
        """Give a worker its fair share of waiting trajectories; return whether it took some."""
        if not len(self._scheduler) or not worker.has_room:
            return False
        waiting = sum(member.cost_rows for member in self._scheduler)
        most = min(2 * worker.rows - worker.load, worker.rows, -(-waiting // self.width))
        chosen = self._scheduler.choose(max(1, most))
        suspect = next((member for member in chosen if member.deaths >= SUSPECT_AFTER), None)
        if suspect is not None:
            if worker.work:
                return False
            chosen = [suspect]
        for member in chosen:
            self._scheduler.charge([member], member.trajectory.settings.evaluations)
            self._scheduler.remove(member)
            try:
                work = pack(member.trajectory.portable())
            except Exception as error:  # noqa: BLE001 - e.g. no memory for it: the others are sent
                self._answer(member, error)
                continue
            worker.begun.append((member.number, work, member.control.remaining_s()))
            worker.work[member.number] = member
        return True


def process_pool(recipe: Recipe, *, workers: int = 0) -> Pool:
    """Start a pool of processes: one for each GPU or core of this machine, each with the model on its device."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    devices = [recipe.device]
    if recipe.device in {"auto", "cuda"} and gpus:
        devices = gpus
    elif recipe.device in {"auto", "cpu"}:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        devices = ["cpu"] * (cores or 1)
    packed = pack(replace(recipe, threads=recipe.threads or 1))
    return Pool(
        lambda number: WorkerProcess(WarmModel, packed, devices[number % len(devices)]),
        workers or len(devices),
        what="worker",
        remedy="the node's log has what the process said; free -h and nvidia-smi show what memory is left",
    )


def first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
