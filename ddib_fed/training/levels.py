"""Noise levels with weights from uniform numbers, in one of three ways.

grid                  half as the default grid places its nodes, half uniform in the angle (`LambdaSampler`)
uniform               uniform in the schedule's time t, as the public code
loss-second-moment    t in proportion to sqrt(E[loss^2]), weighted so that the loss stays the uniform one's
                      (Nichol and Dhariwal, arXiv 2102.09672, section 3.3)
"""

from __future__ import annotations

import torch
from torch import Tensor

from ddib_fed.diffusion.levels.grids import make_grid
from ddib_fed.diffusion.schedule import Schedule

BINS = 64
HISTORY = 10
FLOOR = 0.001
"""Share of uniform draws that remains, so that no bin starves."""

_TABLE = 4096


class LambdaSampler:
    """Noise levels from uniform numbers: half as the default grid places its nodes, half uniform in the angle phi."""

    def __init__(self, schedule: Schedule) -> None:
        nodes = make_grid(schedule, "default", _TABLE).levels
        self._lams = torch.tensor([level.lam for level in nodes], dtype=torch.float64)
        angle = torch.atan(torch.exp(-self._lams))
        placed = torch.linspace(0, 1, _TABLE + 1, dtype=torch.float64)
        self._mass = 0.5 * placed + 0.5 * (angle - angle[0]) / (angle[-1] - angle[0])

    def __call__(self, u: Tensor) -> Tensor:
        high = torch.searchsorted(self._mass, u.double(), right=True).clamp(1, _TABLE)
        low = high - 1
        weight = (u.double() - self._mass[low]) / (self._mass[high] - self._mass[low])
        return torch.lerp(self._lams[low], self._lams[high], weight)


class GridSampler:
    """The default: levels as `LambdaSampler` places them, all of weight 1, and nothing is learned."""

    def __init__(self, schedule: Schedule) -> None:
        self._lambdas = LambdaSampler(schedule)

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._lambdas(u), torch.ones(len(u), dtype=torch.float64)

    def learn(self, lams: Tensor, losses: Tensor) -> None:
        """Take in the losses (B,) at lambdas (B,)."""

    def state(self) -> dict[str, Tensor]:
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take a state that was stored."""


class UniformSampler(GridSampler):
    """Uniform in t over the usable range."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        ends = torch.tensor([schedule.lambda_max, schedule.lambda_min], dtype=torch.float64)
        self._first, self._last = schedule.t_of_lam(ends).tolist()

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self.lambdas(u), torch.ones(len(u), dtype=torch.float64)

    def lambdas(self, place: Tensor) -> Tensor:
        """Lambdas at places in [0, 1] of the range of t."""
        t = self._first + (self._last - self._first) * place.double()
        lams: Tensor = self._schedule.lam(t).clamp(self._schedule.lambda_min, self._schedule.lambda_max)
        return lams

    def places(self, lams: Tensor) -> Tensor:
        places: Tensor = (self._schedule.t_of_lam(lams) - self._first) / (self._last - self._first)
        return places


class SecondMomentSampler(UniformSampler):
    """Importance sampling of t in `BINS` bins; uniform until every bin has `HISTORY` losses."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(schedule)
        self._losses = torch.zeros(BINS, HISTORY, dtype=torch.float64)
        self._seen = torch.zeros(BINS, dtype=torch.int64)

    def draw(self, u: Tensor) -> tuple[Tensor, Tensor]:
        shares = self.shares()
        mass = torch.cat([torch.zeros(1, dtype=torch.float64), shares.cumsum(0)])
        mass[-1] = 1.0
        chosen = (torch.searchsorted(mass, u.double(), right=True) - 1).clamp(0, BINS - 1)
        within = (u.double() - mass[chosen]) / shares[chosen]
        return self.lambdas((chosen + within.clamp(0, 1)) / BINS), 1.0 / (BINS * shares[chosen])

    def shares(self) -> Tensor:
        """Probability of each bin (BINS,), float64."""
        even = torch.full((BINS,), 1.0 / BINS, dtype=torch.float64)
        if bool((self._seen < HISTORY).any()):
            return even
        moments = self._losses.square().mean(1).sqrt()
        return (1 - FLOOR) * moments / moments.sum() + FLOOR * even

    def learn(self, lams: Tensor, losses: Tensor) -> None:
        bins = (self.places(lams) * BINS).long().clamp(0, BINS - 1)
        for k, loss in zip(bins.tolist(), losses.double().tolist(), strict=True):
            self._losses[k, self._seen[k] % HISTORY] = loss
            self._seen[k] += 1

    def state(self) -> dict[str, Tensor]:
        return {"losses": self._losses, "seen": self._seen}

    def restore(self, state: dict[str, Tensor]) -> None:
        self._losses.copy_(state["losses"])
        self._seen.copy_(state["seen"])


def level_sampler(name: str, schedule: Schedule) -> GridSampler:
    kinds = {"grid": GridSampler, "uniform": UniformSampler, "loss-second-moment": SecondMomentSampler}
    return kinds[name](schedule)
