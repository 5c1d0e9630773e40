"""Trajectories, and those that are stepped together: one state for all their rows, one network call, one update.

A `Trajectory` is one leg of some rows, as a piece of work that any holder of the same bundle can do. In a `Stack`, rows
keep their own level, class and weights. While the same trajectories are stepped again, their state stays in one piece;
whoever joins or leaves costs one copy. A trajectory whose solver follows no recurrence has its rows written into the
state by its generator.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.diffusion.bridge import OnStep
from ddib_fed.diffusion.denoiser import Condition, Denoiser, LevelTable, Places, Query, on_device
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.schedule import Level
from ddib_fed.diffusion.solvers import Recurrence, Solver, Table, table_of
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Control, RowDraw, Stage
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.models.units import ChannelMap


class Ending(Future[Tensor]):
    """Where a trajectory ends, with how it came there."""

    evaluations: int = 0

    def end(self, x: Tensor, evaluations: int) -> None:
        self.evaluations = evaluations
        self.set_result(x)


@dataclass(frozen=True, slots=True, eq=False)
class Integration:
    x: Tensor
    solver: Solver
    denoiser: Denoiser
    evaluations: int
    cond: Condition = None
    recurrence: Recurrence | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """One leg of some rows, whole and checked; it can be pickled where `draw` is None."""

    stage: Stage
    x: Tensor
    settings: SolverSettings
    sigma: float = 0.0
    guidance: Guidance = UNGUIDED
    calibration: ChannelMap | None = None
    encoder: str = "ode"
    label: NDArray[np.int64] | None = None
    draw: RowDraw | None = None
    flow: str = ""
    weight: float = 1.0
    stream_rows: int = 0
    owner: str = ""

    @property
    def rows(self) -> int:
        return len(self.x)

    @property
    def doubled(self) -> int:
        return self.guidance.predictions

    @property
    def kind(self) -> Hashable:
        return self.guidance, self.calibration, self.encoder, self.label is None

    def part(self, start: int, stop: int) -> Trajectory:
        """Its rows from `start` to before `stop`, as a trajectory of their own."""
        draw = self.draw
        return replace(
            self,
            x=self.x[start:stop],
            label=None if self.label is None else self.label[start:stop],
            draw=None
            if draw is None
            else lambda step, rows: draw(step, slice(start + rows.start, start + rows.stop)),
        )

    def on(self, model: DomainModel) -> Integration:
        encoding = self.stage == "encode"
        settings = self.settings.of_the_ode() if encoding else self.settings
        laid = model.plan(settings, self.sigma)
        x = on_device(self.x, model.device)
        cond = model.condition_of(self.label)
        frame = None if laid.learned is None else model.frame(self.calibration)
        if encoding:
            solver = laid.encoder(x, cond, frame=frame)
        else:
            draw = self.draw
            solver = laid.decoder(
                x,
                cond,
                None if draw is None else lambda step: model.tensor(draw(step, slice(0, self.rows))),
                frame=frame,
            )
        return Integration(
            x,
            solver,
            model.denoiser(self.guidance, self.calibration, self.encoder),
            laid.evaluations,
            cond,
            model.recurrence(settings, self.sigma, encoding=encoding),
        )


@dataclass(slots=True, eq=False)
class Running:
    """A trajectory that is being integrated, and its caller's future."""

    trajectory: Trajectory
    control: Control
    on_step: OnStep | None
    number: int = 0
    future: Ending = field(default_factory=Ending)
    step: int = 0
    work: Integration | None = None
    _query: Query | None = None
    stack: Stack | None = None
    start: int = 0
    evaluations: int = 0
    recurrence: Recurrence | None = None
    kind: Hashable = None
    rows: int = 0
    cost_rows: int = 0
    flow: str = ""
    owner: str = ""
    watch: AbstractContextManager[None] = field(default_factory=nullcontext)

    def __post_init__(self) -> None:
        self.kind, self.rows = self.trajectory.kind, self.trajectory.rows
        self.cost_rows = self.rows * self.trajectory.doubled
        self.flow = self.trajectory.flow or f"#{self.number}"
        self.owner = self.trajectory.owner or self.flow

    @property
    def begun(self) -> Integration:
        assert self.work is not None
        return self.work

    @property
    def place(self) -> tuple[Level, Level | None]:
        """The level at which the network is asked next, and the one that is asked to."""
        if self._query is not None:
            return self._query.level, self._query.to
        assert self.recurrence is not None
        return self.recurrence.levels[self.step], self.recurrence.to[self.step]

    def begin(self, work: Integration) -> None:
        self.work, self.evaluations, self.recurrence = work, work.evaluations, work.recurrence
        if work.recurrence is None:
            self._query = next(work.solver)

    def state(self) -> Tensor:
        """Where it is, (rows, *sample_shape)."""
        if self.stack is not None:
            return self.stack.rows_of(self.stack.x, self)
        return self.begun.x if self._query is None else self._query.x

    def velocity(self, age: int) -> Tensor | None:
        """The velocity of an age, 0 for the newest; None where it was not kept."""
        if self.stack is None or age >= len(self.stack.velocities):
            return None
        return self.stack.rows_of(self.stack.velocities[age], self)

    def drive(self, v: Tensor) -> Tensor:
        self._query = self.begun.solver.send(v)
        return self._query.x

    def close(self) -> None:
        self.watch.__exit__(None, None, None)
        self.stack = None
        if self.work is not None:
            self.work.solver.close()


