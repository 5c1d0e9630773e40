"""Workers elsewhere: a `Pool` gives trajectories to processes (or Ray actors), each with a warm model and a batcher.

The pool and a worker talk over a pipe. A worker takes trajectories while it has less than two calls' rows, the next by
fair share. When it dies, its trajectories are done again by others, a bounded number of times, and at last each by
itself: one that kills its workers takes no others with it.
"""

from __future__ import annotations

import io
import itertools
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final, Protocol

import torch

from ddib_fed.diffusion.solvers import OnStep
from ddib_fed.engine.batcher import Scheduler
from ddib_fed.engine.budget import Recipe
from ddib_fed.engine.party import Control
from ddib_fed.engine.stack import End, Member, Trajectory
from ddib_fed.errors import Cancelled, Draining, InternalError, NotReady, SettingsInvalid

log = logging.getLogger(__name__)

LOOK_S: Final = 0.1
"""How often workers tell their progress, and deadlines and silent workers are looked for."""
SILENT_S: Final = 60.0
"""A ready worker that says nothing for so long hangs, and is ended: loading a library may hold it for seconds."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Between tries to start a worker."""
SUSPECT_AFTER: Final = 2
"""Deaths of workers after which a trajectory is given to a worker that has nothing else."""
MOST_DEATHS: Final = 3
OVERHEAD_ROWS: Final = 8.0
"""What a trajectory costs beside its rows, for fair shares."""
MOST_WORKERS: Final = 256

# The worker's side


class WarmModel:
    """A model with its batcher in a worker."""

    def __init__(self, recipe: Recipe) -> None:
        self._batcher = recipe.warm()
        self._controls: dict[int, Control] = {}
        self._steps: dict[int, tuple[int, int]] = {}
        self._counted = (0, 0)
        self.rows = self._batcher.rows

    def begin(self, number: int, work: bytes, remaining_s: float | None) -> Future[End]:
        control = Control(None if remaining_s is None else time.monotonic() + remaining_s)
        self._controls[number] = control
        future = self._batcher.submit(unpack(work), control=control, on_step=partial(self._note, number))
        future.add_done_callback(lambda _: self._controls.pop(number, None))
        return future

    def cancel(self, number: int) -> None:
        if (control := self._controls.get(number)) is not None:
            control.cancel()

    def _note(self, number: int, done: int, of: int) -> None:
        self._steps[number] = done, of

    def news(self) -> tuple[dict[int, tuple[int, int]], int, int]:
        """Since the last time: the steps of trajectories, network calls, and rows in them."""
        steps, self._steps = self._steps, {}
        before, counters = self._counted, self._batcher.counters
        self._counted = counters["calls"], counters["rows"]
        return steps, self._counted[0] - before[0], self._counted[1] - before[1]


class Served(Protocol):
    """What `serve` puts behind a pipe."""

    name: str
    rows: int

    def take(self, number: int, work: bytes | None, remaining_s: float | None) -> None:
        """Begin a packed trajectory, with the time that it may take; or, without one, end that of the number."""

    def tell(self) -> None:
        """Within about `LOOK_S`, say what is new."""


Say = Callable[..., None]
"""Sends a message to the pool: its kind, and what belongs to it. From any thread."""


