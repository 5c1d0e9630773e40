"""Colour transfer between two photographs with their models, compared with optimal transport.

z = ODESolve(x; v_content, sigma_s -> sigma_max),   y = ODESolve(z; v_reference, sigma_max -> sigma_s)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddib_fed.bridge.arrays import Counter
from ddib_fed.bridge.local_party import POINTS_TOGETHER
from ddib_fed.bridge.model import DomainModel
from ddib_fed.bridge.threads import torch_threads
from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.gaussianity import measure
from ddib_fed.diffusion.plans import Plan, SolverSettings, plan
from ddib_fed.extras import extra
from ddib_fed.metrics.points import cycle_error, sliced_w2
from ddib_fed.models.bundle import Bundle
from ddib_fed.paper.colour_cloud import Floats, Photograph, Space, dequantised, from_space, to_space

OnStep = Callable[[int, int], None]

BASELINES = ("emd", "sinkhorn", "linear")
COUPLED = 1_000
"""Pixels of each photograph that EMD and Sinkhorn couple."""
SINKHORN_REGULARISATION = 0.1
"""Of the entropy, for colours in [0, 1] and squared distances: what POT's own example of colours uses."""
SMOOTH = 0.1
"""Default sigma_s, in standard deviations of the photograph's colours."""
JUDGED = 5_000
_JUDGED_SEED, _COUPLED_SEED, _COMPARED_SEED = 5, 42, 11
_COMPARED = 10_000


@dataclass(frozen=True, slots=True)
class Palette:
    """A photograph with the model of its colours in one space."""

    photo: Photograph
    space: Space
    bundle: Bundle


@dataclass(frozen=True, slots=True)
class Recoloured:
    """What became of the colours of a photograph."""

    rgb: Floats
    cpu_seconds: float


def recolour(
    content: Palette,
    reference: Palette,
    settings: SolverSettings,
    *,
    smooth: float = SMOOTH,
    on_step: OnStep | None = None,
    threads: int = 1,
) -> Recoloured:
    """Every colour of `content` through its model's ODE to noise and through `reference`'s to a colour."""
    started = time.process_time()
    points = to_space(content.photo.rgb(), content.space)
    moved = _move(points, (content, reference), settings, smooth, on_step, threads)[-1]
    return Recoloured(from_space(moved, reference.space), time.process_time() - started)


def judge(
    content: Palette,
    reference: Palette,
    settings: SolverSettings,
    *,
    smooth: float = SMOOTH,
    threads: int = 1,
) -> dict[str, Any]:
    """Statistics of the latents of random pixels without smoothing, and how far colours come back with it."""
    photo = content.photo
    cells = dequantised(photo, content.space, JUDGED, _JUDGED_SEED)
    latent = _move(cells, (content,), settings, 0.0, None, threads)[0]
    colours = photo.rgb()[photo.drawn(JUDGED, _JUDGED_SEED)]
    path = (content, reference, content)
    there = _move(to_space(colours, content.space), path[:2], settings, smooth, None, threads)[-1]
    back = _move(there, path[1:], settings, smooth, None, threads)[-1]
    error = cycle_error(127.5 * colours, 127.5 * from_space(back, content.space))
    return {"latent": asdict(measure(torch.from_numpy(latent))), "round_trip": dict(error)}


def baselines(content: Photograph, reference: Photograph, space: Space) -> dict[str, Recoloured]:
    """The colours of `content` moved by each of `BASELINES` in a space."""
    ot = _pot()
    # POT's example has colours in [0, 1], which is what its regularisation is for.
    source, target = ((to_space(photo.rgb(), space) + 1) / 2 for photo in (content, reference))
    some = source[content.drawn(COUPLED, _COUPLED_SEED)]
    others = target[reference.drawn(COUPLED, _COUPLED_SEED + 1)]
    # POT's default would be its continuous map, in logarithms: minutes instead of seconds for a photograph.
    entropic = ot.da.SinkhornTransport(
        reg_e=SINKHORN_REGULARISATION, method="sinkhorn", out_of_sample_map="ferradans", tol=1e-6
    )
    coupled = {"emd": ot.da.EMDTransport(), "sinkhorn": entropic}
    found: dict[str, Recoloured] = {}
    for name, transport in coupled.items():
        started = time.process_time()
        moved = transport.fit(Xs=some, Xt=others).transform(Xs=source, batch_size=4096)
        found[name] = Recoloured(from_space(2 * moved - 1, space), time.process_time() - started)
    started = time.process_time()
    moved = gaussian_map(source, content.counts, target, reference.counts)
    found["linear"] = Recoloured(from_space(2 * moved - 1, space), time.process_time() - started)
    return found


