"""Turns clean points and noise into what the network is asked and what it should answer.

With x = alpha x_0 + sigma eps the network learns v = (alpha x - E[x_0 | x]) / sigma (v-prediction, Salimans and Ho,
arXiv 2202.00512). Plain denoising puts the x_0 that made x in place of the expectation, a target whose variance is
most of the loss. Given the set {x_0^j} of a batch, which of them made x is known only by its posterior

    p(j | x) = softmax_j( -|x - alpha x_0^j|^2 / (2 sigma^2) ),

and its mean is the conditional expectation of the plain target given x and the set: same expectation, hence the same
network in the limit, with less variance (Rao and Blackwell; for scores: Xu, Tong, Jaakkola, arXiv 2302.00670).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ddib_fed.diffusion.grids import make_grid
from ddib_fed.diffusion.schedule import DiscreteSchedule, Schedule

_TABLE = 4096


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of questions and answers.

    Attributes:
        x: Noisy points (B, D).
        times: Time inputs of the network: distinct lambdas, or steps, (K,).
        rows: Which of `times` each point has, (B,) int64.
        target: v, or the noise, (B, D).
    """

    x: Tensor
    times: Tensor
    rows: Tensor
    target: Tensor


class LambdaSampler:
    """Noise levels from uniform numbers: half as the default grid places its nodes, half uniform in the angle phi.

    The first half is where solvers look; the second is where an error moves a point, since dx = v dphi. Both cover
    the range of the schedule to its ends.
    """

    def __init__(self, schedule: Schedule) -> None:
        nodes = make_grid(schedule, "default", _TABLE).levels
        self._lams = torch.tensor([level.lam for level in nodes], dtype=torch.float64)
        angle = torch.atan(torch.exp(-self._lams))
        placed = torch.linspace(0, 1, _TABLE + 1, dtype=torch.float64)
        self._mass = 0.5 * placed + 0.5 * (angle - angle[0]) / (angle[-1] - angle[0])

    def __call__(self, u: Tensor) -> Tensor:
        """Lambdas (K,), float64, from uniforms (K,) in [0, 1)."""
        high = torch.searchsorted(self._mass, u.double(), right=True).clamp(1, _TABLE)
        low = high - 1
        weight = (u.double() - self._mass[low]) / (self._mass[high] - self._mass[low])
        return torch.lerp(self._lams[low], self._lams[high], weight)


def make_batch(x0: Tensor, eps: Tensor, lams: Tensor, *, reference: int) -> Batch:
    """Noisy points with their targets; point i has the noise level i mod K.

    Args:
        x0: Clean points (B, D), float32.
        eps: Standard normal noise (B, D), float32.
        lams: Distinct lambdas (K,), float64; K divides B.
        reference: Points over which a posterior runs, a divisor of B; 0 for the plain target.
    """
    rows = torch.arange(len(x0)) % len(lams)
    alpha = torch.sigmoid(2 * lams).sqrt().float()[rows, None]
    sigma = torch.sigmoid(-2 * lams).sqrt().float()[rows, None]
    x = alpha * x0 + sigma * eps
    if reference:
        target = (alpha * x - posterior_mean(x, alpha, sigma, x0, reference)) / sigma
    else:
        target = alpha * eps - sigma * x0
    return Batch(x, lams.float(), rows, target)


def make_step_batch(x0: Tensor, eps: Tensor, u: Tensor, schedule: DiscreteSchedule) -> Batch:
    """The public code's objective: noisy points at integer steps, and the noise as the target.

    Its steps are uniform and independent. Here those of a batch are uniform and spread evenly, which leaves the
    expectation of the loss as it is and takes some of its variance.

    Args:
        x0: Clean points (B, D); the batch has their dtype.
        eps: Standard normal noise (B, D).
        u: Uniforms (K,) in [0, 1), spread evenly; K divides B.
        schedule: Its steps and their time inputs.
    """
    rows = torch.arange(len(x0)) % len(u)
    steps = (u.double() * schedule.steps).long().clamp_max(schedule.steps - 1)
    table = torch.tensor(schedule.at_steps(steps.tolist()), dtype=torch.float64)
    alpha, sigma, times = table.to(x0.dtype).unbind(1)
    return Batch(alpha[rows, None] * x0 + sigma[rows, None] * eps, times, rows, eps)


def posterior_mean(x: Tensor, alpha: Tensor, sigma: Tensor, x0: Tensor, reference: int) -> Tensor:
    """E[x_0 | x] where x_0 is one of the `reference` clean points in x's stretch of the batch.

    Args:
        x: Noisy points (B, D).
        alpha: Scale of the data (B, 1).
        sigma: Scale of the noise (B, 1).
        x0: Clean points (B, D); row i made row i of x.
        reference: Length of a stretch, a divisor of B.

    Returns:
        (B, D).
    """
    dim = x.shape[1]
    sets = x0.view(-1, reference, dim)
    asked = ((alpha / sigma**2) * x).view(-1, reference, dim)
    curb = (-0.5 * (alpha / sigma) ** 2).view(-1, reference, 1)
    logits = torch.baddbmm(curb * sets.square().sum(-1)[:, None, :], asked, sets.transpose(1, 2))
    return torch.bmm(torch.softmax(logits, dim=-1), sets).view(-1, dim)
