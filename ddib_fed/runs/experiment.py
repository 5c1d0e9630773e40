"""Translations of points as an experiment: the stages, the figures about them, and their files.

Stages are in the models' normalised units, where the data have unit standard deviation; errors and
distances are taken there. What is written for people to read on is in the units of the data.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ddib_fed.bridge.arrays import Asked, Counter, translate_array, turns
from ddib_fed.bridge.local_party import POINTS_TOGETHER as BATCH
from ddib_fed.bridge.local_party import open_party
from ddib_fed.bridge.party import Leg, ToDecode
from ddib_fed.bridge.seeded_noise import point_draw
from ddib_fed.datasets.synthetic import DOMAINS
from ddib_fed.diffusion.gaussianity import measure
from ddib_fed.diffusion.plans import SolverSettings, check_settings
from ddib_fed.files import write_file, write_json
from ddib_fed.guidance import Guidance
from ddib_fed.latent import Latent
from ddib_fed.metrics import points as metrics
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.carried import carried_domain
from ddib_fed.reports import plots
from ddib_fed.samples.points import to_npy

Floats = NDArray[np.float32]
OnStep = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Stages:
    """Clouds (N, D), float32, row i of each being the same point."""

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
    """Translate points of the source's domain to the target's and, for a cycle, back."""
    parties = [open_party(model, together=BATCH, threads=threads) for model in (source, target)]
    asked = Asked(settings, guidance=Guidance(clip=clip), seed=seed, cycle=cycle)
    wall, cpu = time.monotonic(), time.process_time()
    found = translate_array(points, parties[0], parties[1], asked, on_progress=on_step)
    spent = (time.monotonic() - wall, time.process_time() - cpu)
    own, other = (party.model for party in parties)
    return Stages(
        own.normalise(points),
        found.latent,
        other.normalise(found.translated),
        found.latent_again,
        None if found.back is None else own.normalise(found.back),
        *spent,
    )


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
    """Decode `count` points from noise and write samples.npy, latent.npy, samples.png and report.json."""
    party = open_party(bundle, together=BATCH, threads=threads)
    dim = bundle.manifest.sample_shape[0]
    noise = torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))
    if dim > 1:
        noise = noise[torch.argsort(torch.atan2(noise[:, 1], noise[:, 0]))]
    wall, cpu = time.monotonic(), time.process_time()
    counter = Counter(settings.evaluations * turns(party, count), on_step)
    latent = ToDecode(0, Latent.from_array(noise.numpy()), draw=point_draw(seed, 0, dim))
    decoded = party.decode(latent, Leg(settings, Guidance(clip=clip), on_step=counter.step))
    cloud = party.model.normalise(decoded.samples)
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
    write_file(folder / "samples.npy", to_npy(decoded.samples))
    write_file(folder / "latent.npy", to_npy(noise.numpy()))
    plots.stages([("latent", noise.numpy()), ("samples", cloud)], folder / "samples.png")
    write_json(folder / "report.json", report)
    return report


def figures(
    source: Bundle,
    target: Bundle,
    stages: Stages,
    settings: SolverSettings,
    *,
    reference: Floats | None = None,
) -> dict[str, Any]:
    """Everything measured about a run, as JSON values."""
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
        raw = owner.manifest.normalisation.undo(cloud) if owner is not None else cloud
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


def _model(bundle: Bundle) -> dict[str, str]:
    return {"name": bundle.manifest.name, "domain": bundle.manifest.domain, "digest": bundle.digest}


def _distances(target: Bundle, cloud: Floats, reference: Floats | None) -> dict[str, Any] | None:
    if reference is not None:
        return dict(metrics.distances_to_points(cloud, target.manifest.normalisation.apply(reference)))
    domain = carried_domain(target.manifest)
    if domain is None or domain not in DOMAINS:
        return None
    return dict(metrics.distances_to_domain(cloud, domain))
