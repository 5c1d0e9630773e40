"""How far a flow map is from its teacher, on held-out samples: the figures of a distilled model's manifest."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.bridge import decode, integrate, soften
from ddib_fed.diffusion.denoiser import Condition, Denoiser
from ddib_fed.diffusion.plans import FLOW_MAP, SolverSettings, plan
from ddib_fed.diffusion.schedule import Schedule
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.manifest import Distilled, DistilledError
from ddib_fed.training.distil.starts import Starts

EVALUATIONS = (1, 2, 4, 8)
REFERENCE = SolverSettings("unipc", 3, 96)
"""How the teacher answers: twice the default's evaluations."""
GRIDS = ("default", "uniform-lambda")
"""Where steps may end; neither is the better one for every model."""
_AT_ONCE = 1 << 18
"""Numbers of the samples in one network call."""
_SEED = 40_961


def measured(
    teacher: Bundle, network: nn.Module, starts: Starts, most: int, device: torch.device
) -> Distilled:
    """Distances between the answers of a flow map and of its teacher, on the grid on which they are least."""
    manifest = teacher.manifest
    student = Denoiser(network, manifest.parameterisation, manifest.time_input)
    master = teacher.denoiser(device=device)
    found: dict[tuple[str, int], list[Tensor]] = {
        (grid, count): [] for grid in GRIDS for count in EVALUATIONS
    }
    clean = torch.from_numpy(starts.held_out[:most])
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(_SEED))
    labels = None if starts.held_out_labels is None else torch.from_numpy(starts.held_out_labels[:most])
    schedule, sigma = teacher.schedule, manifest.soften_sigma
    for rows in _parts(clean):
        x = soften(clean[rows], sigma, noise[rows]).to(device)
        classes = labels is not None and manifest.num_classes is not None
        cond: Condition = {"y": labels[rows].to(device)} if classes and labels is not None else None
        # The softened sample is what is encoded, and so what a round trip comes back to.
        latent = _encode(x, master, schedule, REFERENCE, sigma, cond)
        back = decode(latent, master, schedule, REFERENCE, cond=cond)
        for (grid, count), kept in found.items():
            settings = SolverSettings(FLOW_MAP, evaluations=count, grid=grid)
            own = _encode(x, student, schedule, settings, sigma, cond)
            distances = (
                _distance(own, latent),
                _distance(decode(latent, student, schedule, settings, cond=cond), back),
                _distance(decode(own, student, schedule, settings, cond=cond), x),
            )
            kept.append(torch.stack(distances).cpu())
    errors = {
        grid: tuple(_summary(count, torch.cat(found[grid, count], dim=1).double()) for count in EVALUATIONS)
        for grid in GRIDS
    }
    best = min(GRIDS, key=lambda grid: errors[grid][-1].encode + errors[grid][-1].decode)
    return Distilled(
        teacher=teacher.digest,
        teacher_name=manifest.name,
        solver=REFERENCE.solver,
        evaluations=REFERENCE.evaluations,
        samples=len(clean),
        grid=best,
        errors=errors[best],
    )


def _encode(
    x: Tensor, denoiser: Denoiser, schedule: Schedule, settings: SolverSettings, sigma: float, cond: Condition
) -> Tensor:
    return integrate(plan(settings, schedule, soften_sigma=sigma).encoder(x, cond), denoiser)


def _distance(found: Tensor, expected: Tensor) -> Tensor:
    return (found - expected).flatten(1).square().mean(1).sqrt()


def _summary(evaluations: int, distances: Tensor) -> DistilledError:
    """Of distances (3, N): of latents, of samples, of round trips."""
    medians, high = distances.median(dim=1).values.tolist(), distances.quantile(0.95, dim=1).tolist()
    return DistilledError(
        evaluations=evaluations,
        encode=_short(medians[0]),
        encode_p95=_short(high[0]),
        decode=_short(medians[1]),
        decode_p95=_short(high[1]),
        round_trip=_short(medians[2]),
    )


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def _parts(samples: Tensor) -> Iterator[slice]:
    rows = max(1, _AT_ONCE // samples[0].numel())
    for first in range(0, len(samples), rows):
        yield slice(first, first + rows)
