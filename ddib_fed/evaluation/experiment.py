"""Turns two models and points into the stages of a translation, or of a cycle, and the figures about them.

The rule: stages are in the models' normalised units, where the data have unit standard deviation; errors and
distances are taken there. What is written for people to read on is in the units of the data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.data.points import to_npy
from ddib_fed.data.synthetic import DOMAINS
from ddib_fed.diffusion.bridge import Side, decode, encode
from ddib_fed.diffusion.gaussianity import measure
from ddib_fed.diffusion.plans import SolverSettings, check_settings
from ddib_fed.errors import ShapeMismatch
from ddib_fed.evaluation import metrics, plots
from ddib_fed.evaluation.report import write_bytes, write_json
from ddib_fed.evaluation.threads import torch_threads
from ddib_fed.models.bundle import Bundle

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
    wall, cpu = time.monotonic(), time.process_time()
    x = normalise(source, points)
    sides = source.side(), target.side()
    legs = 4 if cycle else 2
    counter = _Counter(settings.evaluations * legs * -(-len(x) // BATCH), on_step)
    with torch_threads(threads):
        parts = [_legs(torch.from_numpy(part), *sides, settings, legs, counter) for part in _batches(x)]
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
    on_step: OnStep | None = None,
    threads: int = 1,
) -> dict[str, Any]:
    """Decode `count` points from noise and write samples.npy, latent.npy, samples.png and report.json.

    The noise is ordered by angle, so that colour shows from where each point came.

    Returns:
        The report.

    Raises:
        SettingsInvalid: Settings that do not exist or do not fit the model's schedule.
    """
    dim = bundle.manifest.sample_shape[0]
    noise = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    if dim > 1:
        noise = noise[torch.argsort(torch.atan2(noise[:, 1], noise[:, 0]))]
    wall, cpu = time.monotonic(), time.process_time()
    counter = _Counter(settings.evaluations * -(-count // BATCH), on_step)
    side = bundle.side()
    latents = [torch.from_numpy(part) for part in _batches(noise.numpy())]
    with torch_threads(threads):
        parts = [decode(part, side.denoiser, side.schedule, settings, on_step=counter) for part in latents]
    cloud = torch.cat(parts).numpy()
    report = {
        "model": _model(bundle),
        "points": count,
        "seed": seed,
        "settings": asdict(check_settings(settings)),
        "seconds": {"wall": round(time.monotonic() - wall, 3), "cpu": round(time.process_time() - cpu, 3)},
        "target_cloud": _distances(bundle, cloud, None),
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "samples.npy", to_npy(denormalise(bundle, cloud)))
    write_bytes(folder / "latent.npy", to_npy(noise.numpy()))
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
        "settings": asdict(checked),
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
        write_bytes(folder / f"{name}.npy", to_npy(raw))
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


def _legs(
    x: Tensor, source: Side, target: Side, settings: SolverSettings, legs: int, counter: _Counter
) -> list[Tensor]:
    """The first `legs` of: encode at the source, decode at the target, encode at the target, decode at the source."""
    plan = ((encode, source), (decode, target), (encode, target), (decode, source))
    results: list[Tensor] = []
    for leg, side in plan[:legs]:
        x = leg(x, side.denoiser, side.schedule, settings, on_step=counter)
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
