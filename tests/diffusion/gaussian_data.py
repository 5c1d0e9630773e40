"""The exact oracle: for data N(m, S) the networks and the probability-flow ODE are known in closed form."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.denoiser import Condition, Denoiser, LevelTable, Parameterisation, Places, TimeInput
from ddib_fed.diffusion.schedule import Level, Schedule

MEAN = torch.tensor([0.3, -0.2], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.9, 0.4], [0.4, 0.3]], dtype=torch.float64)


class GaussianNetwork(nn.Module):
    """E[eps | x], E[x0 | x] or E[v | x] for x = alpha x0 + sigma eps with x0 ~ N(MEAN, COVARIANCE)."""

    def __init__(
        self, predicts: Parameterisation, dtype: torch.dtype = torch.float64, schedule: Schedule | None = None
    ) -> None:
        super().__init__()
        self.predicts = predicts
        self.schedule = schedule
        self.mean = nn.Parameter(MEAN.to(dtype), requires_grad=False)
        self.covariance = nn.Parameter(COVARIANCE.to(dtype), requires_grad=False)

    def forward(self, x: Tensor, times: Tensor, rows: Tensor | None = None) -> Tensor:
        times = times if rows is None else times[rows]
        alpha, sigma = (scale[:, None].to(x.dtype) for scale in self._scales(times))
        marginal = alpha[..., None] ** 2 * self.covariance + sigma[..., None] ** 2 * torch.eye(
            2, dtype=x.dtype
        )
        whitened = torch.linalg.solve(marginal, (x - alpha * self.mean)[..., None])
        eps = sigma * whitened[..., 0]
        x0 = self.mean + alpha * (self.covariance @ whitened)[..., 0]
        return {"eps": eps, "x0": x0, "v": alpha * eps - sigma * x0}[self.predicts]

    def _scales(self, times: Tensor) -> tuple[Tensor, Tensor]:
        if self.schedule is None:
            return torch.sigmoid(2 * times).sqrt(), torch.sigmoid(-2 * times).sqrt()
        low = torch.full_like(times, self.schedule.lambda_min)
        high = torch.full_like(times, self.schedule.lambda_max)
        for _ in range(50):  # by bisection: times grow with noise
            middle = 0.5 * (low + high)
            noisier = self.schedule.t_of_lam(middle) > times
            low, high = torch.where(noisier, middle, low), torch.where(noisier, high, middle)
        return torch.sigmoid(2 * high).sqrt(), torch.sigmoid(-2 * high).sqrt()


def gaussian_denoiser(
    predicts: Parameterisation = "v",
    dtype: torch.dtype = torch.float64,
    time_input: TimeInput = "lambda",
    schedule: Schedule | None = None,
) -> Denoiser:
    told = schedule if time_input == "timestep" else None
    return Denoiser(GaussianNetwork(predicts, dtype, told), predicts, time_input)


def merged(
    denoiser: Denoiser,
    x: Tensor,
    levels: Sequence[Level],
    counts: Sequence[int],
    cond: Condition = None,
    to: Sequence[Level | None] | None = None,
) -> Tensor:
    """What one network call answers to requests of `counts` rows each, at a level of their own."""
    rows = torch.repeat_interleave(torch.arange(len(levels)), torch.tensor(list(counts)))
    return denoiser.at(x, Places.by_row(x, LevelTable.of(levels, to), rows), cond)


def gaussian_samples(n: int, level: Level, seed: int = 0) -> Tensor:
    """n points of the marginal at `level`, float64."""
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values, basis = torch.linalg.eigh(COVARIANCE)
    scale = (level.alpha**2 * values + level.sigma**2).sqrt()
    return level.alpha * MEAN + noise @ (basis * scale).T


def gaussian_map(x: Tensor, start: Level, end: Level) -> Tensor:
    """The ODE's exact map: each eigencoordinate keeps its number of standard deviations."""
    values, basis = torch.linalg.eigh(COVARIANCE)
    before = (start.alpha**2 * values + start.sigma**2).sqrt()
    after = (end.alpha**2 * values + end.sigma**2).sqrt()
    return end.alpha * MEAN + ((x - start.alpha * MEAN) @ basis * (after / before)) @ basis.T
