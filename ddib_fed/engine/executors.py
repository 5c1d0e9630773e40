"""Workers elsewhere: a `Pool` gives trajectories to processes, or to Ray actors, each with a warm model and a batcher.

The pool and a worker talk over a pipe. A worker takes trajectories while it has less than two calls' rows, the next by
fair share. When it dies, its trajectories are done again by others, a bounded number of times, and at last each by
itself: one that kills its workers takes no others with it.

Ray ends a process that does not reach the cluster's head, and its gRPC reads the environment that a node sets for its
own. So a process beside the node joins the cluster for each actor, and passes on what the pool and the actor say.
"""

from __future__ import annotations

import importlib.util
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
from collections.abc import Callable, Mapping
from concurrent.futures import Future, InvalidStateError
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Final

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
    missing,
)
from ddib_fed.names import __version__

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

# The worker's side

Say = Callable[..., None]
"""Sends a message to the pool: its kind, and what belongs to it. From any thread."""


def serve(pipe: Connection, make: Callable[..., Any]) -> None:
    """Answer the pool until its end of the pipe closes, or its process ends.

    The first message has the arguments of `make`, each other those of the `take` of what `make` makes: a number, a
    packed trajectory to begin or None to end that of the number, and the seconds that it may take. The worker says
    ("ready", name, rows), ("refused", error), ("steps", *news), ("end", number, packed end or error), ("lost", why).
    Its `tell` says within about `LOOK_S` what is new.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # sent to all processes of a node, which is to drain first
        signal.signal(number, signal.SIG_IGN)
    parent, lock = multiprocessing.parent_process(), threading.Lock()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(0)

    def say(*message: Any) -> None:
        with lock, suppress(OSError):  # the pool closed it
            pipe.send(message)

    def tell() -> None:
        while True:
            served.tell()

    threading.Thread(target=end_with_parent, name="parent-watch", daemon=True).start()
    try:
        served = make(say, *pipe.recv())
    except Exception as error:  # noqa: BLE001 - whatever it is, the pool raises it
        say("refused", portable(error))
        return
    say("ready", served.name, served.rows)
    # Takes and tells on two threads: the pool never waits for a worker that waits for the pool.
    threading.Thread(target=tell, name="tell", daemon=True).start()
    with suppress(EOFError, OSError):
        while True:
            served.take(*pipe.recv())
    os._exit(0)


class WarmModel:
    """A model with its batcher in a worker, which may be a Ray actor; `version` is that of the node's ddib-fed."""

    def __init__(self, recipe: bytes, device: str, version: str = __version__) -> None:
        if version != __version__:
            raise ConfigError(
                f"the cluster has ddib-fed {__version__}, and the node {version}",
                hint=f"install ddib-fed {version} with its extras node and ray in the image of the cluster",
            )
        self._batcher = replace(unpack(recipe), device=device).warm()
        self.name = f"on {device} of {socket.gethostname()}, process {os.getpid()}"
        self._controls: dict[int, Control] = {}
        self._steps: dict[int, tuple[int, int]] = {}
        self._counted = (0, 0)
        self.rows = self._batcher.rows

    def begin(self, number: int, work: bytes, remaining_s: float | None) -> Future[End]:
        control = Control(None if remaining_s is None else time.monotonic() + remaining_s)
        self._controls[number] = control
        future: Future[End] = self._batcher.submit(
            unpack(work), control=control, on_step=partial(self._note, number)
        )
        future.add_done_callback(lambda _: self._controls.pop(number, None))
        return future

    def run(self, number: int, work: bytes, remaining_s: float | None) -> bytes:
        future = self.begin(number, work, remaining_s)
        future.exception()  # waits
        return packed_end(future)

    def cancel(self, number: int) -> None:
        if (control := self._controls.get(number)) is not None:
            control.cancel()

    def _note(self, number: int, done: int, of: int) -> None:
        self._steps[number] = done, of

    def describe(self) -> tuple[str, int]:
        return self.name, self.rows

    def news(self) -> tuple[dict[int, tuple[int, int]], int, int]:
        """Since the last time: the steps of trajectories, network calls, and rows in them."""
        steps, self._steps = self._steps, {}
        before, counters = self._counted, self._batcher.counters
        self._counted = counters["calls"], counters["rows"]
        return steps, self._counted[0] - before[0], self._counted[1] - before[1]


class _Process(WarmModel):
    def __init__(self, say: Say, recipe: bytes, device: str) -> None:
        super().__init__(recipe, device)
        self._say = say

    def take(self, number: int, work: bytes | None, remaining_s: float | None) -> None:
        if work is None:
            self.cancel(number)
        else:
            future = self.begin(number, work, remaining_s)
            future.add_done_callback(lambda done: self._say("end", number, packed_end(done)))

    def tell(self) -> None:
        time.sleep(LOOK_S)
        self._say("steps", *self.news())


