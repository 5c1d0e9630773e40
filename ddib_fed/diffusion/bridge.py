"""The bridge (Su et al., Dual Diffusion Implicit Bridges, arXiv 2203.08382, algorithm 1) in one process.

    z = ODESolve(x; v_A, data -> noise),   y = ODESolve(z; v_B, noise -> data)

A driver advances a solver under `no_grad`, on one thread, and always closes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddib_fed.diffusion.denoiser import Condition, Denoiser
from ddib_fed.diffusion.plans import SolverSettings, plan
from ddib_fed.diffusion.schedule import Schedule
from ddib_fed.diffusion.solvers import Draw, Solver
from ddib_fed.errors import SettingsInvalid, ShapeMismatch

# Told (evaluations done, evaluations in all) after each evaluation.
OnStep = Callable[[int, int], None]
DEFAULT_SETTINGS = SolverSettings()


def integrate(
    solver: Solver, denoiser: Denoiser, *, on_step: OnStep | None = None, evaluations: int = 0
) -> Tensor:
    """Drive one solver with one network to its end.

    Args:
        solver: A fresh generator of `Query`.
        denoiser: Answers them.
        on_step: Called after each evaluation with (done, `evaluations`); what it raises ends the integration.
        evaluations: How many there will be, for `on_step`.

    Returns:
        What the solver returns.
    """
    with torch.no_grad():
        try:
            query = next(solver)
            done = 0
            while True:
                v = denoiser(query.x, query.level, query.cond, query.to)
                done += 1
                if on_step is not None:
                    on_step(done, evaluations)
                query = solver.send(v)
        except StopIteration as stop:
            result: Tensor = stop.value
            return result
        finally:
            solver.close()


def soften(x: Tensor, soften_sigma: float, noise: Tensor | None) -> Tensor:
    """Diffuse x forward to the noise level sigma / alpha = `soften_sigma`: alpha x + sigma noise, shape of x."""
    if soften_sigma == 0.0:
        return x
    if not 0.0 < soften_sigma <= 1.0:
        raise SettingsInvalid(f"soften_sigma {soften_sigma} is outside [0, 1]")
    if noise is None or noise.shape != x.shape:
        raise SettingsInvalid("softening needs noise of the shape of what is softened")
    alpha = 1.0 / math.hypot(1.0, soften_sigma)
    return alpha * x + (alpha * soften_sigma) * noise


def encode(
    x: Tensor,
    denoiser: Denoiser,
    schedule: Schedule,
    settings: SolverSettings = DEFAULT_SETTINGS,
    *,
    cond: Condition = None,
    on_step: OnStep | None = None,
    soften_sigma: float = 0.0,
    noise: Tensor | None = None,
) -> Tensor:
    """The latent of x.

    Args:
        x: Data (N, *sample_shape), float32 or float64, normalised as the model's training data.
        denoiser: The domain's network.
        schedule: Its schedule.
        settings: How to integrate.
        cond: Handed to the network.
        on_step: Called with (done, evaluations).
        soften_sigma: Noise level reached by forward diffusion before the ODE; 0 for none.
        noise: Standard normal, shape of x, for softening.

    Returns:
        Shape and dtype of x.

    Raises:
        SettingsInvalid: Settings that do not exist, do not divide, do not fit, or draw noise.
    """
    steps = plan(settings, schedule, soften_sigma=soften_sigma)
    solver = steps.encoder(soften(x, soften_sigma, noise), cond)
    return integrate(solver, denoiser, on_step=on_step, evaluations=steps.evaluations)


def decode(
    z: Tensor,
    denoiser: Denoiser,
    schedule: Schedule,
    settings: SolverSettings = DEFAULT_SETTINGS,
    *,
    cond: Condition = None,
    on_step: OnStep | None = None,
    draw: Draw | None = None,
) -> Tensor:
    """The sample whose latent, of that depth, is z (N, *sample_shape); arguments and errors as in `encode`.

    With `eta` above 0, or as DDPM, one of its samples: `draw` gives the noise of each step, and must be there.
    """
    steps = plan(settings, schedule)
    solver = steps.decoder(z, cond, draw)
    return integrate(solver, denoiser, on_step=on_step, evaluations=steps.evaluations)


# Nearer to 0 or pi than this the formula divides by nothing, or the way round is not determined.
SMALLEST_ANGLE = 1e-4


def interpolate(start: Tensor, end: Tensor, weights: Sequence[float]) -> Tensor:
    """Latents on the way from `start` to `end` on the sphere.

    Args:
        start: One latent (*sample_shape), floating, not zero.
        end: Another, of the same shape, dtype and device.
        weights: Where on the way, each in [0, 1]; 0 gives `start`, 1 gives `end`.

    Returns:
        (number of weights, *sample_shape), dtype of `start`.

    Raises:
        ShapeMismatch: The two differ in shape.
        SettingsInvalid: A weight outside [0, 1].
    """
    if start.shape != end.shape:
        raise ShapeMismatch(
            f"there is no way between latents of shapes {tuple(start.shape)} and {tuple(end.shape)}"
        )
    if not all(0.0 <= weight <= 1.0 for weight in weights):
        raise SettingsInvalid("weights between two latents are in [0, 1]")
    theta = angle(start, end)
    shares = [(1.0 - w, w) for w in weights]
    if SMALLEST_ANGLE < theta < math.pi - SMALLEST_ANGLE:
        shares = [
            (math.sin(a * theta) / math.sin(theta), math.sin(b * theta) / math.sin(theta)) for a, b in shares
        ]
    return torch.stack([a * start + b * end for a, b in shares])


def angle(start: Tensor, end: Tensor) -> float:
    """The angle between two latents seen as vectors, in [0, pi]; pi / 2 within a few percent for independent ones."""
    a, b = start.double().flatten(), end.double().flatten()
    # atan2 of the two halves keeps its digits where acos of a product near 1 loses them (Kahan).
    a, b = a / a.norm(), b / b.norm()
    return 2.0 * math.atan2(float((a - b).norm()), float((a + b).norm()))
