"""Who carries trajectories out: this thread (`CallingThread`), the `Batcher`, or a `Pool` of processes or Ray actors.

A pool hands its workers batches, by fair share. When a worker dies, its batch is done again by another, a bounded
number of times, and at last each trajectory by itself: one that kills its workers takes no others with it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import math
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from ddib_fed.diffusion.bridge import OnStep, integrate
from ddib_fed.engine.batcher import Scheduler
from ddib_fed.engine.budget import Recipe
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Control
from ddib_fed.engine.stack import Ending, Running, Trajectory
from ddib_fed.errors import Draining, InternalError, NotReady, SettingsInvalid
from ddib_fed.networks.placement import torch_threads

log = logging.getLogger(__name__)

LOOK_S: Final = 0.1
"""How often progress, cancelling and deadlines of the work of a pool are looked at."""
SILENT_S: Final = 60.0
"""A worker process that does not answer for so long hangs, and is ended: loading a library may hold it for seconds."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Between tries to start a worker."""
SUSPECT_AFTER: Final = 2
"""Deaths of workers after which a trajectory is a batch of its own."""
MOST_DEATHS: Final = 3
OVERHEAD_ROWS: Final = 8.0
"""What a batch costs beside its rows, for fair shares."""
MOST_FLOWS: Final = 64
MOST_WORKERS: Final = 256
ORPHANED: Final = 70
"""Exit code of a process whose parent is gone."""


class Executor(Protocol):
    """Carries trajectories out, whole or as ranges of their rows."""

    @property
    def rows(self) -> int:
        """How many samples one network call takes best; a larger trajectory is given in ranges of so many."""

    @property
    def width(self) -> int:
        """How many network calls it makes at once."""

    @property
    def beside(self) -> bool:
        """Whether it works beside its caller; otherwise `submit` returns when all is done."""

    @property
    def counters(self) -> Mapping[str, int]:
        """Network "calls" made, and "rows" evaluated in them, since it began."""

    def submit(
        self, trajectory: Trajectory, *, control: Control | None = None, on_step: OnStep | None = None
    ) -> Ending:
        """Take a trajectory; the future gives where it ends, (N, *sample_shape), or the error that ended it."""

    def close(self) -> None:
        """Take no more work; what is unfinished fails with `Draining`."""


class CallingThread:
    width = 1
    beside = False

    def __init__(self, model: DomainModel, rows: int, threads: int | None = None) -> None:
        self._model = model
        self.rows = rows
        self.threads = threads
        self._calls = self._evaluated = 0

    @property
    def counters(self) -> Mapping[str, int]:
        return {"calls": self._calls, "rows": self._evaluated}

    def submit(
        self, trajectory: Trajectory, *, control: Control | None = None, on_step: OnStep | None = None
    ) -> Ending:
        future, count = Ending(), 0
        control = control or Control()

        def tell(done: int, of: int) -> None:
            nonlocal count
            count += 1
            self._calls += 1
            self._evaluated += trajectory.rows
            if on_step is not None:
                on_step(done, of)
            if done < of:
                control.check()

        try:
            control.check()
            with torch_threads(self.threads or torch.get_num_threads()):
                work = trajectory.on(self._model)
                x = integrate(work.solver, work.denoiser, on_step=tell, evaluations=work.evaluations)
            future.end(x, count)
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to who asks the future
            future.set_exception(error)
        return future

    def close(self) -> None: ...


# The worker's side


Steps = dict[int, tuple[int, int]]
"""Evaluations done, and of how many, by the place in a batch."""


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What became of a batch: for each trajectory where it ended and after how many evaluations, or its error."""

    ends: Sequence[tuple[Tensor, int] | Exception]
    steps: Steps
    calls: int
    rows: int


class Bench:
    """A warm model in a worker, which carries out one batch after another."""

    def __init__(self, recipe: Recipe) -> None:
        self._batcher = recipe.warm().batcher
        self._controls: list[Control] = []
        self._steps: Steps = {}
        self.rows = self._batcher.rows

    def run(self, batch: bytes) -> bytes:
        steps: Steps = {}
        before = self._batcher.counters
        work: list[Trajectory] = unpack(batch)
        controls = [Control() for _ in work]
        futures = [
            self._batcher.submit(each, control=control, on_step=partial(_note, steps, place))
            for place, (each, control) in enumerate(zip(work, controls, strict=True))
        ]
        self._steps, self._controls = steps, controls
        wait(futures)
        ends = [_end(future) for future in futures]
        now = self._batcher.counters
        return pack(Answer(ends, steps, now["calls"] - before["calls"], now["rows"] - before["rows"]))

    def look(self, over: Sequence[int]) -> Steps:
        """Cancel these places of the batch; how far all are."""
        controls = self._controls
        for place in over:
            if place < len(controls):
                controls[place].cancel()
        return dict(self._steps)


def _note(steps: Steps, place: int, done: int, of: int) -> None:
    steps[place] = done, of


def _end(future: Ending) -> tuple[Tensor, int] | Exception:
    error = future.exception()
    if error is None:
        return future.result().cpu(), future.evaluations
    return portable(error)


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


def end_with_parent() -> None:
    """Initialise a process so that it ends with its parent, however that ends, and not by a signal to all of a node."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(ORPHANED)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