def packed_end(future: Future[End]) -> bytes:
    if (error := future.exception()) is not None:
        return pack(portable(error))
    end = future.result()
    return pack(end._replace(x=end.x.cpu(), beside=None if end.beside is None else end.beside.cpu()))


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
class Worker:
    """The pool's end of a worker, and what it was given."""

    pipe: Connection
    kill: Callable[[], object]
    name: str = ""
    rows: int = 0
    """How many samples its network calls take best; 0 until it is ready."""
    work: dict[int, Member] = field(default_factory=dict)
    outbox: queue.SimpleQueue[Member | int | None] = field(default_factory=queue.SimpleQueue)
    """Trajectories to begin, numbers of those to end, and None after the last."""
    heard: float = field(default_factory=time.monotonic)
    why: str = "ended"
    refusal: Exception | None = None
    threads: list[threading.Thread] = field(default_factory=list)

    @property
    def load(self) -> int:
        return sum(member.cost_rows for member in self.work.values())

    @property
    def has_room(self) -> bool:
        """Whether it takes more work: beside a trajectory that ended other workers it takes none."""
        suspects = any(member.deaths >= SUSPECT_AFTER for member in self.work.values())
        return not self.work or (self.load < 2 * self.rows and not suspects)


def start_process(make: Callable[..., Any], *args: Any) -> tuple[Connection, Callable[[], object]]:
    """A spawned process that serves what `make` makes; our end of its pipe, and what kills it."""
    context = torch.multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, make), daemon=True)
    process.start()
    theirs.close()

    def send() -> None:
        with suppress(OSError):  # it has ended
            ours.send(args)

    # Read once torch is imported: with a large recipe among what `start` hands over, it would wait for that.
    sender = threading.Thread(target=send, name="recipe", daemon=True)
    sender.start()

    def kill() -> None:
        process.kill()
        process.join()
        sender.join()

    return ours, kill


