"""Continuous batching: one thread steps the trajectories of all requests, merging their network calls.

Trajectories join and leave at any step, each row with its own level, class and weights: the `Scheduler` says which run
next and which are merged with them, `stack` steps them as one. What calls cost by their rows is measured at each start
(`Recipe`), for fair queueing; larger calls than the smallest within 1 % of the best only make others wait.
"""

import logging
import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice

import numpy as np
import torch

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.solvers import OnStep
from ddib_fed.engine.model import DTYPES, DomainModel, pixels
from ddib_fed.engine.party import Control, Leg
from ddib_fed.engine.stack import End, Member, Stack, Trajectory, stack_of
from ddib_fed.errors import Cancelled, ConfigError, Draining, NotReady
from ddib_fed.models.bundle import Bundle, device_problem
from ddib_fed.networks.placement import torch_threads
from ddib_fed.record import UNGUIDED, Guidance

log = logging.getLogger(__name__)

ROWS = 2_048
Cost = Callable[[int], float]  # seconds, or anything in proportion to them, of a network call of so many rows
NEAR = 64.0
"""Short streams whose times differ by less than so many full calls, about a leg, run in the order of arrival."""
LOOK_S = 0.01
"""Waiting trajectories are checked for cancelling and deadlines this often; those of a call, before each step."""
DEARER = 1.25  # a short stream is not computed in calls that cost more than so many times the least a row
ABOUT = 1.05
"""Of the sizes of call with which a short stream takes at most so many times the least, the largest costs least."""
LINGER_S = 0.002
"""An engine without work begins when nothing more has come for so long: the rows of a stream come one by one, and a
call of one costs half as much as one of eight."""


@dataclass(slots=True, eq=False)
class _Flow:
    """The trajectories of one job or request, oldest first."""

    owner: "_Owner"
    time: float
    waiting: deque[Member] = field(default_factory=deque)
    ended: int = 0
    rows: int = 0

    @property
    def stream_rows(self) -> int:
        announced = self.waiting[0].stream_rows
        return max(1, announced - self.ended) if announced else 0


@dataclass(slots=True, eq=False)
class _Owner:
    weight: float
    time: float
    number: int
    flows: OrderedDict[str, _Flow] = field(default_factory=OrderedDict)

    @property
    def now(self) -> float:
        return min((flow.time for flow in self.flows.values()), default=0.0)