class Stack:
    def __init__(self, chosen: Sequence[Running]) -> None:
        self.chosen = chosen
        self.members = list(chosen)
        states = [member.state() for member in chosen]
        # A copy in any case: a trajectory's start is its caller's, and a slice would hold the rows of all.
        self.x = torch.cat(states) if len(states) > 1 else states[0].clone()
        recurrences = {m.recurrence for m in chosen if m.recurrence is not None}
        self._window = max((each.window for each in recurrences), default=0)
        self.driven = tuple(member for member in chosen if member.recurrence is None)
        first = chosen[0]
        self._uniform = not self.driven and all(
            m.recurrence is first.recurrence and m.step == first.step for m in chosen
        )
        self.velocities = _merged_velocities(chosen, self._window - 1)
        self._cond = merge_conditions([member.begun.cond for member in chosen])
        self._rows: Tensor | None = None
        self._places: Places | None = None
        self.table: Table | None = None
        self.steps = self._numbers = torch.empty(0)
        if not self._uniform and not self.driven:
            self.table = table_of(tuple(sorted(recurrences, key=id)), self.x.device)
            self._numbers = self._of_rows(self.table.numbers)
            places = [self.table.starts[m.recurrence] + m.step for m in chosen if m.recurrence is not None]
            self.steps = self._for_each_row(places)
            if getattr(first.begun.denoiser.network, "remembers_tables", False):
                self._places = Places.by_row(self.x, self.table.levels, self.steps)
        self._starts: list[int] = []
        """First row of each member here; a member that goes on elsewhere has another one there."""
        start = 0
        for member in chosen:
            member.stack, member.start = self, start
            self._starts.append(start)
            start += member.rows

    def holds(self, chosen: Sequence[Running]) -> bool:
        """Whether these are stepped here: who was before, and who takes the rows of one that has ended."""
        if chosen is self.chosen:
            return True
        come = [member for member in chosen if member.stack is not self]
        left = [number for number, member in enumerate(self.members) if member.stack is not self]
        if len(chosen) - len(come) != len(self.members) - len(left) or len(come) != len(left):
            return False
        pairs = list(zip(left, come, strict=True))
        if not all(self._fits(member, self.members[number]) for number, member in pairs):
            return False
        for number, member in pairs:
            self._replace(number, member)
        self.chosen = chosen
        return True

    def _fits(self, member: Running, ended: Running) -> bool:
        """Whether a member that was in no stack can have the rows of one that has ended."""
        return (
            member.stack is None
            and ended.stack is None
            and member.rows == ended.rows
            and self.table is not None
            and member.recurrence in self.table.starts
        )

    def _replace(self, number: int, member: Running) -> None:
        assert self.table is not None
        assert member.recurrence is not None
        member.start, member.stack = self._starts[number], self
        self.members[number] = member
        rows = slice(member.start, member.start + member.rows)
        self.x[rows].copy_(member.begun.x)
        for velocity in self.velocities:
            velocity[rows].zero_()
        self.steps[rows].fill_(self.table.starts[member.recurrence] + member.step)
        for key, value in (member.begun.cond or {}).items():
            assert self._cond is not None
            self._cond[key][rows].copy_(value)

    def rows_of(self, tensor: Tensor, member: Running) -> Tensor:
        return tensor[member.start : member.start + member.rows]

    def evaluate(self) -> Tensor:
        """The velocity of all rows, from one network call under the driver's `no_grad`: like x, a fresh tensor."""
        denoiser: Denoiser = self.members[0].begun.denoiser
        if self._uniform or (self.driven and len({member.place for member in self.members}) == 1):
            # What a network remembers of one level serves every batch that is asked there.
            level, to = self.members[0].place
            return denoiser(self.x, level, self._cond, to)
        return denoiser.at(self.x, self._places or self._places_of_members(), self._cond)

    def _places_of_members(self) -> Places:
        levels, tos = zip(*(member.place for member in self.members), strict=True)
        return Places.by_row(self.x, LevelTable.of(levels, tos), self._each_row())

    def advance(self, v: Tensor) -> None:
        """Take the step of every member; v like x, which is kept and may be written."""
        if self._window:
            self.velocities.insert(0, v)
            del self.velocities[self._window :]
        if self._uniform:
            self._advance_uniform()
        elif self.table is not None:
            self._advance_by(self._numbers.index_select(1, self.steps))
            self.steps.add_(1)
        elif self._window:
            rows = [_numbers(member, 1 + self._window) for member in self.members]
            numbers = self._of_rows(on_device(torch.tensor(rows, dtype=self.x.dtype).T, self.x.device))
            self._advance_by(numbers.index_select(1, self._each_row()))

    def _advance_uniform(self) -> None:
        first = self.members[0]
        assert first.recurrence is not None
        scale = first.recurrence.scales[first.step]
        if scale != 1.0:
            self.x.mul_(scale)
        for weight, velocity in zip(first.recurrence.weights[first.step], self.velocities, strict=False):
            if weight != 0.0:
                self.x.add_(velocity, alpha=weight)

    def _advance_by(self, numbers: Tensor) -> None:
        # Three operations for any window: of few rows, calling an operation costs more than what it computes. No matrix
        # product, which a GPU may round to fewer digits.
        terms = torch.stack([self.x, *self.velocities])
        self.x = terms.mul_(numbers if len(terms) == len(numbers) else numbers[: len(terms)]).sum(0)

    def _of_rows(self, numbers: Tensor) -> Tensor:
        return numbers.reshape(*numbers.shape, *(1,) * (self.x.ndim - 1))

    def _each_row(self) -> Tensor:
        if self._rows is None:
            self._rows = self._for_each_row(range(len(self.members)))
        return self._rows

    def _for_each_row(self, numbers: Sequence[int]) -> Tensor:
        counts = torch.tensor([member.rows for member in self.members])
        return on_device(torch.tensor(numbers).repeat_interleave(counts), self.x.device)


def _merged_velocities(members: Sequence[Running], ages: int) -> list[Tensor]:
    """The last velocities of all members, newest first, as many as the next step needs; 0 where a member has none."""
    merged = []
    for age in range(ages):
        kept = [member.velocity(age) for member in members]
        if all(v is None for v in kept):
            break
        pairs = zip(kept, members, strict=True)
        merged.append(torch.cat([torch.zeros_like(each.state()) if v is None else v for v, each in pairs]))
    return merged


def _numbers(member: Running, width: int) -> list[float]:
    if member.recurrence is None:
        return [1.0, *(0.0,) * (width - 1)]
    found = [member.recurrence.scales[member.step], *member.recurrence.weights[member.step]]
    return [*found, *(0.0,) * (width - len(found))]


def merge_conditions(conditions: Sequence[Condition]) -> Condition:
    """Conditions one under the other; all have the same keys."""
    if not conditions[0]:
        return None
    if len(conditions) == 1:
        return conditions[0]
    return {key: torch.cat([cond[key] for cond in conditions if cond]) for key in conditions[0]}
