"""Hands trajectories to workers elsewhere, by rows in flight; what is lost with a worker is done again by another.

The pool knows nothing of processes or clusters: `launch` starts a worker, which is sent `workbench.Do` and
`workbench.Cancel` and answers through a `Listener`. One lock guards the books; futures are set and workers ended
outside of it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Protocol

from ddib_fed.bridge.control import Control
from ddib_fed.bridge.engine.trajectory import Ending, Trajectory
from ddib_fed.bridge.workers.books import Books, Entry, Member, Remote
from ddib_fed.bridge.workers.hanging import hung
from ddib_fed.bridge.workers.limits import MOST_WORKERS
from ddib_fed.bridge.workers.starts import Starts
from ddib_fed.bridge.workers.workbench import Broken, Cancel, Do, Done, Failed, Ready, Step
from ddib_fed.diffusion.bridge import OnStep
from ddib_fed.errors import DdibError, DeadlineExceeded, Draining, InternalError, NotReady, SettingsInvalid

log = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 0.25
"""How often deadlines of waiting work, and workers that are missing, are looked at."""
Finish = Callable[[], object]
"""What is left to do when the lock is released."""


class Launch(Protocol):
    """Starts workers."""

    def __call__(self, listener: Listener, /) -> Remote: ...


class Listener:
    """What a worker tells its pool; any thread may."""

    def __init__(self, pool: Pool, member: Member) -> None:
        self._pool, self._member = pool, member

    def heard(self, message: Any) -> None:
        self._pool._heard(self._member, message)  # noqa: SLF001 - the pool's own half

    def ended(self, why: str, *, blame: bool) -> None:
        self._pool._ended(self._member, why, blame=blame)  # noqa: SLF001 - as above


class Pool:
    """An `Executor` whose workers are elsewhere."""

    beside = True

    def __init__(
        self,
        launch: Launch,
        count: int,
        *,
        what: str,
        remedy: str,
        ready_s: float | None = None,
        wait_for: int | None = None,
    ) -> None:
        self._launch, self._what, self._remedy = launch, what, remedy
        self._starts = Starts(what, remedy)
        self._changed = threading.Condition()
        self._books = Books()
        self._numbers = itertools.count(1)
        self._wanted = 0
        self._closed = False
        self._redone = self._replaced = 0
        self.resize(count)
        self._thread = threading.Thread(target=self._supervise, name=f"{what} pool", daemon=True)
        self._thread.start()
        try:
            self._wait_until_ready(count if wait_for is None else wait_for, ready_s)
        except BaseException:
            self.close()
            raise

    # What an executor is

    @property
    def rows(self) -> int:
        return self._books.rows

    @property
    def width(self) -> int:
        return max(1, self._wanted)

    @property
    def counters(self) -> Mapping[str, int]:
        with self._changed:
            return {
                "calls": self._books.calls,
                "rows": self._books.evaluated,
                "ready": len(self._books.ready),
                "wanted": self._wanted,
                "replaced": self._replaced,
                "redone": self._redone,
            }

    @property
    def problem(self) -> str | None:
        with self._changed:
            return self._starts.problem

    def submit(
        self, trajectory: Trajectory, *, control: Control | None = None, on_step: OnStep | None = None
    ) -> Ending:
        entry = Entry(next(self._numbers), trajectory, control or Control(), on_step)
        with self._changed:
            if self._closed:
                raise Draining("the engine is closed")
            refusal = self._refused(trajectory, entry.control)
            if refusal is not None:
                entry.fail(refusal)
                return entry.future
            self._books.add(entry)
            # Cancelled meanwhile, the callback only wakes the supervisor: the lock may be taken again by its holder.
            entry.watched.enter_context(entry.control.interrupting(lambda: self._cancelled(entry)))
            self._dispatch()
        return entry.future

    def _refused(self, trajectory: Trajectory, control: Control) -> DdibError | None:
        """Why nobody here will do it; None when somebody will."""
        try:
            control.check()
        except DdibError as error:
            return error
        if trajectory.draw is not None:  # it is a function of this process
            return SettingsInvalid(
                f"decoding that draws noise at each step is not done by a {self._what}",
                hint='executor = "inline" in [engine] of node.toml, or eta 0',
            )
        return self._starts.nobody() if self._deserted() else None

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._wanted = 0
            entries, members = self._books.clear()
            self._changed.notify_all()
        for entry in entries:
            entry.fail(Draining("the engine was closed"))
        self._thread.join()
        for member in members:
            member.end()

    # What the operator can do

    def resize(self, count: int) -> None:
        """Have so many workers from now on; those that are too many finish what they have."""
        if not 1 <= count <= MOST_WORKERS:
            raise SettingsInvalid(
                f"{count} workers; a pool has 1 to {MOST_WORKERS}",
                hint="ddib workers 2",
                facts={"workers": count},
            )
        with self._changed:
            if self._closed:
                raise Draining("the engine is closed")
            self._wanted = count
            self._changed.notify_all()

    def describe(self) -> str:
        return f"{len(self.workers())} of {self._wanted} {self._what}{'' if self._wanted == 1 else 's'}"

    def workers(self) -> list[str]:
        with self._changed:
            return [member.name for member in self._books.ready]

    # What workers tell

    def _heard(self, member: Member, message: Any) -> None:
        finish: Finish | None = None
        with self._changed:
            member.pulse.heard()
            if isinstance(message, Ready):
                self._is_ready(member, message)
            elif isinstance(message, Broken):
                member.reported = True
                self._starts.failed(message.error)
            elif isinstance(message, Step):
                told = self._books.step(member, message)
                finish = None if told is None else partial(self._tell, *told, message)
            elif isinstance(message, Done | Failed):
                finish = self._books.answered(member, message)
            self._dispatch()
            self._changed.notify_all()
        if finish is not None:
            finish()

    def _tell(self, entry: Entry, on_step: OnStep, message: Step) -> None:
        """Tell of a step; what `on_step` raises ends the trajectory."""
        try:
            on_step(message.done, message.of)
        except Exception as error:  # noqa: BLE001 - any failure goes to the caller's future
            with self._changed:
                if self._books.entries.get(entry.number) is not entry:
                    return
                if entry.member is not None:
                    entry.member.send(Cancel(entry.number))
                self._books.finish([entry])
                self._changed.notify_all()
            entry.fail(error)

    def _is_ready(self, member: Member, message: Ready) -> None:
        member.ready, member.name = True, message.name
        self._books.rows = message.rows
        self._starts.succeeded()
        log.info("%s %s is ready", self._what, member.name)

    def _ended(self, member: Member, why: str, *, blame: bool) -> None:
        with self._changed:
            if not self._books.forget(member) or self._closed:
                return
            lost = self._books.lost(member, blame=blame)
            hopeless = [entry for entry in lost if entry.hopeless]
            self._redone += len(lost) - len(hopeless)
            if not member.ready and not member.reported:
                early = f"a {self._what} {why} before it was ready"
                self._starts.failed(InternalError(early, hint=self._remedy))
            elif member.ready and not member.retiring:
                self._replaced += 1
                log.warning(
                    "%s %s %s; it is replaced, and %d trajectories are done again",
                    self._what, member.name, why, len(lost) - len(hopeless),
                )  # fmt: skip
            self._books.finish(hopeless)
            self._dispatch()
            self._changed.notify_all()
        for entry in hopeless:
            entry.fail(self._killer(why, entry.deaths))

    def _killer(self, why: str, deaths: int) -> InternalError:
        return InternalError(
            f"{deaths} times a {self._what} {why} while it worked on one trajectory, which is given up: perhaps for "
            "want of memory",
            hint="a smaller engine.merge_pixels in node.toml needs less; the log says what each said",
        )

    def _cancelled(self, entry: Entry) -> None:
        with self._changed:
            if entry.member is not None:
                entry.member.send(Cancel(entry.number))
            self._changed.notify_all()

    # What the supervisor does, with the lock

    def _dispatch(self) -> None:
        for entry, member in self._books.placed():
            member.send(Do(entry.number, entry.trajectory, entry.control.remaining_s()))
            if entry.control.cancelled:
                member.send(Cancel(entry.number))

    def _supervise(self) -> None:
        while True:
            finish: list[Finish] = []
            with self._changed:
                if self._closed:
                    return
                finish += self._over()
                finish += self._hanging()
                finish += self._too_many()
                missing = self._starts.due(len(self._books.stay), self._wanted)
                if not finish and not missing:
                    self._changed.wait(LOOK_EVERY_S)
            for each in finish:
                each()
            if missing:
                self._start_one()

    def _over(self) -> list[Finish]:
        if self._books.ready:
            self._starts.worker_there()
        over = [entry for entry in self._books.waiting if entry.control.over or self._deserted()]
        self._books.finish(over)
        return [partial(entry.give_up, self._starts.nobody()) for entry in over]

    def _hanging(self) -> list[Finish]:
        """Answer callers whose work is over for a while, and end workers that give no sign of life."""
        now = time.monotonic()
        late = self._books.overdue(now)
        for member in hung(self._books.busy, now):
            member.pulse.heard()  # once: its listener hears that it has ended
            log.warning("%s %s gives no sign of life and is ended", self._what, member.name)
            # On a thread of its own: a process that was stopped is waited for before it is killed.
            threading.Thread(target=member.end, name=f"end {member.name}", daemon=True).start()
        return [partial(entry.give_up, DeadlineExceeded()) for entry in late]

    def _too_many(self) -> list[Finish]:
        """Retire workers beyond those wanted, the idlest first, and end those that have nothing left to do."""
        idlest = sorted(self._books.stay, key=lambda member: (member.ready, member.rows))
        for member in idlest[: max(0, len(idlest) - self._wanted)]:
            member.retiring = True
        idle = [member for member in self._books.members if member.retiring and not member.entries]
        for member in idle:
            self._books.forget(member)
        return [member.end for member in idle]

    def _start_one(self) -> None:
        """Outside of the lock: it takes a while."""
        member = Member()
        with self._changed:
            if self._closed:
                return
            self._books.members.append(member)
        try:
            remote = self._launch(Listener(self, member))
        except Exception as error:  # noqa: BLE001 - any failure is reported and tried again
            with self._changed:
                self._books.forget(member)
                self._starts.failed(error)
                self._changed.notify_all()
            return
        with self._changed:
            if member.begin(remote):
                self._dispatch()  # it may have said that it is ready before it was known here
                self._changed.notify_all()
                return
        remote.end()  # closed meanwhile

    def _deserted(self) -> bool:
        return not self._books.ready and self._starts.deserted()

    def _wait_until_ready(self, count: int, ready_s: float | None) -> None:
        with self._changed:
            there = self._changed.wait_for(
                lambda: self._starts.refusal is not None or len(self._books.ready) >= count, ready_s
            )
            if self._starts.refusal is not None:
                raise self._starts.refusal
            if not there:
                raise NotReady(
                    f"of {count} {self._what}s {len(self._books.ready)} were ready within {ready_s:.0f} s",
                    hint=self._remedy,
                )