class Pool:
    """Workers elsewhere in the place of a `Batcher`.

    One thread has the workers and their work; callers and the threads of the workers' pipes hand it events.

    `launch` starts the worker of a number, `what` names one in messages, `remedy` says where an operator looks when
    none is ready. The pool waits for `least` workers, or all, for at most `ready_s`; it calls `end` when it has closed.
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
            self._part(worker)
        self._end()

    # What follows runs on the pool's thread, but for `_hear` and `_send`.

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
                worker.outbox.put(member.number)
                self._answer(member, member.control.error or Cancelled())
            if now > worker.heard + SILENT_S:
                log.warning("%s %s gives no sign of life", self._what, worker.name)
                worker.kill()
        while len(self._workers) < self.width and now >= self._start_at:
            self._start()

    def _answer(self, member: Member, end: End | Exception) -> None:
        self._unanswered.discard(member)
        member.answer(end)

    def _start(self) -> None:
        try:
            worker = self._launch(next(self._numbers))
        except Exception as error:  # noqa: BLE001 - any failure of a start is reported and tried again
            self._report(error)
            return
        self._workers.append(worker)
        for target in (self._hear, self._send):
            thread = threading.Thread(target=target, args=(worker,), name=f"{self._what} pipe", daemon=True)
            worker.threads.append(thread)
            thread.start()

    def _report(self, error: Exception) -> None:
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S) or FIRST_PAUSE_S
        self._start_at = time.monotonic() + self._pause_s
        self.problem = f"a {self._what} cannot be started: {error}"
        if self._started.done():
            log.error("%s; tried again in %.1f s", self.problem, self._pause_s)
        else:
            self._started.set_exception(error)

    def _hear(self, worker: Worker) -> None:
        """Hand over what a worker says, until it ends."""
        try:
            while True:
                kind, *what = worker.pipe.recv()
                if kind == "end":
                    what = [what[0], unpack(what[1])]
                self._events.put(partial(self._take, worker, kind, *what))
        except (EOFError, OSError):
            pass
        except Exception as error:  # noqa: BLE001 - what cannot be read, e.g. for want of memory
            worker.refusal = error
        self._events.put(partial(self._lose, worker))

    def _send(self, worker: Worker) -> None:
        """Send a worker what it is to begin and to end."""
        while (item := worker.outbox.get()) is not None:
            try:
                if isinstance(item, int):
                    worker.pipe.send((item, None, None))
                else:
                    work = pack(item.trajectory.portable())
                    worker.pipe.send((item.number, work, item.control.remaining_s()))
            except OSError:  # it has ended, which `_hear` notices
                return
            except Exception as error:  # noqa: BLE001 - e.g. no memory for it: the others are sent
                assert isinstance(item, Member)
                self._events.put(partial(self._finish, worker, item.number, error))

    def _take(self, worker: Worker, kind: str, *what: Any) -> None:
        worker.heard = time.monotonic()
        if kind == "ready":
            worker.name, worker.rows = what
            self._pause_s = 0.0
            self.problem, self.rows = None, worker.rows
            self._scheduler.resize(worker.rows)
            log.info("%s %s is ready", self._what, worker.name)
            if len(self._ready()) >= self._least and not self._started.done():
                self._started.set_result(None)
        elif kind == "refused":
            worker.refusal = what[0]
            worker.kill()
        elif kind == "steps":
            steps, calls, rows = what
            self._calls += calls
            self._evaluated += rows
            for number, (done, of) in steps.items():
                if number in worker.work:
                    worker.work[number].tell(done, of)
        elif kind == "end":
            self._finish(worker, *what)
        elif kind == "lost":
            worker.why = what[0]

    def _finish(self, worker: Worker, number: int, end: End | Exception) -> None:
        member = worker.work.pop(number, None)
        if member is None:  # it was cancelled, or the worker has ended
            return
        if isinstance(end, End):
            member.tell(end.evaluations, end.evaluations)
        self._answer(member, end)

    def _lose(self, worker: Worker) -> None:
        """Give what a worker had to others, and its place to another."""
        self._workers.remove(worker)
        self._part(worker)
        if not worker.rows:
            self._report(worker.refusal or InternalError(f"a {self._what} ended before it was ready"))
            return
        self._replaced += 1
        log.warning("%s %s %s; its work is done again by another", self._what, worker.name, worker.why)
        members = list(worker.work.values())
        worker.work.clear()
        for member in reversed(members):
            member.deaths += 1
            if member.deaths < MOST_DEATHS or len(members) > 1:
                self._redone += 1
                self._scheduler.add(member, first=True)
                continue
            error = InternalError(
                f"{member.deaths} times a {self._what} {worker.why} while it worked on one trajectory, which is given "
                "up: perhaps for want of memory",
                hint="a smaller engine.merge_pixels in node.toml needs less; the log says what each said",
            )
            self._answer(member, error)

    def _part(self, worker: Worker) -> None:
        worker.kill()
        worker.outbox.put(None)
        for thread in worker.threads:
            thread.join()
        worker.pipe.close()

    def _give(self, worker: Worker) -> bool:
        """Give a worker its fair share of what waits; whether it took some."""
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
            worker.work[member.number] = member
            worker.outbox.put(member)
        return True


def process_pool(recipe: Recipe, *, workers: int = 0) -> Pool:
    """A pool of processes, all ready: one for each GPU or core of this machine, each with the model on its device."""
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    devices = [recipe.device]
    if recipe.device in {"auto", "cuda"} and gpus:
        devices = gpus
    elif recipe.device in {"auto", "cpu"}:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        devices = ["cpu"] * (cores or 1)
    packed = pack(replace(recipe, threads=recipe.threads or 1))
    return Pool(
        lambda number: Worker(*start_process(_Process, packed, devices[number % len(devices)])),
        workers or len(devices),
        what="worker",
        remedy="the node's log has what the process said; free -h and nvidia-smi show what memory is left",
    )


# Ray actors, on a cluster of the institution's own

LOCAL: Final = "local"
"""Instead of a cluster's address: one of this machine alone."""
DIAL_S: Final = 3.0
READY_S: Final = 300.0
"""For the first actor: a cluster may have to start a machine for it."""
LOST_AFTER_S: Final = 10
LOCAL_STORE_BYTES: Final = 512 << 20
TOGETHER: Final = 256
"""Trajectories that an actor may have at once."""
ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is reported
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(LOST_AFTER_S),  # how long the head may not answer
}
NOT_FOR_RAY: Final = "GRPC_SSL_CIPHER_SUITES"
"""Set by `security.tls` for the gRPC of a node, which is another than Ray's."""


def ray_pool(recipe: Recipe, *, address: str, workers: int = 0, local_cpus: int = 1) -> Pool:
    """A pool of actors, at least one of them ready; 0 for one on each GPU, or each core, of the cluster."""
    if importlib.util.find_spec("ray") is None:
        otherwise = 'executor = "processes" in [engine] of node.toml'
        raise missing("ray", "ray", "the executor ray needs Ray", otherwise=otherwise)
    packed = pack(replace(recipe, threads=recipe.threads or 1))
    cluster, kill = start_process(_Cluster, address, max(workers, local_cpus))

    def leave() -> None:
        kill()
        cluster.close()  # not before: a process ends with its pipe, and a cluster of this machine with the process

    try:
        joined, places = _joined(cluster)
        return Pool(
            lambda _: Worker(*start_process(_Relay, packed, recipe.device, joined, address == LOCAL)),
            workers or max(1, places),
            what="Ray actor",
            remedy="the local Ray cluster" if address == LOCAL else f"ray status --address {address}",
            least=1,
            ready_s=READY_S,
            end=leave,
        )
    except BaseException:
        leave()
        raise


