"""Trajectories, and those that are stepped together: one state for all their rows, one network call, one update.

A `Trajectory` is a piece of work that any holder of the same bundle can do. In a `Stack`, rows keep their own level,
class and weights.
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

from ddib_fed.diffusion.denoiser import Condition, Denoiser, LevelTable, Places, on_device
from ddib_fed.diffusion.plans import SolverSettings, soften
from ddib_fed.diffusion.solvers import Draw, OnStep, Recurrence, integrate, needed, table_of
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Control, Leg, RowDraw, Stage
from ddib_fed.record import UNGUIDED, Guidance


class End(NamedTuple):
    """Where a trajectory ends, (N, *sample_shape); what is integrated together shares the seconds by its rows.

    Behind an autoencoder `beside` is what the ODE began with, of encoding, and the samples in its units, of decoding.
    """

    x: Tensor
    evaluations: int
    seconds: float = 0.0
    beside: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Integration:
    """The state where a trajectory begins, how it goes on, and from where it ends to `End.beside`."""

    x: Tensor
    steps: Recurrence
    denoiser: Denoiser
    cond: Condition = None
    draw: Draw | None = None
    beside: Callable[[Tensor], Tensor | None] = lambda _: None

    def run(self, on_step: Callable[[], object] | None = None) -> Tensor:
        """Integrate alone, on the calling thread."""
        end = integrate(self.x, self.steps, self.denoiser, cond=self.cond, draw=self.draw, on_step=on_step)
        return self.leave(end)

    def leave(self, state: Tensor) -> Tensor:
        return self.denoiser.leave(state, self.steps.levels[-1])


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
        beside: Callable[[Tensor], Tensor | None] = lambda _: None  # noqa: E731
        if self.pixels and (codec := model.codec) is not None:
            if encoding:
                noise = None if self.noise is None else on_device(self.noise, model.device)
                x = model.into_basis(soften(codec.encode(x), sigma, noise), self.leg.calibration)
                began = x.clone()  # a solver may write its start
                beside = lambda _: began  # noqa: E731
            else:
                basis, sides = self.leg.calibration, model.sample_shape[1:]
                beside = lambda end: codec.decode(model.out_of_basis(end, basis), sides)  # noqa: E731
        steps, guidance, share = laid.encoder if encoding else laid.decoder, self.guidance, self.share
        drawn = None if draw is None else lambda step: model.tensor(draw(step, slice(0, self.rows)))
        denoiser = model.denoiser(guidance, self.leg.calibration, share, whitened=steps.whitened)
        return Integration(denoiser.enter(x, steps.levels[0]), steps, denoiser, cond, drawn, beside)


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
    error: Exception | None = None  # of its noise
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
    def steps(self) -> Recurrence:
        return self.begun.steps

    @property
    def stream_rows(self) -> int:
        return self.trajectory.leg.stream_rows if self.trajectory.stage == "encode" else 0

    def begin(self, work: Integration) -> None:
        self.work, self.kind = work, (self.kind, work.steps.whitened)

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
        """Where it is after its last step; raise the error of its noise."""
        if self.error is not None:
            raise self.error
        # A copy: a view would hold the rows of all.
        x = self.begun.leave(self.state().clone())
        return End(x, self.step, self.seconds, self.begun.beside(x))

    def close(self, end: End | Exception) -> None:
        """Answer, and hold nothing any longer."""
        self.answer(end)
        self.stack = None


class Stack:
    """Members that are stepped together."""

    def __init__(self, chosen: Sequence[Member]) -> None:
        self.members = chosen
        # A copy in any case: a start is its caller's.
        self.x = torch.cat([member.state() for member in chosen])
        first = chosen[0]
        self._uniform = all(m.steps is first.steps and m.step == first.step for m in chosen)
        self._table = table_of(tuple(sorted({m.steps for m in chosen}, key=id)), self.x.device)
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
            places = [self._table.starts[m.steps] + m.step for m in chosen]
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
            level = first.steps.levels[first.step]
            return denoiser(self.x, level, self._cond, first.steps.to(first.step))
        if self._places is not None:
            return denoiser.at(self.x, self._places, self._cond)
        levels = [member.steps.levels[member.step] for member in self.members]
        asked = [member.steps.to(member.step) for member in self.members]
        places = Places.by_row(self.x, LevelTable.of(levels, asked), self._rows)
        return denoiser.at(self.x, places, self._cond)

    def advance(self, v: Tensor) -> None:
        """Take the step of every member; v like x, which is kept and may be written."""
        self.velocities.insert(0, v)
        del self.velocities[len(self._numbers) - 1 :]
        if self._uniform:
            first = self.members[0]
            place = self._table.starts[first.steps] + first.step
            numbers = self._numbers[:, place : place + 1]
        else:
            numbers = self._numbers.index_select(1, self._steps)
            self._steps.add_(1)
        # Three operations for any window: of few rows, calling an operation costs more than what it computes. No matrix
        # product, which a GPU may round to fewer digits.
        terms = torch.stack([self.x, *self.velocities])
        self.x = terms.mul_(numbers[: len(terms)]).sum(0)
        for member in self.members:
            if member.steps.noise and (amount := member.steps.noise[member.step]):
                try:
                    noise = needed(member.begun.draw)(member.step)
                    self.rows_of(self.x, member).add_(noise.to(self.x), alpha=amount)
                except Exception as error:  # noqa: BLE001 - of the caller's noise: it ends this member alone
                    member.error = error


def stack_of(chosen: Sequence[Member], last: Stack | None) -> Stack:
    """Return the stack that holds exactly these members, or a new one."""
    if last is not None and last.members is chosen:
        return last
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
