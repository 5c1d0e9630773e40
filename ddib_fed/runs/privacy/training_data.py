"""What a model tells of its training data: whether a sample was among them, and whether it draws them again."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.bridge.model import DomainModel
from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.metrics import bootstrap
from ddib_fed.metrics.attacks import copies, membership
from ddib_fed.models.privacy import Copies, Figure, Membership
from ddib_fed.runs.privacy.along import Array, latents_along

DRAWS = 400
LEVELS = (2.0, 1.0, 0.0, -1.0)
"""Lambda at which the loss is taken."""
NOISES = 2
"""Draws of noise at each."""
DRAWING = SolverSettings(evaluations=24)


def membership_of(
    model: DomainModel, members: Array, others: Array, *, sigma: float, evaluations: int, seed: int
) -> Membership:
    """How well training samples are distinguished from others, by the norm of the latent and by the model's loss."""
    norms, losses = [], []
    for turn, samples in enumerate((members, others)):
        x = model.normalise(samples)
        z = latents_along(model, x, evaluations=evaluations, sigma=sigma, seed=seed + turn)[1.0]
        norms.append(np.linalg.norm(z.reshape(len(z), -1), axis=1))
        losses.append(-_losses(model, torch.from_numpy(x), seed))
    return Membership(
        soften_sigma=sigma,
        members=len(members),
        others=len(others),
        norm=_area(norms[0], norms[1]),
        loss=_area(losses[0], losses[1]),
    )


def _losses(model: DomainModel, x: Tensor, seed: int) -> NDArray[np.float64]:
    """Mean squared error of the predicted v of each sample, (N,), with the same noise for all."""
    schedule, denoiser = model.bundle.schedule, model.denoiser()
    total = torch.zeros(len(x), dtype=torch.float64)
    size = 16 if model.is_picture else 4_096
    with torch.no_grad():
        for lam in LEVELS:
            level = schedule.level(lam)
            for turn in range(NOISES):
                generator = torch.Generator().manual_seed(seed * NOISES + turn)
                noise = torch.randn(x.shape[1:], generator=generator)
                for start in range(0, len(x), size):
                    part = x[start : start + size]
                    v = denoiser(
                        level.alpha * part + level.sigma * noise, level, model.condition(None, len(part))
                    )
                    wrong = v - (level.alpha * noise - level.sigma * part)
                    total[start : start + size] += wrong.double().flatten(1).square().mean(1)
    found: NDArray[np.float64] = (total / (len(LEVELS) * NOISES)).numpy()
    return found


def _area(inside: NDArray[np.floating], outside: NDArray[np.floating]) -> Figure:
    """The area under the curve, whichever way it tells, with its interval over samples of both sides."""
    value = membership.area(inside, outside)
    sign = 1.0 if value >= 0.5 else -1.0
    rng = np.random.default_rng(0)
    drawn = [
        membership.area(*(sign * rng.choice(each, len(each)) for each in (inside, outside)))
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Figure(value=max(value, 1.0 - value), low=float(low), high=float(high))


def copies_of(model: DomainModel, train: Array, held_out: Array, *, count: int, seed: int) -> Copies:
    """How near what the model draws is to its training pictures (N, C, H, W), beside pictures held out."""
    noise = torch.randn(count, *model.sample_shape, generator=torch.Generator().manual_seed(seed))
    laid = model.plan(DRAWING)
    parts = torch.split(noise, 16)
    drawn = torch.cat(
        [integrate(laid.decoder(part, model.condition(None, len(part))), model.denoiser()) for part in parts]
    )
    pictures = np.clip(model.denormalise(drawn.numpy()), -1.0, 1.0).astype(np.float32)
    own = copies.reduced(train)
    samples, others = (copies.nearest(copies.reduced(each), own) for each in (pictures, held_out))
    near = samples < np.quantile(others, 0.01)
    return Copies(
        drawn=count,
        samples=_median(samples),
        held_out=_median(others),
        near=Figure(**bootstrap.resample(count).mean(near)),
    )


def _median(values: NDArray[np.float64]) -> Figure:
    rng = np.random.default_rng(0)
    drawn = [float(np.median(rng.choice(values, len(values)))) for _ in range(DRAWS)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Figure(value=float(np.median(values)), low=float(low), high=float(high))
