"""The training objectives: what the network is asked of noisy samples, and what it should answer.

With x = alpha x_0 + sigma eps the network learns v = alpha eps - sigma x_0 (arXiv 2202.00512), eps, or of flow matching
eps - x_0 from x / (alpha + sigma), by squared error.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from ddib_fed.diffusion.denoiser import Parameterisation, TimeInput, network_times, on_device
from ddib_fed.diffusion.schedule import DiscreteSchedule, Schedule, make_grid

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


class Question(NamedTuple):
    x: Tensor
    times: Tensor
    target: Tensor


def ask(
    schedule: Schedule,
    parameterisation: Parameterisation,
    time_input: TimeInput,
    x0: Tensor,
    eps: Tensor,
    lams: Tensor,
) -> Question:
    """Return the question for clean samples and noise (B, C, ...) at lambdas (B,), float64, on the CPU."""
    scales = [torch.sigmoid(sign * 2 * lams.double()).sqrt() for sign in (1, -1)]
    table = torch.stack([*scales, schedule.t_of_lam(lams)], dim=1)
    times = network_times(table, time_input)
    alpha, sigma = (
        on_device(scale.float().reshape(-1, *(1,) * (x0.ndim - 1)), x0.device) for scale in scales
    )
    x, on = alpha * x0 + sigma * eps, on_device(times.float(), x0.device)
    if parameterisation == "flow":
        return Question(x / (alpha + sigma), on, eps - x0)
    return Question(x, on, eps if parameterisation == "eps" else alpha * eps - sigma * x0)


class PointBatch(NamedTuple):
    x: Tensor
    times: Tensor
    rows: Tensor
    target: Tensor


def make_batch(x0: Tensor, eps: Tensor, lams: Tensor, *, reference: int, first: int = 0) -> PointBatch:
    """Return noisy points with their targets, all or some rows of a batch; row i of the batch has the level i mod K."""
    rows = torch.arange(first, first + len(eps), device=x0.device) % len(lams)
    own = x0[first : first + len(eps)]
    alpha = torch.sigmoid(2 * lams).sqrt().float()[rows, None]
    sigma = torch.sigmoid(-2 * lams).sqrt().float()[rows, None]
    x = alpha * own + sigma * eps
    if reference:
        target = (alpha * x - posterior_mean(x, alpha, sigma, x0, reference, first=first)) / sigma
    else:
        target = alpha * eps - sigma * own
    return PointBatch(x, lams.float(), rows, target)


def make_step_batch(
    x0: Tensor, eps: Tensor, u: Tensor, schedule: DiscreteSchedule, *, first: int = 0
) -> PointBatch:
    """Return the public code's objective: noisy points at integer steps, and the noise as the target."""
    rows = torch.arange(first, first + len(eps), device=x0.device) % len(u)
    steps = (u.double() * schedule.steps).long().clamp_max(schedule.steps - 1)
    table = torch.tensor(schedule.at_steps(steps.tolist()), dtype=torch.float64)
    alpha, sigma, times = on_device(table, x0.device, x0.dtype).unbind(1)
    own = x0[first : first + len(eps)]
    return PointBatch(alpha[rows, None] * own + sigma[rows, None] * eps, times, rows, eps)


def posterior_mean(
    x: Tensor, alpha: Tensor, sigma: Tensor, x0: Tensor, reference: int, *, first: int = 0
) -> Tensor:
    """Return E[x_0 | x] where x_0 is one of the `reference` clean points in x's stretch of the batch."""
    ratio = (alpha / sigma).square()
    asked = torch.cat([ratio / alpha * x, -0.5 * ratio], dim=1)
    keys = torch.cat([x0, x0.square().sum(1, keepdim=True)], dim=1)
    values = torch.cat([x0, torch.zeros_like(x0[:, :1])], dim=1)  # kernels want values as wide as keys
    # Rows up to the end of a stretch that began before them, whole stretches, rows of one that ends after them.
    lead = min(-first % reference, len(x))
    tail = (len(x) - lead) % reference
    means: list[Tensor] = []
    counts = [count for count in (lead, len(x) - lead - tail, tail) if count]
    for part in torch.split(asked, counts):
        start = first // reference * reference
        first += len(part)
        sets = max(1, len(part) // reference)
        among = slice(start, start + sets * reference)
        query, key, value = (
            rows.view(sets, 1, -1, rows.shape[1]) for rows in (part, keys[among], values[among])
        )
        seen = functional.scaled_dot_product_attention(query, key, value, scale=1.0)
        means.append(seen.reshape(len(part), -1)[:, :-1])
    return torch.cat(means)
