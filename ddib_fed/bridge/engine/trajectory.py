"""One leg of some rows, as a piece of work that any holder of the same bundle can do."""

from __future__ import annotations

from collections.abc import Hashable
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.bridge.model.domain_model import DomainModel
from ddib_fed.bridge.party import RowDraw, Stage
from ddib_fed.diffusion.denoiser import Condition, Denoiser
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.recurrence import Recurrence
from ddib_fed.diffusion.solvers import Solver
from ddib_fed.diffusion.transfers import on_device
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.models.units.channel_map import ChannelMap


class Ending(Future[Tensor]):
    """Where a trajectory ends, with how it came there."""

    evaluations: int = 0

    def end(self, x: Tensor, evaluations: int) -> None:
        self.evaluations = evaluations
        self.set_result(x)


@dataclass(frozen=True, slots=True, eq=False)
class Integration:
    """A trajectory on one model."""

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
        """The work on a model."""
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
            model.plans.recurrence(settings, self.sigma, encoding=encoding),
        )
