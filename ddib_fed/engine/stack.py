"""Trajectories, and those that are stepped together: one state for all their rows, one network call, one update.

A `Trajectory` is one leg of some rows, as a piece of work that any holder of the same bundle can do. In a `Stack`, rows
keep their own level, class and weights. While the same trajectories are stepped again, their state stays in one piece;
one that joins takes the rows of one that ended, or costs one copy. Trajectories whose solvers follow no recurrence are
`Driven`: each generator is sent the velocities of its rows.
"""

from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.diffusion.denoiser import Condition, Denoiser, LevelTable, Places, Query, on_device
from ddib_fed.diffusion.plans import SolverSettings, soften
from ddib_fed.diffusion.solvers import OnStep, Recurrence, Solver, table_of
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Control, Leg, RowDraw, Stage
from ddib_fed.record import UNGUIDED, Guidance


class End(NamedTuple):
    """Where a trajectory ends, (N, *sample_shape), after how many network evaluations, and in which time.

    What is integrated at the same time shares the time by its rows, so that the seconds of all add up. Behind an
    autoencoder `beside` is what the ODE began with, of encoding, and the samples in its units, of decoding.
    """

    x: Tensor
    evaluations: int
    seconds: float = 0.0
    beside: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Integration:
    x: Tensor
    solver: Solver
    denoiser: Denoiser
    evaluations: int
    cond: Condition = None
    recurrence: Recurrence | None = None
    beside: Callable[[Tensor], Tensor] | None = None  # from where it ends to `End.beside`


PLAIN_LEG = Leg()


@dataclass(frozen=True, slots=True, eq=False)
class Trajectory:
    """One leg of some rows x (N, *latent_shape), whole and checked; `portable` where it is for another process.

    With `pixels` the autoencoder takes part: x to encode are samples in its units, which `noise` softens behind it, and
    what is decoded becomes samples.
    """

    stage: Stage
    x: Tensor
    leg: Leg = PLAIN_LEG
    label: NDArray[np.int64] | None = None
    draw: RowDraw | None = None
    pixels: bool = False
    noise: Tensor | None = None

    @property
    def rows(self) -> int:
        return len(self.x)

    @property
    def settings(self) -> SolverSettings:
        """Without what plans do not depend on: rows of different shares have one."""
        settings = self.leg.settings.of_the_ode() if self.stage == "encode" else self.leg.settings
        return replace(settings, share=1.0, temperature=1.0, blend=0.0)

    @property
    def guidance(self) -> Guidance:
        return UNGUIDED if self.stage == "encode" else self.leg.guidance

    @property
    def share(self) -> float:
        return self.leg.settings.share if self.stage == "encode" or self.leg.returning else 1.0

    @property
    def kind(self) -> Hashable:
        """Equal for those that one network call can serve."""
        return self.guidance, self.leg.calibration, self.share, self.label is None

    def part(self, which: slice | list[int]) -> "Trajectory":
        """Some of its rows, as a trajectory of their own; a slice, where it draws noise."""
        label = None if self.label is None else self.label[which]
        noise = None if self.noise is None else self.noise[which]
        draw = self.draw
        if draw is not None:
            assert isinstance(which, slice)
            whole, start = draw, which.start
            draw = lambda step, rows: whole(step, slice(start + rows.start, start + rows.stop))  # noqa: E731
        return replace(self, x=self.x[which], label=label, draw=draw, noise=noise)

    def portable(self) -> "Trajectory":
        return replace(self, x=self.x.clone(), leg=replace(self.leg, control=None, on_step=None))

    def on(self, model: DomainModel) -> Integration:
        encoding, settings, draw = self.stage == "encode", self.settings, self.draw
        sigma = model.sigma(self.leg.soften) if encoding else 0.0
        laid, x, cond = (
            model.plan(settings, sigma),
            on_device(self.x, model.device),
            model.condition(self.label),
        )
        beside: Callable[[Tensor], Tensor] | None = None
        if self.pixels and (codec := model.codec) is not None:
            if encoding:
                noise = None if self.noise is None else on_device(self.noise, model.device)
                x = model.into_basis(soften(codec.encode(x), sigma, noise), self.leg.calibration)
                began = x.clone()  # a solver may write its start
                beside = lambda _: began  # noqa: E731
            else:
                basis, sides = self.leg.calibration, model.sample_shape[1:]
                beside = lambda end: codec.decode(model.out_of_basis(end, basis), sides)  # noqa: E731
        frame = None if laid.learned is None else model.frame(self.leg.calibration)
        if encoding:
            solver = laid.encoder(x, cond, frame=frame)
        else:
            drawn = None if draw is None else lambda step: model.tensor(draw(step, slice(0, self.rows)))
            solver = laid.decoder(x, cond, drawn, frame=frame)
        denoiser = model.denoiser(self.guidance, self.leg.calibration, self.share)
        recurrence = model.recurrence(settings, sigma, encoding=encoding)
        return Integration(x, solver, denoiser, settings.evaluations, cond, recurrence, beside)