def serve(pipe: Connection, make: Callable[[Say], Served]) -> None:
    """Answer the pool until its end of the pipe closes, or its process ends.

    A message to the worker is the arguments of `take`. Those from it: ("ready", name, rows), ("refused", error),
    ("steps", *news), ("end", number, packed end or error), ("lost", why).
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a node, which is to drain first
        signal.signal(number, signal.SIG_IGN)
    parent, lock = multiprocessing.parent_process(), threading.Lock()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(0)

    threading.Thread(target=end_with_parent, name="parent-watch", daemon=True).start()

    def say(*message: Any) -> None:
        with lock, suppress(OSError):  # the pool closed it
            pipe.send(message)

    try:
        served = make(say)
    except Exception as error:  # noqa: BLE001 - whatever it is, the pool raises it
        say("refused", portable(error))
        return
    say("ready", served.name, served.rows)

    def tell() -> None:
        while True:
            served.tell()

    # Takes and tells on two threads: the pool never waits for a worker that waits for the pool.
    threading.Thread(target=tell, name="tell", daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            served.take(*pipe.recv())
    os._exit(0)


class _Process:
    """`Served` by a model of this process."""

    def __init__(self, say: Say, recipe: bytes, device: str) -> None:
        self._say, self._model = say, WarmModel(replace(unpack(recipe), device=device))
        self.name, self.rows = f"on {device}, process {os.getpid()}", self._model.rows

    def take(self, number: int, work: bytes | None, remaining_s: float | None) -> None:
        if work is None:
            self._model.cancel(number)
        else:
            future = self._model.begin(number, work, remaining_s)
            future.add_done_callback(lambda done: self._say("end", number, packed_end(done)))

    def tell(self) -> None:
        time.sleep(LOOK_S)
        self._say("steps", *self._model.news())


def _serve_process(pipe: Connection, recipe: bytes, device: str) -> None:
    serve(pipe, lambda say: _Process(say, recipe, device))


def packed_end(future: Future[End]) -> bytes:
    if (error := future.exception()) is not None:
        return pack(portable(error))
    end = future.result()
    return pack(End(end.x.cpu(), end.evaluations))


def pack(value: Any) -> bytes:
    """By torch.save, which writes a tensor's storage once."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def unpack(content: bytes) -> Any:
    return torch.load(io.BytesIO(content), weights_only=False)


def portable(error: BaseException) -> Exception:
    """The error itself if it can be sent; else one of ours that says the same."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - what was just pickled
    except Exception:  # noqa: BLE001 - whatever its class does when it is pickled
        return InternalError(f"{type(error).__name__}: {error}")
    return error if isinstance(error, Exception) else InternalError(str(error))


# The pool's side


@dataclass(slots=True, eq=False)
class _Queued(Member):
    """A trajectory that a pool has taken; the first answer counts."""

    deaths: int = 0
    """Of workers that had it."""
    worker: Worker | None = None

    def answer(self, end: End | Exception) -> None:
        with suppress(InvalidStateError):
            if isinstance(end, Exception):
                self.future.set_exception(end)
            else:
                self.future.set_result(end)

    def tell(self, done: int, of: int) -> None:
        """Tell the caller of a new step; what is raised there ends this work alone."""
        if self.on_step is not None and self.step < done and not self.future.done():
            self.step = done
            try:
                self.on_step(done, of)
            except Exception as error:  # noqa: BLE001 - any failure goes to the caller's future
                self.answer(error)


@dataclass(slots=True, eq=False)
class Worker:
    """The pool's end of a worker, and what it was given."""

    pipe: Connection
    kill: Callable[[], object]
    name: str = ""
    rows: int = 0
    """How many samples its network calls take best; 0 until it is ready."""
    work: dict[int, _Queued] = field(default_factory=dict)
    cancelled: list[int] = field(default_factory=list)
    """Trajectories that it is still to be told to end."""
    heard: float = field(default_factory=time.monotonic)
    gone: bool = False
    why: str = ""
    """Of its end."""
    blamed: bool = False
    """Whether its work may have ended it."""
    giver: threading.Thread | None = None

    @property
    def load(self) -> int:
        """Rows that it has."""
        return sum(queued.cost_rows for queued in self.work.values())

    @property
    def suspects(self) -> bool:
        """Whether it has a trajectory that ended others, which it is to have by itself."""
        return any(queued.deaths >= SUSPECT_AFTER for queued in self.work.values())


def start_process(target: Callable[..., None], *args: Any) -> tuple[Connection, Callable[[], object]]:
    """A spawned process that is called with its end of a pipe; our end, and what kills it."""
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *args), daemon=True)
    process.start()
    theirs.close()

    def kill() -> None:
        process.kill()
        process.join()

    return ours, kill