# Worker processes


_bench: Bench | None = None
"""In a worker process."""


def _begin(pipe: Connection) -> None:
    end_with_parent()
    pipe.send(os.getpid())
    threading.Thread(target=_answer_looks, args=(pipe,), name="looks", daemon=True).start()


def _answer_looks(pipe: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):  # the parent closed it
        while True:
            over = pipe.recv()
            pipe.send({} if _bench is None else _bench.look(over))


def _warm(recipe: bytes, device: str) -> int:
    global _bench  # noqa: PLW0603 - the process has one
    try:
        _bench = Bench(replace(unpack(recipe), device=device))
    except Exception as error:  # noqa: BLE001 - whatever it is, the pool raises it
        raise portable(error) from None
    return _bench.rows


def _run(batch: bytes) -> bytes:
    assert _bench is not None
    return _bench.run(batch)


class WorkerLost(Exception):  # noqa: N818 - what happened to it
    """A worker died, or hangs; `blame` says whether its work may have been the reason."""

    def __init__(self, why: str, *, blame: bool = True) -> None:
        super().__init__(why)
        self.blame = blame


class Worker(Protocol):
    """A worker elsewhere. One thread uses it, and any may kill it; whoever uses one that is gone gets `WorkerLost`."""

    name: str
    rows: int
    """How many samples its network calls take best; known when it is ready."""

    def ready(self) -> None:
        """Return when its model is warm."""

    def begin(self, batch: bytes) -> None: ...

    def look(self, over: Sequence[int]) -> Steps | Answer:
        """Wait up to `LOOK_S` for the answer; else cancel these places, and tell how far the others are."""

    def kill(self) -> None: ...

    def close(self) -> None: ...


class ProcessWorker:
    """A worker process: a `ProcessPoolExecutor` of one, so that its death breaks no other."""

    def __init__(self, recipe: bytes, device: str, number: int) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._executor = ProcessPoolExecutor(1, context, initializer=_begin, initargs=(theirs,))
        self.rows = 1
        try:
            self._future: Future[Any] = self._executor.submit(_warm, recipe, device)
            theirs.close()
            self._pid: int = self._pipe.recv()
        except BaseException as error:
            self._pid = 0
            theirs.close()
            self.close()
            if isinstance(error, EOFError | OSError):
                raise InternalError("a worker process ended before it was ready") from error
            raise
        self.name = f"{number} on {device}, process {self._pid}"

    def ready(self) -> None:
        try:
            self.rows = self._future.result()
        except BrokenProcessPool as error:
            raise InternalError(f"worker {self.name} ended before it was ready") from error

    def begin(self, batch: bytes) -> None:
        with _lost(BrokenProcessPool, blame=False):  # it ended while it had nothing
            self._future = self._executor.submit(_run, batch)

    def look(self, over: Sequence[int]) -> Steps | Answer:
        if wait([self._future], LOOK_S).done:
            with _lost(BrokenProcessPool):
                answer: Answer = unpack(self._future.result())
                return answer
        with _lost(EOFError, OSError):
            self._pipe.send(over)
            if not self._pipe.poll(SILENT_S):
                raise WorkerLost("gives no sign of life")
            steps: Steps = self._pipe.recv()
            return steps

    def kill(self) -> None:
        for process in multiprocessing.active_children():
            if process.pid == self._pid:
                process.kill()

    def close(self) -> None:
        self.kill()
        self._executor.shutdown()
        self._pipe.close()


@contextlib.contextmanager
def _lost(*errors: type[BaseException], blame: bool = True) -> Iterator[None]:
    try:
        yield
    except errors as error:
        raise WorkerLost("ended", blame=blame) from error


# The pool


@dataclass(slots=True, eq=False)
class _Entry(Running):
    """A trajectory that was taken, and its caller's future: the first answer counts."""

    deaths: int = 0
    """Of workers that had it."""
    waiting: bool = True

    def answer(self, end: tuple[Tensor, int] | Exception) -> None:
        with contextlib.suppress(InvalidStateError):
            if isinstance(end, Exception):
                self.future.set_exception(end)
            else:
                self.future.end(*end)