@dataclass(slots=True, eq=False)
class Member:
    """A trajectory that was submitted, and its caller's future."""

    trajectory: Trajectory
    control: Control
    on_step: OnStep | None = None
    number: int = 0
    future: Future[End] = field(default_factory=Future)
    kind: Hashable = None
    rows: int = 0
    cost_rows: int = 0
    flow: str = ""
    owner: str = ""
    step: int = 0
    work: Integration | None = None
    stack: "Stack | None" = None
    start: int = 0
    query: Query | None = None
    result: Tensor | Exception | None = None
    seconds: float = 0.0
    deaths: int = 0  # of workers of a pool that had it

    def __post_init__(self) -> None:
        trajectory = self.trajectory
        self.kind, self.rows = trajectory.kind, trajectory.rows
        self.cost_rows = self.rows * trajectory.guidance.predictions
        self.flow = trajectory.leg.flow or f"#{self.number}"
        self.owner = trajectory.leg.owner or self.flow

    @property
    def begun(self) -> Integration:
        assert self.work is not None
        return self.work

    @property
    def recurrence(self) -> Recurrence:
        assert self.begun.recurrence is not None
        return self.begun.recurrence

    @property
    def stream_rows(self) -> int:
        return self.trajectory.leg.stream_rows if self.trajectory.stage == "encode" else 0

    def begin(self, work: Integration) -> None:
        self.work = work
        if work.recurrence is None:
            self.query = next(work.solver)
        self.kind = self.kind, work.recurrence is None

    def answer(self, end: End | Exception) -> None:
        """Give the caller the end, or why there is none; the first answer counts."""
        with suppress(InvalidStateError):
            if isinstance(end, Exception):
                self.future.set_exception(end)
            else:
                self.future.set_result(end)

    def tell(self, done: int, of: int) -> None:
        """Tell the caller of a new step; what is raised there ends this trajectory alone."""
        if self.on_step is not None and self.step < done and not self.future.done():
            self.step = done
            try:
                self.on_step(done, of)
            except Exception as error:  # noqa: BLE001 - any failure goes to the caller's future
                self.answer(error)

    def state(self) -> Tensor:
        return self.begun.x if self.stack is None else self.stack.rows_of(self.stack.x, self)

    def end(self) -> End:
        """Where it is after its last step; the error, if its generator raised one."""
        if isinstance(self.result, Exception):
            raise self.result
        # A copy: a view would hold the rows of all.
        x = self.state().clone() if self.result is None else self.result
        beside = None if self.begun.beside is None else self.begun.beside(x)
        return End(x, self.step, self.seconds, beside)

    def close(self, end: End | Exception) -> None:
        """Answer, and hold nothing any longer."""
        self.answer(end)
        self.stack = None
        if self.work is not None:
            self.work.solver.close()