class Scheduler:
    """Chooses the trajectories of the next call: least-served flow of the least-served owner first."""

    def __init__(self, rows: int, cost: Cost) -> None:
        self._cost = lru_cache(maxsize=8_192)(cost)
        self._best = lru_cache(maxsize=1_024)(self._best_for)
        self._owners: OrderedDict[str, _Owner] = OrderedDict()
        self._resting: dict[str, float] = {}
        """Times of owners without flows that are ahead of the others."""
        self._now = 0.0
        """Time of the owner that was served last, before it was charged: another begins there."""
        self._count = 0
        self.rows = rows

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Member]:
        return (member for flow in list(self._flows()) for member in list(flow.waiting))

    def resize(self, rows: int) -> None:
        self.rows = rows
        self._best.cache_clear()

    def add(self, member: Member, *, first: bool = False) -> None:
        """Take a trajectory in; without the name of a flow, or of an owner, it is one of its own."""
        weight = member.trajectory.leg.weight
        owner = self._owners.get(member.owner)
        if owner is None:
            self._resting = {name: time for name, time in self._resting.items() if time > self._now}
            time = self._resting.pop(member.owner, self._now)
            owner = self._owners[member.owner] = _Owner(weight, time, member.number)
        owner.weight = weight
        flow = owner.flows.get(member.flow)
        if flow is None:
            flow = owner.flows[member.flow] = _Flow(owner, owner.now)
        (flow.waiting.appendleft if first else flow.waiting.append)(member)
        flow.rows += member.cost_rows
        self._count += 1

    def remove(self, member: Member) -> None:
        """Let a trajectory go, with a flow that has no other, and an owner that has no other flow."""
        owner = self._owners[member.owner]
        flow = owner.flows[member.flow]
        flow.waiting.remove(member)
        flow.rows -= member.cost_rows
        flow.ended += member.rows
        self._count -= 1
        if flow.waiting:
            return
        del owner.flows[member.flow]
        if owner.flows:
            return
        del self._owners[member.owner]
        if not self._owners:
            self._resting.clear()  # no other waited: nothing is owed
        elif member.trajectory.leg.owner or member.trajectory.leg.flow:
            self._resting[member.owner] = owner.time

    def charge(self, members: Sequence[Member], calls: int = 1) -> None:
        """Divide the cost of calls among the flows whose rows are in them."""
        rows = sum([member.cost_rows for member in members])
        each = calls * self._cost(rows) / rows
        for member in members:
            owner = self._owners[member.owner]
            spent = each * member.cost_rows
            owner.flows[member.flow].time += spent
            owner.time += spent / owner.weight

    def choose(self, limit: int | None = None) -> Sequence[Member]:
        """Return the trajectories of the next call, at least one, of at most `limit` rows, in order of arrival."""
        turns = sorted(self._flows(), key=lambda flow: (flow.owner.time, flow.owner.number, flow.time))
        self._now = turns[0].owner.time
        limit = limit or self.rows
        most = min(limit, self._most_rows(turns))
        if most < limit:
            turns = self._by_arrival(turns)
        first = turns[0].waiting[0]
        chosen, rows = [first], first.cost_rows
        for member in islice(turns[0].waiting, 1, None):
            if rows + member.cost_rows > most:
                break
            if member.kind == first.kind:
                chosen.append(member)
                rows += member.cost_rows
        allowed = self._allowed(turns[0], rows)
        for flow in turns[1:]:
            # Beside a longer stream a shorter one takes the room that the call was given less.
            room = most if flow.stream_rows >= turns[0].stream_rows else limit
            for member in flow.waiting:
                total = rows + member.cost_rows
                if total > room or self._cost(total) > allowed:
                    break
                if member.kind == first.kind:
                    chosen.append(member)
                    rows = total
        return sorted(chosen, key=lambda member: member.number)

    def _flows(self) -> Iterator[_Flow]:
        return (flow for owner in self._owners.values() for flow in owner.flows.values())

    def _allowed(self, flow: _Flow, rows: int) -> float:
        """Return the cost that a call may have for a flow with these rows: that many turns of all flows."""
        return len(self._owners) * len(flow.owner.flows) * self._cost(rows)

    def _by_arrival(self, turns: Sequence[_Flow]) -> list[_Flow]:
        """Short streams one after another, as one stream of all their rows would go, while their times are near."""
        near, now = NEAR * self._cost(self.rows), turns[0].owner.time
        owners = {id(flow.owner): flow.owner.now for flow in turns}
        return sorted(
            turns,
            key=lambda flow: (
                int((flow.owner.time - now) / near),
                int((flow.time - owners[id(flow.owner)]) / near),
                flow.waiting[0].number,
            ),
        )

    def _most_rows(self, turns: Sequence[_Flow]) -> int:
        streams = [flow.stream_rows for flow in turns]
        return self._best(sum(streams)) if all(streams) else self.rows

    def _best_for(self, rows: int) -> int:
        """Return the call size that ends a stream of these rows, and the stage after it, first."""
        sizes = [1 << n for n in range(max(self.rows - 1, 0).bit_length())]
        each = {size: self._cost(size) / size for size in (self.rows, *sizes)}
        allowed = DEARER * min(each.values())
        takes = {size: (rows + size) * cost for size, cost in each.items() if cost <= allowed}
        return max(size for size, time in takes.items() if time <= ABOUT * min(takes.values()))