class Pool:
    """An `Executor` whose workers are elsewhere.

    Args:
        launch: Starts the worker of a number.
        count: Workers to have.
        what: A worker's name in messages.
        remedy: Where an operator looks when none is ready.
        least: Workers to wait for; None for all.
        ready_s: Longest wait for them.
        blames: Whether the work of a worker that ends without a word may have ended it.
        end: Called when the pool has closed.
    """

    beside = True

    def __init__(
        self,
        launch: Callable[[int], Worker],
        count: int,
        *,
        what: str,
        remedy: str,
        least: int | None = None,
        ready_s: float | None = None,
        blames: bool = True,
        end: Callable[[], object] = lambda: None,
    ) -> None:
        self._launch, self._what, self._blames, self._end = launch, what, blames, end
        self._changed = threading.Condition()
        self._scheduler = Scheduler(1, lambda rows: rows + OVERHEAD_ROWS)
        self._work: dict[int, _Queued] = {}
        self._workers: dict[int, Worker] = {}
        """By their places, from 0."""
        self._places: set[int] = set()
        self._threads: list[threading.Thread] = []
        self._numbers = itertools.count(1)
        self._wanted = self._calls = self._evaluated = self._redone = self._replaced = 0
        self._closed = self._proven = False
        self._refusal: Exception | None = None
        self.rows = 1
        self.problem: str | None = None
        self._start_thread(self._watch)
        try:
            self.resize(count)
            self._wait_until_ready(count if least is None else least, ready_s, remedy)
        except BaseException:
            self.close()
            raise

    @property
    def width(self) -> int:
        return max(1, self._wanted)

    @property
    def counters(self) -> Mapping[str, int]:
        with self._changed:
            return {
                "calls": self._calls,
                "rows": self._evaluated,
                "ready": len(self.workers()),
                "wanted": self._wanted,
                "replaced": self._replaced,
                "redone": self._redone,
            }

    def workers(self) -> list[str]:
        return [worker.name for _, worker in sorted(self._workers.items()) if worker.rows]

    def describe(self) -> str:
        return f"{len(self.workers())} of {self._wanted} {self._what}{'' if self._wanted == 1 else 's'}"

    def submit(
        self, trajectory: Trajectory, *, control: Control | None = None, on_step: OnStep | None = None
    ) -> Future[End]:
        queued = _Queued(trajectory, control or Control(), on_step, next(self._numbers))
        refusal = queued.control.error
        if trajectory.draw is not None:  # it is a function of this process
            refusal = SettingsInvalid(
                f"decoding that draws noise at each step is not done by a {self._what}",
                hint='executor = "inline" in [engine] of node.toml, or eta 0',
            )
        with self._changed:
            if self._closed:
                raise Draining("the engine is closed")
            if refusal is not None:
                queued.answer(refusal)
                return queued.future
            self._work[queued.number] = queued
            self._scheduler.add(queued)
            self._changed.notify_all()
        return queued.future

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def resize(self, count: int) -> None:
        """Have so many workers from now on; those that are too many finish what they have."""
        if not 1 <= count <= MOST_WORKERS:
            raise SettingsInvalid(
                f"{count} workers; a pool has 1 to {MOST_WORKERS}",
                hint="[engine] workers in node.toml",
                facts={"workers": count},
            )
        with self._changed:
            if self._closed:
                raise Draining("the engine is closed")
            self._wanted = count
            for place in set(range(count)) - self._places:
                self._places.add(place)
                self._start_thread(self._fill, place)
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            waiting, workers = list(self._work.values()), list(self._workers.values())
            self._changed.notify_all()
        for queued in waiting:
            queued.answer(Draining("the engine was closed"))
        for worker in workers:
            worker.kill()
        for thread in self._threads:
            thread.join()
        self._end()

    def _wait_until_ready(self, count: int, ready_s: float | None, remedy: str) -> None:
        with self._changed:
            there = self._changed.wait_for(lambda: self._refusal or len(self.workers()) >= count, ready_s)
            if self._refusal is not None:
                raise self._refusal
            if not there:
                raise NotReady(
                    f"of {count} {self._what}s {len(self.workers())} were ready within {ready_s:.0f} s",
                    hint=remedy,
                )

    def _start_thread(self, target: Callable[..., None], *args: Any) -> threading.Thread:
        thread = threading.Thread(target=target, args=args, name=f"{self._what} pool", daemon=True)
        self._threads = [*(each for each in self._threads if each.is_alive()), thread]
        thread.start()
        return thread

    def _watch(self) -> None:
        """Answer callers whose work was cancelled or is late, and end workers that hang."""
        while not self._closed:
            with self._changed:
                self._changed.wait(LOOK_S)
                over = [queued for queued in self._work.values() if queued.control.over]
                for queued in over:
                    del self._work[queued.number]
                    if queued.worker is None:
                        self._scheduler.remove(queued)
                    else:
                        queued.worker.cancelled.append(queued.number)
                        self._changed.notify_all()
                hang = [w for w in self._workers.values() if w.rows and time.monotonic() > w.heard + SILENT_S]
            for queued in over:  # without the lock: callers may submit more
                queued.answer(queued.control.error or Cancelled())
            for worker in hang:
                log.warning("%s %s gives no sign of life", self._what, worker.name)
                worker.kill()

    def _stays(self, place: int) -> bool:
        with self._changed:
            stays = not self._closed and place < self._wanted
            if not stays:
                self._places.discard(place)
            return stays

    def _fill(self, place: int) -> None:
        """What the thread of a place does: start a worker, hear it to its end, and start another."""
        pause_s = FIRST_PAUSE_S
        while self._stays(place):
            try:
                worker = self._launch(next(self._numbers))
                with self._changed:
                    self._workers[place] = worker
                    if self._closed:
                        worker.kill()
                try:
                    self._hear(place, worker)
                finally:
                    with self._changed:
                        del self._workers[place]
                    self._do_again(worker)
                    worker.kill()
                    if worker.giver is not None:
                        worker.giver.join()
                    worker.pipe.close()
                pause_s = FIRST_PAUSE_S
            except Exception as error:  # noqa: BLE001 - any failure of a start is reported and tried again
                self._report(error, pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _report(self, error: Exception, pause_s: float) -> None:
        with self._changed:
            if self._closed:
                return
            self.problem = f"a {self._what} cannot be started: {error}"
            if self._proven:
                log.error("%s; tried again in %.1f s", self.problem, pause_s)
            else:
                self._refusal = self._refusal or error
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed, pause_s)

    def _hear(self, place: int, worker: Worker) -> None:
        """Take in what a worker says, until it ends or is one too many."""
        with suppress(EOFError, OSError):
            while place < self._wanted or worker.work or not worker.rows:
                kind, *what = worker.pipe.recv()
                worker.heard = time.monotonic()
                if kind == "refused":
                    raise what[0]
                if kind == "ready":
                    self._greet(place, worker, *what)
                elif kind == "steps":
                    self._count(worker, *what)
                elif kind == "end":
                    self._finish(worker, *what)
                elif kind == "lost":
                    worker.blamed, worker.why = True, what[0]
            return
        if not worker.rows:
            raise InternalError(f"a {self._what} ended before it was ready")
        if self._closed:
            return
        with self._changed:
            self._replaced += 1
        if not worker.why:
            worker.blamed, worker.why = self._blames, "ended"
        log.warning("%s %s %s; its work is done again by another", self._what, worker.name, worker.why)

    def _greet(self, place: int, worker: Worker, name: str, rows: int) -> None:
        with self._changed:
            worker.name, worker.rows = name, rows
            self._proven, self.problem, self.rows = True, None, rows
            self._scheduler.resize(rows)
            worker.giver = self._start_thread(self._give, place, worker)
            self._changed.notify_all()
        log.info("%s %s is ready", self._what, name)

    def _count(self, worker: Worker, steps: Mapping[int, tuple[int, int]], calls: int, rows: int) -> None:
        with self._changed:
            self._calls += calls
            self._evaluated += rows
        for number, (done, of) in steps.items():
            if number in worker.work:
                worker.work[number].tell(done, of)

    def _finish(self, worker: Worker, number: int, content: bytes) -> None:
        end = unpack(content)
        with self._changed:
            queued = worker.work.pop(number)
            self._work.pop(number, None)
            self._changed.notify_all()
        if isinstance(end, End):
            queued.tell(end.evaluations, end.evaluations)
        queued.answer(end)

    def _do_again(self, worker: Worker) -> None:
        """Give what a worker had to others."""
        hopeless: list[_Queued] = []
        with self._changed:
            worker.gone = True
            for queued in reversed(worker.work.values()):
                if self._closed or queued.future.done() or queued.number not in self._work:
                    self._work.pop(queued.number, None)
                    continue
                queued.deaths += worker.blamed
                queued.worker = None
                if queued.deaths >= MOST_DEATHS and len(worker.work) == 1:
                    hopeless.append(self._work.pop(queued.number))
                else:
                    self._redone += 1
                    self._scheduler.add(queued, first=True)
            self._changed.notify_all()
        for queued in hopeless:
            queued.answer(
                InternalError(
                    f"{queued.deaths} times a {self._what} {worker.why} while it worked on one trajectory, which is "
                    "given up: perhaps for want of memory",
                    hint="a smaller engine.merge_pixels in node.toml needs less; the log says what each said",
                )
            )

    def _give(self, place: int, worker: Worker) -> None:
        """What the thread does that gives a worker its trajectories."""
        with suppress(OSError):  # it has ended, which `_hear` takes in
            while True:
                with self._changed:
                    while not (share := self._share(place, worker)) and not worker.cancelled:
                        if self._closed or worker.gone:
                            return
                        self._changed.wait()
                    cancelled, worker.cancelled = worker.cancelled, []
                for number in cancelled:
                    worker.pipe.send((number, None, None))
                for queued in share:
                    try:
                        work = pack(queued.trajectory.portable())
                        worker.pipe.send((queued.number, work, queued.control.remaining_s()))
                    except OSError:
                        raise
                    except Exception as error:  # noqa: BLE001 - e.g. no memory for it: the others are given
                        self._give_up(worker, queued, error)

    def _give_up(self, worker: Worker, queued: _Queued, error: Exception) -> None:
        """Answer work that cannot be sent to a worker, unless that has ended and `_do_again` has seen to it."""
        with self._changed:
            if worker.gone:
                return
            worker.work.pop(queued.number, None)
            self._work.pop(queued.number, None)
            self._changed.notify_all()
        queued.answer(error)

    def _share(self, place: int, worker: Worker) -> Sequence[_Queued]:
        """What a worker is to begin, by fair share: the one that has least takes first, and leaves some for others."""
        if not len(self._scheduler) or place >= self._wanted or worker.gone:
            return []
        has, load = bool(worker.work), worker.load
        others = [w.load for n, w in self._workers.items() if w.rows and n < self._wanted and not w.suspects]
        if has and (load >= 2 * worker.rows or worker.suspects or load > min(others, default=load)):
            return []
        rows = sum(member.cost_rows for member in self._scheduler)
        most = min(2 * worker.rows - load, worker.rows, -(-rows // self.width))
        chosen = self._scheduler.choose(max(1, most))
        share = [self._work[member.number] for member in chosen]
        if suspects := [queued for queued in share if queued.deaths >= SUSPECT_AFTER]:
            share = [] if has else suspects[:1]
        for queued in share:
            self._scheduler.charge([queued], queued.trajectory.settings.evaluations)
            self._scheduler.remove(queued)
            queued.worker, worker.work[queued.number] = worker, queued
        if share:
            self._changed.notify_all()  # another has least now
        return share


def process_pool(recipe: Recipe, *, workers: int = 0) -> Pool:
    """A pool of processes, all ready: one for each GPU or core of this machine, each with the model on its device."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    devices = [recipe.device]
    if recipe.device in {"auto", "cuda"} and gpus:
        devices = gpus
    elif recipe.device in {"auto", "cpu"}:
        devices = ["cpu"] * _cores()
    packed = pack(replace(recipe, threads=recipe.threads or 1))
    return Pool(
        lambda number: Worker(*start_process(_serve_process, packed, devices[number % len(devices)])),
        workers or len(devices),
        what="worker process",
        remedy="the node's log has what the process said; free -h and nvidia-smi show what memory is left",
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