def _joined(cluster: Connection) -> tuple[str, int]:
    try:
        kind, *what = cluster.recv()
    except EOFError as error:
        raise InternalError("the process that joins the Ray cluster ended") from error
    if kind == "refused":
        raise what[0]
    return what[0], what[1]


def _ray(address: str, cpus: int = 0, *, own: bool = False) -> Any:
    """Ray, joined to a cluster, or with one of this machine started."""
    os.environ.update(ENVIRONMENT)
    os.environ.pop(NOT_FOR_RAY, None)
    if own:  # as Ray sets it for the process that starts a cluster, and no other
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    import ray

    options: dict[str, Any] = {"namespace": "ddib-fed"}
    try:
        if address == LOCAL:
            options = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": LOCAL_STORE_BYTES}
        else:
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), DIAL_S).close()
        ray.init(address=address, log_to_driver=False, logging_level="error", **options)
    except (OSError, ValueError, RuntimeError) as error:
        raise NotReady(
            f"the Ray cluster at {address} cannot be joined: {_first_line(error)}",
            hint=f"on this machine: ray status --address {address}; it must be part of the cluster: "
            f"ray start --address {address} --num-cpus 0",
            retry_after_s=LOST_AFTER_S,
        ) from None
    return ray


class _Cluster:
    """Says a cluster's address and places; a cluster of this machine lives as long as this process."""

    def __init__(self, _: Say, address: str, cpus: int) -> None:
        ray = _ray(address, cpus, own=address == LOCAL)
        self.name = ray.get_runtime_context().gcs_address if address == LOCAL else address
        found = ray.cluster_resources()
        self.rows = int(found.get("GPU", 0) or found.get("CPU", 0))

    def take(self, *_: Any) -> None: ...

    def tell(self) -> None:
        time.sleep(READY_S)


class _Relay:
    """A model in an actor, on a GPU where there are any, else on a core."""

    def __init__(self, say: Say, recipe: bytes, device: str, address: str, own: bool = False) -> None:
        self._say, self._ray = say, _ray(address, own=own)
        on_gpu = device.startswith("cuda") or (device == "auto" and self._ray.cluster_resources().get("GPU"))
        actor = self._ray.remote(concurrency_groups={"work": TOGETHER, "looks": 1})(WarmModel)
        self._actor = actor.options(
            num_cpus=0 if on_gpu else 1, num_gpus=1 if on_gpu else 0, scheduling_strategy="SPREAD"
        ).remote(recipe, "cuda" if on_gpu else "cpu", __version__)
        self._work: dict[Any, int] = {}
        self._looked = time.monotonic()
        self._lock = threading.Lock()
        try:
            self.name, self.rows = self._ray.get(self._actor.describe.remote())
        except self._ray.exceptions.RayError as error:
            last = str(error).strip().rpartition(chr(10))[2]
            raise NotReady(f"it ended: {last}", retry_after_s=5.0) from None

    def take(self, number: int, work: bytes | None, remaining_s: float | None) -> None:
        if work is None:
            self._actor.cancel.options(concurrency_group="looks").remote(number)
            return
        run = self._actor.run.options(concurrency_group="work")
        with self._lock:
            self._work[run.remote(number, work, remaining_s)] = number

    def tell(self) -> None:
        errors = self._ray.exceptions
        with self._lock:
            under_way = list(self._work)
        try:
            if not under_way:
                time.sleep(LOOK_S / 4)
            for ended in self._ray.wait(under_way, timeout=LOOK_S / 4)[0] if under_way else ():
                try:
                    content = self._ray.get(ended)
                except errors.RayTaskError as error:
                    content = pack(portable(error.cause if error.cause is not None else error))
                with self._lock:
                    number = self._work.pop(ended)
                self._say("end", number, content)
            if time.monotonic() > self._looked + LOOK_S:
                self._looked = time.monotonic()
                looks = self._actor.news.options(concurrency_group="looks").remote()
                with suppress(errors.GetTimeoutError):  # the network is slow, say
                    self._say("steps", *self._ray.get(looks, timeout=LOOK_S))
        except Exception as error:  # noqa: BLE001 - without this thread nothing would be said any more
            self._say("lost", f"ended: {_first_line(error)}")
            os._exit(0)


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
