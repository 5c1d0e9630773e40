"""Learned steps: where a solver steps on one model, in one direction, with a given number of evaluations.

`ddib model tune` finds them (LD3, arXiv 2405.15506). They are a model's own: a settings message names only
the grid "learned" and the number, so neither a contract nor the other node depends on them. The rule: what was not
learned is refused by name, never replaced by something near it. One exception, which is exact about its ends: data
that were not softened may be encoded along the learned way of decoding, reversed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from ddib_fed.diffusion.levels.grids import Grid, grid_of
from ddib_fed.diffusion.schedule import Schedule
from ddib_fed.errors import SettingsInvalid

LEARNED_GRID = "learned"
Coordinates = Literal["angle", "spectrum"]
"""In which a leg is integrated: x itself over the angle phi, or whitened pictures over lambda (`Frame`)."""
Stage = Literal["encode", "decode"]
Scale = float | Tensor
# How far an end of learned steps may lie from that of the leg, in lambda; a fortieth of the smallest step in use.
END_TOLERANCE = 1e-3
TUNE = "ddib model tune MODEL --evaluations"


class Frame(Protocol):
    """Other coordinates of the state, integrated over lambda, in which the linear part of the ODE stands still.

    `alpha` and `sigma` are those of the level, as numbers or as tensors without dimensions.
    """

    def enter(self, x: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """The state of x (N, *sample_shape), its shape."""

    def leave(self, state: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """The x of a state, its shape."""

    def slope(self, v: Tensor, state: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        """The derivative of a state by lambda, from v at the x that it stands for; its shape."""


@dataclass(frozen=True, slots=True)
class LearnedSteps:
    """The steps of one leg.

    Attributes:
        stage: The direction that they were learned for.
        evaluations: Intervals, and network evaluations.
        sigma: Of encoding, the noise level to which data are softened before; 0 for none.
        order: Of unipc, 1 to 5.
        coordinates: In which it integrates.
        lams: lambda of each level, strictly falling: from data to noise, also of decoding.
    """

    stage: Stage
    evaluations: int
    sigma: float
    order: int
    coordinates: Coordinates
    lams: tuple[float, ...]

    def grid(self, schedule: Schedule, start: float, end: float) -> Grid:
        """The grid from data to noise, its ends set to lambda `start` and `end` exactly.

        Raises:
            SettingsInvalid: They were learned for other ends.
        """
        if abs(self.lams[0] - start) > END_TOLERANCE or abs(self.lams[-1] - end) > END_TOLERANCE:
            raise SettingsInvalid(
                f"the learned steps go from lambda {self.lams[0]:.3f} to {self.lams[-1]:.3f}, the model from "
                f"{start:.3f} to {end:.3f}",
                hint=f"{TUNE} {self.evaluations} learns them again",
            )
        inner = (schedule.level(lam) for lam in self.lams[1:-1])
        return grid_of(schedule, (schedule.level(start), *inner, schedule.level(end)))


@dataclass(frozen=True, slots=True)
class LearnedLegs:
    """All the learned steps of a model.

    Attributes:
        model: Its name, for errors.
        legs: The steps.
    """

    model: str = "this model"
    legs: tuple[LearnedSteps, ...] = ()

    def find(self, stage: Stage, evaluations: int, sigma: float = 0.0) -> LearnedSteps:
        """The steps of a leg.

        Raises:
            SettingsInvalid: There are none of this number, or none of this softening; the message says which there are.
        """
        counts = sorted({leg.evaluations for leg in self.legs})
        if evaluations not in counts:
            raise SettingsInvalid(
                f"{self.model} has learned steps of {_listed(counts)} evaluations, not of {evaluations}",
                hint=_instead(counts, evaluations),
                facts={"evaluations": evaluations, "learned": _listed(counts)},
            )
        there = [leg for leg in self.legs if leg.evaluations == evaluations]
        for leg in there:
            if leg.stage == stage and math.isclose(leg.sigma, sigma, rel_tol=1e-6):
                return leg
        reverse = next((leg for leg in there if leg.stage == "decode"), None)
        if stage == "encode" and sigma == 0.0 and reverse is not None:
            return reverse
        levels = sorted({leg.sigma for leg in there if leg.stage == stage})
        raise SettingsInvalid(
            f"{self.model} has learned to {stage} from softening {_listed(levels)}, not from {sigma:g}",
            hint=f"leave --soften-sigma out, or {TUNE} {evaluations} --soften-sigma {sigma:g}",
            facts={"soften_sigma": sigma, "learned": _listed(levels)},
        )


def _instead(counts: list[int], evaluations: int) -> str:
    tune = f"on the model's node: {TUNE} {evaluations}"
    return f"--evaluations {counts[0]}, or {tune}" if counts else f"--grid default, or {tune}"


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{value:g}" for value in values) or "no"