class Stack:
    """Members whose solvers are recurrences."""

    def __init__(self, chosen: Sequence[Member]) -> None:
        self.members = chosen
        # A copy in any case: a start is its caller's.
        self.x = torch.cat([member.state() for member in chosen])
        first = chosen[0]
        self._uniform = all(m.recurrence is first.recurrence and m.step == first.step for m in chosen)
        recurrences = {member.recurrence for member in chosen}
        self._table = table_of(tuple(sorted(recurrences, key=id)), self.x.device)
        self._numbers = self._table.numbers.reshape(*self._table.numbers.shape, *(1,) * (self.x.ndim - 1))
        self.velocities = self._merged_velocities(len(self._numbers) - 2)
        self._cond = merge_conditions([member.begun.cond for member in chosen])
        self._steps, self._rows = torch.empty(0), torch.empty(0)
        self._places: Places | None = None
        start = 0
        for member in chosen:
            member.stack, member.start = self, start
            start += member.rows
        if not self._uniform:
            # What a network remembers of one level serves every batch that is asked there; here each row has its own.
            places = [self._table.starts[m.recurrence] + m.step for m in chosen]
            self._steps = _for_each_row(chosen, places, self.x.device)
            if getattr(first.begun.denoiser.network, "remembers_tables", False):
                self._places = Places.by_row(self.x, self._table.levels, self._steps)
            else:
                self._rows = _for_each_row(chosen, range(len(chosen)), self.x.device)

    def _merged_velocities(self, ages: int) -> list[Tensor]:
        """The last velocities of all members, newest first, as many as the next step needs; 0 where there is none."""
        merged = []
        for age in range(ages):
            kept = [
                m.stack.rows_of(m.stack.velocities[age], m)
                if m.stack is not None and age < len(m.stack.velocities)
                else None
                for m in self.members
            ]
            if all(v is None for v in kept):
                break
            pairs = zip(kept, self.members, strict=True)
            merged.append(torch.cat([torch.zeros_like(m.state()) if v is None else v for v, m in pairs]))
        return merged

    def rows_of(self, tensor: Tensor, member: Member) -> Tensor:
        return tensor[member.start : member.start + member.rows]

    def evaluate(self) -> Tensor:
        """The velocity of all rows, from one network call under the driver's `no_grad`: like x, a fresh tensor."""
        first = self.members[0]
        denoiser = first.begun.denoiser
        if self._uniform:
            level, to = first.recurrence.levels[first.step], first.recurrence.to[first.step]
            return denoiser(self.x, level, self._cond, to)
        if self._places is not None:
            return denoiser.at(self.x, self._places, self._cond)
        levels = [member.recurrence.levels[member.step] for member in self.members]
        asked = [member.recurrence.to[member.step] for member in self.members]
        places = Places.by_row(self.x, LevelTable.of(levels, asked), self._rows)
        return denoiser.at(self.x, places, self._cond)

    def advance(self, v: Tensor) -> None:
        """Take the step of every member; v like x, which is kept and may be written."""
        self.velocities.insert(0, v)
        del self.velocities[len(self._numbers) - 1 :]
        if self._uniform:
            first = self.members[0]
            place = self._table.starts[first.recurrence] + first.step
            numbers = self._numbers[:, place : place + 1]
        else:
            numbers = self._numbers.index_select(1, self._steps)
            self._steps.add_(1)
        # Three operations for any window: of few rows, calling an operation costs more than what it computes. No matrix
        # product, which a GPU may round to fewer digits.
        terms = torch.stack([self.x, *self.velocities])
        self.x = terms.mul_(numbers[: len(terms)]).sum(0)


class Driven:
    """Members whose solvers are no recurrences."""

    def __init__(self, chosen: Sequence[Member]) -> None:
        self.members = chosen
        self._cond = merge_conditions([member.begun.cond for member in chosen])

    def evaluate(self) -> Tensor:
        queries = [member.query for member in self.members if member.query is not None]
        x = torch.cat([query.x for query in queries])
        denoiser: Denoiser = self.members[0].begun.denoiser
        levels, to = [query.level for query in queries], [query.to for query in queries]
        if len({*zip(levels, to, strict=True)}) == 1:
            return denoiser(x, levels[0], self._cond, to[0])
        rows = _for_each_row(self.members, range(len(queries)), x.device)
        return denoiser.at(x, Places.by_row(x, LevelTable.of(levels, to), rows), self._cond)

    def advance(self, v: Tensor) -> None:
        for member, rows in zip(
            self.members, torch.split(v, [each.rows for each in self.members]), strict=True
        ):
            try:
                member.query = member.begun.solver.send(rows)
            except StopIteration as stop:
                member.result = stop.value
            except Exception as error:  # noqa: BLE001 - the caller's noise, say: it ends this member alone
                member.result = error


def stack_of(chosen: Sequence[Member], last: Stack | Driven | None) -> Stack | Driven:
    """Return the stack that holds exactly these members, or a new one."""
    if last is not None and last.members is chosen:
        return last
    if chosen[0].begun.recurrence is None:
        return Driven(chosen)
    known = chosen[0].stack
    if known is not None and len(known.members) == len(chosen) and all(m.stack is known for m in chosen):
        return known
    return Stack(chosen)


def _for_each_row(members: Sequence[Member], numbers: Sequence[int], device: torch.device) -> Tensor:
    counts = torch.tensor([member.rows for member in members])
    return on_device(torch.tensor(numbers).repeat_interleave(counts), device)


def merge_conditions(conditions: Sequence[Condition]) -> Condition:
    """Concatenate conditions, which all have the same keys."""
    if not conditions[0]:
        return None
    if len(conditions) == 1:
        return conditions[0]
    return {key: torch.cat([cond[key] for cond in conditions if cond]) for key in conditions[0]}