class Batcher:
    """Merges network calls on its own thread or, where it is not `beside`, on its caller's at the end of `together`.

    `rows` are how many samples one call takes best; it makes `width` calls at once. A `Pool` can stand in its place.
    """

    width = 1
    problem: str | None = None

    def __init__(
        self,
        model: DomainModel,
        *,
        rows: int = ROWS,
        cost: Cost | None = None,
        threads: int | None = None,
        beside: bool = True,
    ) -> None:
        self.model = model
        self.rows, self.threads, self.beside = rows, threads, beside
        self._cost = cost or (lambda count: count + rows / 8)
        self._scheduler = Scheduler(rows, self._cost)
        self._inbox: deque[Member] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._submitted = self._calls = self._evaluated = 0
        self._last: Stack | None = None
        self._looked = 0.0
        """When all that waits was last asked whether it is over."""
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        if beside:
            self._thread.start()

    @property
    def counters(self) -> Mapping[str, int]:
        return {"calls": self._calls, "rows": self._evaluated}

    def submit(
        self, trajectory: Trajectory, *, control: Control | None = None, on_step: OnStep | None = None
    ) -> Future[End]:
        """Take a trajectory; the future gives its end, or the error that ended it."""
        with self._wake:
            if self._closed:
                raise Draining("the engine is closed")
            self._submitted += 1
            member = Member(trajectory, control or Control(), on_step, self._submitted)
            self._inbox.append(member)
            self._wake.notify()
        return member.future

    @contextmanager
    def together(self) -> Iterator[None]:
        if self.beside:
            yield
            return
        try:
            yield
            with torch_threads(self.threads or torch.get_num_threads()):
                self._work()
        except BaseException:  # Ctrl-C, say
            self._give_up()
            raise

    def close(self) -> None:
        """Stop after the current turn; unfinished trajectories fail with `Draining`."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self.beside:
            self._thread.join()
        else:
            self._give_up()

    def _run(self) -> None:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        try:
            self._work()
        except BaseException:
            # Without this, callers would wait for their futures for ever.
            log.exception("the engine's worker failed; nothing more is computed until the node is restarted")
        finally:
            with self._wake:
                self._closed = True
            self._give_up()

    def _work(self) -> None:
        with torch.no_grad():
            while self._take_in():
                self._sweep()
                if len(self._scheduler):
                    self._turn(self._scheduler.choose())

    def _take_in(self) -> bool:
        """Begin submitted trajectories, waiting for some on a thread of its own; return False when there are none."""
        if len(self._scheduler) and not self._inbox:
            return not self._closed
        with self._wake:
            while self.beside and not (self._closed or self._inbox or len(self._scheduler)):
                self._last = None
                self._wake.wait()
                while 0 < len(self._inbox) < self.rows and self._wake.wait(LINGER_S):
                    pass
            fresh = list(self._inbox)
            self._inbox.clear()
        for member in fresh:
            try:
                member.control.check()
                member.begin(member.trajectory.on(self.model))
            except Exception as error:  # noqa: BLE001 - any failure goes to the caller's future
                member.close(error)
                continue
            self._scheduler.add(member)
        return not self._closed and (self.beside or bool(fresh) or len(self._scheduler) > 0)

    def _sweep(self) -> None:
        """Fail waiting trajectories that were cancelled or are late."""
        now = time.monotonic()
        if now >= self._looked + LOOK_S:
            self._looked = now
            self._fail_over(list(self._scheduler))

    def _fail_over(self, members: Sequence[Member]) -> bool:
        """Fail members whose work is over; return whether there were any."""
        over = [member for member in members if member.control.over]
        for member in over:
            self._end(member, member.control.error or Cancelled())
        return bool(over)

    def _turn(self, chosen: Sequence[Member]) -> None:
        """Evaluate the network once for all chosen and advance each by one step."""
        if self._fail_over(chosen):
            return  # another choice is made without them
        started = time.perf_counter()
        try:
            stack = stack_of(chosen, self._last)
            velocity = stack.evaluate()
            self._scheduler.charge(chosen)
            stack.advance(velocity)
        except Exception as error:  # noqa: BLE001 - out of memory, a broken device: the waiting calls must hear
            for member in chosen:
                self._end(member, error)
            return
        self._last = stack
        self._calls += 1
        self._evaluated += len(velocity)
        each = (time.perf_counter() - started) / len(velocity)
        # A caller waits for its oldest trajectory: it is woken once, when the others that end now have ended.
        for member in reversed(chosen):
            member.seconds += each * member.rows
            try:
                member.step += 1
                if member.on_step is not None:
                    member.on_step(member.step, len(member.steps))
                if member.step == len(member.steps) or member.error is not None:
                    self._end(member, member.end())
            except Exception as error:  # noqa: BLE001 - as above
                self._end(member, error)

    def _end(self, member: Member, end: End | Exception) -> None:
        self._scheduler.remove(member)
        member.close(end)

    def _give_up(self) -> None:
        """Fail all unfinished trajectories."""
        with self._wake:
            waiting = [*self._scheduler, *self._inbox]
            self._inbox.clear()
            self._scheduler = Scheduler(self.rows, self._cost)
        for member in waiting:
            member.close(Draining("the engine was closed"))


OWN_S = 1e-4  # the engine adds this time to each network call
WITHIN = 1.01  # a cost per row of so many times the best is as good as the best
FLAT = 1.05  # once two doublings brought less than so much a row, no larger batch is tried
SWEEP_S = 1.2  # no larger batch is tried after this time
REPEATS = 3
LONG_S = 0.25
"""A call that takes so long is measured once: of shorter ones a single time is too uncertain to choose a size by."""
MOST_POINTS, MOST_PIXELS = 4_096, 1 << 18
"""The largest batch that is tried on a CPU; a GPU's is `ON_GPU` times as large."""
ON_GPU = 16
WARM_UP_ROWS = 4_096
"""Samples of the call with which threads are measured: large enough that a second thread could pay off."""


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """What a node, or each of its workers, makes the model of: the weights themselves, not their folder."""

    bundle: Bundle
    classifier: Bundle | None = None
    device: str = "auto"
    threads: int = 0
    dtype: str = "float32"
    merge_rows: int = 2_048
    merge_pixels: int = 65_536

    def warm(self) -> Batcher:
        dtype, classifier = DTYPES[self.dtype], self.classifier
        model = DomainModel(self.bundle, device=_device(self.device), dtype=dtype, classifier=classifier)
        threads = self.threads or _fastest_threads(model)
        rows, cost = self.merge_rows, None
        if model.is_picture:
            rows = self.merge_pixels and max(1, self.merge_pixels // pixels(model))
        if not rows:
            budget = measured(model, threads)
            rows, cost = budget.rows, budget.cost
            log.info("a network call takes %d rows, %.3g s", rows, cost(rows))
        batcher = Batcher(
            model, rows=rows, cost=cost, threads=threads if model.device.type == "cpu" else None
        )
        try:
            _warm_up(model, batcher)
        except BaseException:
            batcher.close()
            raise
        return batcher


def _warm_up(model: DomainModel, executor: Batcher) -> None:
    """Run short legs of two sizes, and one guided by the classifier, so that the first request pays for nothing."""
    settings = SolverSettings(evaluations=2 if model.is_picture else 8)
    legs = [(UNGUIDED, 1), (UNGUIDED, min(2, executor.rows) if model.is_picture else 64)]
    if model.classifier is not None:
        legs.append((Guidance(classifier_scale=1.0), 1))
    for guidance, rows in legs:
        label = 0 if model.classes(guidance) else None
        classes = model.class_rows(label, rows, guidance)
        noise = Trajectory("decode", _noise(model, rows), Leg(settings, guidance), classes, pixels=True)
        if not torch.isfinite(executor.submit(noise).result().x).all():
            raise NotReady(
                "the model answers with NaN or infinity to noise",
                hint="ddib model show BUNDLE; train it again",
            )


def _fastest_threads(model: DomainModel) -> int:
    """Return 1 or all cores, whichever evaluates a large batch faster (a busy second core makes OpenMP crawl)."""
    cores = torch.get_num_threads()
    if model.device.type != "cpu" or cores == 1:
        return 1
    call = _call(model, 1 if model.is_picture else WARM_UP_ROWS)
    seconds = {}
    for count in (1, cores):
        torch.set_num_threads(count)
        seconds[count] = _least(call, time.perf_counter)
    # A second thread must pay clearly: it is taken from gRPC and from the other node on a small machine.
    return cores if seconds[cores] < 0.7 * seconds[1] else 1


def _noise(model: DomainModel, rows: int) -> torch.Tensor:
    noise = torch.randn(rows, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    return noise.to(model.device)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if problem := device_problem(name):
        raise ConfigError(
            f"engine.device = {name!a} cannot be used: {problem}",
            hint='engine.device = "auto" takes a GPU where there is one, "cpu" works everywhere',
        )
    return torch.device(name)


@dataclass(frozen=True, slots=True)
class Budget:
    seconds: Mapping[int, float]  # of a call, by its rows

    @property
    def rows(self) -> int:
        """The smallest size within 1 % of the best cost per row, the engine's own part included."""
        each = {rows: (OWN_S + cost) / rows for rows, cost in self.seconds.items()}
        return min(rows for rows, cost in each.items() if cost <= WITHIN * min(each.values()))

    def cost(self, rows: int) -> float:
        sizes = sorted(self.seconds)
        beyond = max(1.0, rows / sizes[-1])
        return OWN_S + beyond * float(np.interp(rows, sizes, [self.seconds[size] for size in sizes]))


def sweep(
    sizes: Iterator[int],
    call: Callable[[int], Callable[[], None]],
    *,
    limit_s: float = SWEEP_S,
    clock: Callable[[], float],
) -> dict[int, float]:
    """Return seconds of a call by its rows: the least of a few calls after one that is not counted."""
    times: dict[int, float] = {}
    started = clock()
    for rows in sizes:
        try:
            times[rows] = _least(call(rows), clock)
        except (torch.OutOfMemoryError, MemoryError):
            if not times:
                raise
            break
        spent = clock() - started
        per_row = [cost / size for size, cost in times.items()]
        flat = len(per_row) > 2 and min(per_row[-2:]) > min(per_row[:-2]) / FLAT
        # The next one costs at most twice as much: one that would end far beyond the limit is not begun.
        if flat or spent + 2 * times[rows] > limit_s:
            break
    return times


def measured(model: DomainModel, threads: int, *, limit_s: float = SWEEP_S) -> Budget:
    # Of one thread its own time: a machine may be busy at this start.
    clock = time.thread_time if model.device.type == "cpu" and threads == 1 else time.perf_counter
    with torch_threads(threads):
        return Budget(sweep(_sizes(model), lambda rows: _call(model, rows), limit_s=limit_s, clock=clock))


def _sizes(model: DomainModel) -> Iterator[int]:
    most = MOST_PIXELS // pixels(model) if model.is_picture else MOST_POINTS
    most = max(1, most * (ON_GPU if model.device.type == "cuda" else 1))
    rows = 1
    while rows <= most:
        yield rows
        # A small call of points costs what one point costs.
        rows *= 4 if not model.is_picture and rows < 64 else 2


def _call(model: DomainModel, rows: int) -> Callable[[], None]:
    """A call of the plain network on noise."""
    x, level = _noise(model, rows), model.bundle.schedule.level(0.0)
    cond = model.condition(model.class_rows(0 if model.manifest.num_classes else None, rows))
    denoiser = model.denoiser()

    def call() -> None:
        with torch.no_grad():
            denoiser(x, level, cond)
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)

    return call


def _least(call: Callable[[], None], clock: Callable[[], float]) -> float:
    call()
    least = math.inf
    for _ in range(REPEATS):
        started = clock()
        call()
        least = min(least, clock() - started)
        if least > LONG_S:
            break
    return least