def gaussian_map(
    source: Floats, weights: NDArray[np.int64], target: Floats, target_weights: NDArray[np.int64]
) -> Floats:
    """Points (K, 3) moved by the optimal map between Gaussians of the two weighted clouds' mean and covariance."""
    means = (np.average(source, axis=0, weights=weights), np.average(target, axis=0, weights=target_weights))
    covariances = (
        np.cov(source.T, fweights=weights, ddof=0),
        np.cov(target.T, fweights=target_weights, ddof=0),
    )
    matrix, offset = _pot().gaussian.bures_wasserstein_mapping(*means, *covariances)
    moved: Floats = source @ matrix + offset
    return moved


def figures(
    content: Photograph, reference: Photograph, ours: Recoloured, others: Mapping[str, Recoloured]
) -> dict[str, Any]:
    """How far DDIB's picture is from each other map's, and how near each comes to the reference's colours."""
    pictures = {
        "ddib": ours.rgb,
        **{name: other.rgb for name, other in others.items()},
        "content": content.rgb(),
    }
    clipped = {name: np.clip(rgb, -1, 1) for name, rgb in pictures.items()}

    def mse(first: str, second: str) -> float:
        per_colour = np.square(clipped[first] - clipped[second]).mean(axis=1)
        return float(np.average(per_colour, weights=content.counts))

    drawn, wanted = content.drawn(_COMPARED, _COMPARED_SEED), reference.drawn(_COMPARED, _COMPARED_SEED)
    goal = reference.rgb()[wanted]
    again = reference.rgb()[reference.drawn(_COMPARED, _COMPARED_SEED + 1)]
    names = list(others)
    return {
        "mse": {name: mse("ddib", name) for name in [*names, "content"]},
        "between": {f"{a}-{b}": mse(a, b) for i, a in enumerate(names) for b in names[i + 1 :]},
        "colours": {name: sliced_w2(rgb[drawn], goal) for name, rgb in clipped.items()}
        | {"floor": sliced_w2(again, goal)},
        "outside": {name: _outside(pictures[name], content) for name in ["ddib", *names]},
        "cpu_seconds": {
            "ddib": round(ours.cpu_seconds, 2),
            **{n: round(o.cpu_seconds, 2) for n, o in others.items()},
        },
    }


def _outside(rgb: Floats, photo: Photograph) -> float:
    beyond = (np.abs(rgb) > 1 + 1 / 255).any(axis=1)
    return float(photo.counts[beyond].sum() / photo.counts.sum())


def _move(
    points: Floats,
    path: tuple[Palette, ...],
    settings: SolverSettings,
    smooth: float,
    on_step: OnStep | None,
    threads: int,
) -> list[Floats]:
    """Points (N, 3) encoded by the first of the path and, if there is a second, decoded by it: latent, colours."""
    models = [DomainModel(palette.bundle) for palette in path]
    plans = [_plan(settings, palette, smooth) for palette in path]
    x = models[0].normalise(points.astype(np.float32))
    shrink = float(1.0 / np.hypot(1.0, smooth))
    starts = range(0, len(x), POINTS_TOGETHER)
    tell = Counter(settings.evaluations * len(path) * len(starts), on_step)
    latents, colours = [], []
    with torch_threads(threads):
        for start in starts:
            part = models[0].tensor(x[start : start + POINTS_TOGETHER]) * shrink
            latent = integrate(plans[0].encoder(part), models[0].plain, on_step=tell)
            latents.append(latent.numpy())
            if len(path) > 1:
                moved = integrate(plans[1].decoder(latent), models[1].plain, on_step=tell)
                colours.append((moved / shrink).numpy())
    stages: list[Floats] = [np.concatenate(latents).astype(np.float64)]
    if colours:
        stages.append(models[1].denormalise(np.concatenate(colours)).astype(np.float64))
    return stages


def _plan(settings: SolverSettings, palette: Palette, smooth: float) -> Plan:
    laid = plan(settings, palette.bundle.schedule, soften_sigma=smooth)
    return replace(laid, decode_grid=laid.encode_grid.reversed())


def _pot() -> Any:
    what = "comparing with optimal transport needs POT, which is not installed"
    with extra("colours", "POT", what, otherwise="--no-baselines"):
        import ot
    return ot
