"""Turns two models and points into the stages of a translation, or of a cycle, and the figures about them.

The rule: stages are in the models' normalised units, where the data have unit standard deviation; errors and
distances are taken there. What is written for people to read on is in the units of the data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.bridge.step_noise import check_ancestral, point_draw
from ddib_fed.bridge.threads import torch_threads
from ddib_fed.datasets.synthetic import DOMAINS
from ddib_fed.diffusion.bridge import Side, decode, encode
from ddib_fed.diffusion.gaussianity import measure
from ddib_fed.diffusion.guidance import Clipped
from ddib_fed.diffusion.plans import SolverSettings, check_settings
from ddib_fed.errors import ShapeMismatch
from ddib_fed.files import write_file, write_json
from ddib_fed.metrics import points as metrics
from ddib_fed.models.bundle import Bundle
from ddib_fed.reports import plots
from ddib_fed.samples.points import to_npy

Floats = NDArray[np.float32]
OnStep = Callable[[int, int], None]

BATCH = 5_000
"""Points that are integrated together: enough to keep a core busy, few enough to report progress often."""


@dataclass(frozen=True, slots=True)
class Stages:
    """Clouds (N, D), float32, row i of each being the same point.

    Attributes:
        source: The points, normalised by the source's model.
        latent: Encoded by the source's model.
        target: Decoded by the target's model, normalised by it.
        latent_again: The target encoded by the target's model; None for a translation one way.
        source_again: Decoded by the source's model; None for a translation one way.
        wall_seconds: Of the integrations alone.
        cpu_seconds: Of the integrations alone.
    """

    source: Floats
    latent: Floats
    target: Floats
    latent_again: Floats | None
    source_again: Floats | None
    wall_seconds: float
    cpu_seconds: float

    def named(self) -> list[tuple[str, Floats]]:
        """The stages that there are, with the names of their files."""
        names = ("source", "latent", "target", "latent-again", "source-again")
        clouds = (self.source, self.latent, self.target, self.latent_again, self.source_again)
        return [(name, cloud) for name, cloud in zip(names, clouds, strict=True) if cloud is not None]


def run(
    source: Bundle,
    target: Bundle,
    points: Floats,
    settings: SolverSettings,
    *,
    cycle: bool,
    seed: int = 0,
    clip: bool = False,
    on_step: OnStep | None = None,
    threads: int = 1,
) -> Stages:
    """Translate points of the source's domain to the target's and, for a cycle, back.

    Args:
        source: The source's model.
        target: The target's model.
        points: (N, D) in the units of the source's data.
        settings: How each leg is integrated.
        cycle: Whether to come back.
        seed: Of the noise that decoding draws where the settings say so.
        clip: Hold predictions of the data within [-1, 1], in the models' units, while decoding: the public code's
            clip_denoised, which its scripts for 2-D data leave off.
        on_step: Told (network evaluations done, in all), over all legs and batches.
        threads: Of torch.

    Raises:
        ShapeMismatch: The points, the source and the target do not have the same D.
        SettingsInvalid: Settings that do not exist or do not fit a model's schedule.
    """
    shapes = {points.shape[1:], source.manifest.sample_shape, target.manifest.sample_shape}
    if len(shapes) != 1:
        raise ShapeMismatch(
            f"points are {points.shape[1:]}, {source.manifest.name} takes {source.manifest.sample_shape}, "
            f"{target.manifest.name} takes {target.manifest.sample_shape}"
        )
    for model in (source, target):
        check_ancestral(settings, model.manifest)
    wall, cpu = time.monotonic(), time.process_time()
    x = normalise(source, points)
    sides = source.side(), target.side()
    legs = _legs_of(*sides, settings, clip=clip)[: 4 if cycle else 2]
    counter = _Counter(settings.evaluations * len(legs) * -(-len(x) // BATCH), on_step)
    with torch_threads(threads):
        parts = [
            _walk(torch.from_numpy(part), legs, counter, seed=seed, first=number * BATCH)
            for number, part in enumerate(_batches(x))
        ]
    clouds = [torch.cat(stage).numpy() for stage in zip(*parts, strict=True)]
    spent = (time.monotonic() - wall, time.process_time() - cpu)
    back = clouds[2:] if cycle else [None, None]
    return Stages(x, clouds[0], clouds[1], back[0], back[1], *spent)


def draw(
    bundle: Bundle,
    count: int,
    seed: int,
    settings: SolverSettings,
    folder: Path,
    *,
    clip: bool = False,
    on_step: OnStep | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Decode `count` points from noise and write samples.npy, latent.npy, samples.png and report.json.

    The noise is ordered by angle, so that colour shows from where each point came. `clip` is as in `run`.

    Returns:
        The report.

    Raises:
        SettingsInvalid: Settings that do not exist or do not fit the model's schedule.
    """
    check_ancestral(settings, bundle.manifest)
    dim = bundle.manifest.sample_shape[0]
    noise = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    if dim > 1:
        noise = noise[torch.argsort(torch.atan2(noise[:, 1], noise[:, 0]))]
    wall, cpu = time.monotonic(), time.process_time()
    counter = _Counter(settings.evaluations * -(-count // BATCH), on_step)
    decoding = _decoding(bundle.side(), settings, clip=clip)
    with torch_threads(threads):
        parts = [
            _walk(torch.from_numpy(part), [decoding], counter, seed=seed, first=number * BATCH)[0]
            for number, part in enumerate(_batches(noise.numpy()))
        ]
    cloud = torch.cat(parts).numpy()
    report = {
        "model": _model(bundle),
        "points": count,
        "seed": seed,
        "settings": settings.described(),
        "clip": clip,
        "seconds": {"wall": round(time.monotonic() - wall, 3), "cpu": round(time.process_time() - cpu, 3)},
        "target_cloud": _distances(bundle, cloud, None),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "samples.npy", to_npy(denormalise(bundle, cloud)))
    write_file(folder / "latent.npy", to_npy(noise.numpy()))
    plots.stages([("latent", noise.numpy()), ("samples", cloud)], folder / "samples.png")
    write_json(folder / "report.json", report)
    return report


def normalise(bundle: Bundle, points: Floats) -> Floats:
    """Points from the units of the model's data to unit standard deviation."""
    return bundle.manifest.normalisation.apply(points)


def denormalise(bundle: Bundle, points: Floats) -> Floats:
    """Points from unit standard deviation to the units of the model's data."""
    return bundle.manifest.normalisation.undo(points)


def figures(
    source: Bundle,
    target: Bundle,
    stages: Stages,
    settings: SolverSettings,
    *,
    reference: Floats | None = None,
) -> dict[str, Any]:
    """Everything measured about a run, as JSON values.

    Args:
        source: The source's model.
        target: The target's model.
        stages: What `run` returned.
        settings: What `run` was given.
        reference: Points (M, D) in the units of the target's data to hold the target cloud against; without them
            the target's own domain, if it is a synthetic one.
    """
    checked = check_settings(settings)
    legs = len(stages.named()) - 1
    report: dict[str, Any] = {
        "source": _model(source),
        "target": _model(target),
        "points": len(stages.source),
        "settings": settings.described(),
        "evaluations": {
            "per_leg": checked.evaluations,
            "legs": legs,
            "per_point": checked.evaluations * legs,
        },
        "seconds": {"wall": round(stages.wall_seconds, 3), "cpu": round(stages.cpu_seconds, 3)},
        "latent": asdict(measure(torch.from_numpy(stages.latent))),
        "target_cloud": _distances(target, stages.target, reference),
    }
    if stages.source_again is not None:
        report["cycle"] = dict(metrics.cycle_error(stages.source, stages.source_again))
    return report


def write(folder: Path, source: Bundle, target: Bundle, stages: Stages, report: dict[str, Any]) -> None:
    """Write each stage as .npy, scatter and heat map, all of them in one picture, and report.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    owners = {"source": source, "source-again": source, "target": target}
    for name, cloud in stages.named():
        owner = owners.get(name)
        raw = denormalise(owner, cloud) if owner is not None else cloud
        write_file(folder / f"{name}.npy", to_npy(raw))
        plots.scatter(cloud, folder / f"{name}-scatter.png", title=name.replace("-", " "))
        plots.heatmap(cloud, folder / f"{name}-heatmap.png", title=name.replace("-", " "))
    titles = [(name.replace("-", " "), cloud) for name, cloud in stages.named()]
    picture = "cycle.png" if stages.source_again is not None else "translation.png"
    plots.stages(titles, folder / picture, caption=caption(report))
    write_json(folder / "report.json", report)


def caption(report: dict[str, Any]) -> str:
    """One line on a run, for under its picture."""
    settings = report["settings"]
    text = f"{report['source']['domain']} → {report['target']['domain']}, {report['points']:,} points, "
    text += f"{settings['solver']}, {settings['evaluations']} evaluations a leg"
    if "cycle" in report:
        text += f", cycle error: median {report['cycle']['median']:.1e}, mean {report['cycle']['mean']:.1e}"
    return text


class _Counter:
    """Network evaluations of all legs and batches, told as one count."""

    def __init__(self, total: int, on_step: OnStep | None) -> None:
        self.total, self.done, self._on_step = total, 0, on_step

    def __call__(self, done: int, of: int) -> None:
        del done, of
        self.done += 1
        if self._on_step is not None:
            self._on_step(self.done, self.total)


def _batches(x: Floats) -> Iterator[Floats]:
    for start in range(0, len(x), BATCH):
        yield x[start : start + BATCH]


@dataclass(frozen=True, slots=True)
class _Leg:
    """One way through one model.

    Attributes:
        side: The model.
        settings: How.
        number: Which of the run's decodings it is, from 0; None for an encoding.
    """

    side: Side
    settings: SolverSettings
    number: int | None


def _legs_of(source: Side, target: Side, settings: SolverSettings, *, clip: bool) -> list[_Leg]:
    """There and back: encode at the source, decode at the target, encode at the target, decode at the source."""
    ode = settings.of_the_ode()
    there, back = _decoding(target, settings, clip=clip), _decoding(source, settings, clip=clip)
    return [_Leg(source, ode, None), there, _Leg(target, ode, None), replace(back, number=1)]


def _decoding(side: Side, settings: SolverSettings, *, clip: bool) -> _Leg:
    return _Leg(replace(side, denoiser=Clipped(side.denoiser)) if clip else side, settings, 0)


def _walk(x: Tensor, legs: Sequence[_Leg], counter: _Counter, *, seed: int, first: int) -> list[Tensor]:
    """What points `first` and on, x (N, D), are after each of the legs."""
    results: list[Tensor] = []
    for leg in legs:
        side = leg.side
        if leg.number is None:
            x = encode(x, side.denoiser, side.schedule, leg.settings, on_step=counter)
        else:
            draw = point_draw(seed, leg.number, first, x.shape)
            x = decode(x, side.denoiser, side.schedule, leg.settings, on_step=counter, draw=draw)
        results.append(x)
    return results


def _model(bundle: Bundle) -> dict[str, str]:
    return {"name": bundle.manifest.name, "domain": bundle.manifest.domain, "digest": bundle.digest}


def _distances(target: Bundle, cloud: Floats, reference: Floats | None) -> dict[str, Any] | None:
    if reference is not None:
        return dict(metrics.distances_to_points(cloud, normalise(target, reference)))
    if target.manifest.domain in DOMAINS:
        return dict(metrics.distances_to_domain(cloud, target.manifest.domain))
    return None