@dataclass(slots=True, eq=False)
class _Slot:
    """A place of the pool, with a thread that keeps a worker in it."""

    worker: Worker | None = None
    ready: bool = False


class Pool:
    """An `Executor` whose workers are elsewhere. It waits for `least` of them, or all, up to `ready_s`."""

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
        end: Callable[[], object] = lambda: None,
    ) -> None:
        self._launch, self._what, self._remedy, self._end = launch, what, remedy, end
        self._changed = threading.Condition()
        self._scheduler = Scheduler(1, lambda rows: rows + OVERHEAD_ROWS, most=MOST_FLOWS)
        self._entries: dict[int, _Entry] = {}
        self._slots: list[_Slot] = []
        self._numbers = itertools.count(1)
        self._wanted = self._calls = self._evaluated = self._redone = self._replaced = 0
        self._closed = self._proven = False
        self._refusal: Exception | None = None
        self.rows = 1
        self.problem: str | None = None
        self._threads: list[threading.Thread] = []
        self._start_thread(self._watch)
        try:
            self.resize(count)
            self._wait_until_ready(count if least is None else least, ready_s)
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

    def submit(
        self, trajectory: Trajectory, *, control: Control | None = None, on_step: OnStep | None = None
    ) -> Ending:
        entry = _Entry(trajectory, control or Control(), on_step, next(self._numbers))
        # Batches are of one kind, whose members end together.
        entry.kind = entry.kind, trajectory.stage, trajectory.settings
        refusal = entry.control.error
        if trajectory.draw is not None:  # it is a function of this process
            refusal = SettingsInvalid(
                f"decoding that draws noise at each step is not done by a {self._what}",
                hint='executor = "inline" in [engine] of node.toml, or eta 0',
            )
        with self._changed:
            if self._closed:
                raise Draining("the engine is closed")
            if refusal is not None:
                entry.answer(refusal)
                return entry.future
            self._entries[entry.number] = entry
            self._scheduler.add(entry)
            self._changed.notify_all()
        return entry.future

    def close(self) -> None:
        with self._changed:
            self._closed = True
            entries = list(self._entries.values())
            workers = [slot.worker for slot in self._slots if slot.worker is not None]
            self._changed.notify_all()
        for entry in entries:
            entry.answer(Draining("the engine was closed"))
        for worker in workers:
            worker.kill()
        for thread in self._threads:
            thread.join()
        self._end()

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
            while len(self._slots) < count:
                self._slots.append(_Slot())
                self._start_thread(self._fill, self._slots[-1])
            self._changed.notify_all()

    def describe(self) -> str:
        return f"{len(self.workers())} of {self._wanted} {self._what}{'' if self._wanted == 1 else 's'}"

    def workers(self) -> list[str]:
        return [slot.worker.name for slot in list(self._slots) if slot.ready and slot.worker is not None]

    def _start_thread(self, target: Callable[..., None], *args: Any) -> None:
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(
            threading.Thread(target=target, args=args, name=f"{self._what} pool", daemon=True)
        )
        self._threads[-1].start()

    def _wait_until_ready(self, count: int, ready_s: float | None) -> None:
        with self._changed:
            there = self._changed.wait_for(
                lambda: self._refusal is not None or len(self.workers()) >= count, ready_s
            )
            if self._refusal is not None:
                raise self._refusal
            if not there:
                raise NotReady(
                    f"of {count} {self._what}s {len(self.workers())} were ready within {ready_s:.0f} s",
                    hint=self._remedy,
                )

    def _watch(self) -> None:
        """Answer callers whose work was cancelled or is late: none waits for its worker."""
        with self._changed:
            while not self._closed:
                for entry in list(self._entries.values()):
                    if (error := entry.control.error) is None:
                        continue
                    if entry.waiting:
                        self._scheduler.remove(entry)
                        del self._entries[entry.number]
                    entry.answer(error)
                self._changed.wait(LOOK_S)

    # What the thread of a slot does

    def _fill(self, slot: _Slot) -> None:
        pause_s = FIRST_PAUSE_S
        while self._stays(slot):
            try:
                self._start(slot)
                pause_s = FIRST_PAUSE_S
                while self._stays(slot):
                    self._carry_out(slot, self._next_batch())
            except WorkerLost:
                pass
            except Exception as error:  # noqa: BLE001 - any failure of a start is reported and tried again
                self._refused(error, pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            finally:
                slot.ready = False
                if slot.worker is not None:
                    slot.worker.close()

    def _stays(self, slot: _Slot) -> bool:
        with self._changed:
            if len(self._slots) > self._wanted and slot in self._slots:
                self._slots.remove(slot)
            return not self._closed and slot in self._slots

    def _start(self, slot: _Slot) -> None:
        slot.worker = None
        worker = self._launch(next(self._numbers))
        with self._changed:
            slot.worker = worker
            if self._closed:
                return
        worker.ready()
        with self._changed:
            slot.ready = self._proven = True
            self.rows = worker.rows
            self._scheduler.resize(worker.rows)
            self.problem = None
            self._changed.notify_all()
        log.info("%s %s is ready", self._what, worker.name)

    def _refused(self, error: Exception, pause_s: float) -> None:
        with self._changed:
            if self._closed:
                return
            self._refusal = None if self._proven else self._refusal or error
            self.problem = f"a {self._what} cannot be started: {error}"
            if self._proven:
                log.error("%s; tried again in %.1f s", self.problem, pause_s)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._closed, pause_s)

    def _next_batch(self) -> Sequence[_Entry]:
        """By fair share, so many rows that every worker gets some of what waits; empty where nothing does."""
        with self._changed:
            if not len(self._scheduler):
                self._changed.wait(LOOK_S)
            if self._closed or not len(self._scheduler):
                return []
            rows = sum(entry.cost_rows for entry in self._scheduler)
            chosen = self._scheduler.choose(min(self.rows, math.ceil(rows / self.width)))
            self._scheduler.charge(chosen, chosen[0].trajectory.settings.evaluations)
            batch = [self._entries[running.number] for running in chosen]
            for entry in batch:
                self._scheduler.remove(entry)
                entry.waiting = False
            return batch

    def _carry_out(self, slot: _Slot, batch: Sequence[_Entry]) -> None:
        worker = slot.worker
        if not batch or worker is None:
            return
        try:
            worker.begin(pack([replace(entry.trajectory, x=entry.trajectory.x.clone()) for entry in batch]))
            found: Steps | Answer = {}
            while not isinstance(found, Answer):
                if self._closed:
                    return
                found = worker.look([place for place, entry in enumerate(batch) if entry.future.done()])
                self._tell(batch, found.steps if isinstance(found, Answer) else found)
        except WorkerLost as lost:
            self._do_again(worker, batch, lost)
            raise
        except Exception as error:  # noqa: BLE001 - out of memory, say: the waiting calls must hear
            found = Answer([error] * len(batch), {}, 0, 0)
        with self._changed:
            self._calls += found.calls
            self._evaluated += found.rows
            for entry in batch:
                self._entries.pop(entry.number, None)
        for entry, end in zip(batch, found.ends, strict=True):
            entry.answer(end)

    def _tell(self, batch: Sequence[_Entry], steps: Steps) -> None:
        """Tell of new steps; what is raised there ends that work alone."""
        for place, (done, of) in steps.items():
            entry = batch[place]
            if entry.on_step is None or entry.step == done or entry.control.over or entry.future.done():
                continue
            entry.step = done
            try:
                entry.on_step(done, of)
            except Exception as error:  # noqa: BLE001 - any failure goes to the caller's future
                entry.answer(error)

    def _do_again(self, worker: Worker, batch: Sequence[_Entry], lost: WorkerLost) -> None:
        with self._changed:
            if self._closed:
                return
            self._replaced += 1
            again = [entry for entry in batch if not entry.future.done()]
            for entry in again:
                entry.deaths += lost.blame
            hopeless = [entry for entry in again if entry.deaths >= MOST_DEATHS and len(batch) == 1]
            again = [entry for entry in again if entry not in hopeless]
            for entry in batch:
                if entry not in again:
                    del self._entries[entry.number]
            for entry in reversed(again):
                if entry.deaths >= SUSPECT_AFTER:
                    entry.kind = entry.number  # merged with nothing
                self._scheduler.add(entry, first=True)
                entry.waiting = True
            self._redone += len(again)
            self._changed.notify_all()
        log.warning(
            "%s %s %s; it is replaced, and %d trajectories are done again",
            self._what, worker.name, lost, len(again),
        )  # fmt: skip
        for entry in hopeless:
            entry.answer(
                InternalError(
                    f"{entry.deaths} times a {self._what} {lost} while it worked on one trajectory, which is given "
                    "up: perhaps for want of memory",
                    hint="a smaller engine.merge_pixels in node.toml needs less; the log says what each said",
                )
            )


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
        lambda number: ProcessWorker(packed, devices[number % len(devices)], number),
        workers or len(devices),
        what="worker process",
        remedy="the node's log has what the process said; free -h and nvidia-smi show what memory is left",
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
