"""What a model draws, as files: points and pictures from noise, and what lies between two pictures.

What a folder holds is listed in its report.json, which is written last.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddib_fed.data.fitting import from_array, read_fitted
from ddib_fed.data.pictures import ImageLimits, encode_png
from ddib_fed.data.points import to_npy
from ddib_fed.data.synthetic import DOMAINS
from ddib_fed.engine.arrays import (
    ArraySettings,
    Counter,
    OnProgress,
    draw_samples,
    interpolate_pictures,
    point_draw,
    turns,
)
from ddib_fed.engine.local_party import LocalParty
from ddib_fed.engine.party import ToDecode
from ddib_fed.errors import SettingsInvalid
from ddib_fed.evaluation import sheets
from ddib_fed.evaluation.metrics import distances_to_domain, picture_rule
from ddib_fed.evaluation.sheets import Stage, save_sheet
from ddib_fed.files import write_file, write_json
from ddib_fed.latent import Latent
from ddib_fed.models.manifest import carried_domain

SHEET_PICTURES = 64


def draw_points(
    party: LocalParty,
    count: int,
    asked: ArraySettings,
    folder: Path,
    *,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Decode points from noise, and write samples.npy, latent.npy, samples.png and report.json."""
    manifest, settings = party.model.manifest, asked.settings
    dim = manifest.sample_shape[0]
    noise = torch.randn(count, dim, generator=torch.Generator().manual_seed(asked.seed))
    if dim > 1:
        noise = noise[torch.argsort(torch.atan2(noise[:, 1], noise[:, 0]))]
    wall, cpu = time.monotonic(), time.process_time()
    counter = Counter(settings.evaluations * turns(party, count), on_progress)
    latent = ToDecode(0, Latent.from_array(noise.numpy()), draw=point_draw(asked.seed, 0, dim))
    decoded = party.decode(latent, asked.leg(counter))
    cloud = party.model.normalise(decoded.samples)
    domain = carried_domain(manifest)
    report = {
        "model": _model(party),
        "points": count,
        "seed": asked.seed,
        "settings": settings.described(),
        "clip": asked.guidance.clip,
        "seconds": {"wall": round(time.monotonic() - wall, 3), "cpu": round(time.process_time() - cpu, 3)},
        "target_cloud": dict(distances_to_domain(cloud, domain)) if domain in DOMAINS else None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "samples.npy", to_npy(decoded.samples))
    write_file(folder / "latent.npy", to_npy(noise.numpy()))
    sheets.clouds([("latent", noise.numpy()), ("samples", cloud)], folder / "samples.png", heat=True)
    write_json(folder / "report.json", report)
    return report


def draw_pictures(
    party: LocalParty,
    count: int,
    asked: ArraySettings,
    folder: Path,
    *,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Draw pictures and write each as a PNG, with sheet.png and report.json."""
    samples = draw_samples(party, count, asked, on_progress=on_progress)
    rule = picture_rule(party.model.manifest)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"sample_{number:0{len(str(count - 1))}d}.png" for number in range(count)]
    for name, sample in zip(names, samples, strict=True):
        write_file(folder / name, encode_png(from_array(sample, rule)))
    save_sheet(folder / "sheet.png", [Stage("samples", samples[:SHEET_PICTURES])], caption=_caption(party))
    report = {
        "model": _model(party),
        "class": asked.target_class,
        "count": count,
        "seed": asked.seed,
        "settings": asked.settings.described(),
        "guidance": {
            "scale": asked.guidance.scale,
            "classifier_scale": asked.guidance.classifier_scale,
            "clip": asked.guidance.clip,
        },
        "output_scale": dict(zip(("slope", "intercept"), rule.output_scale, strict=True)),
        "pictures": names,
    }
    write_json(folder / "report.json", report)
    return report


def between(
    files: tuple[Path, Path],
    source: LocalParty,
    target: LocalParty,
    asked: ArraySettings,
    folder: Path,
    *,
    frames: int = 9,
    limits: ImageLimits | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Decode the latents between those of two pictures, and write each as a PNG, with sheet.png and report.json."""
    if frames < 2:
        raise SettingsInvalid(f"{frames} frames; the two ends are two already", hint="use 9, for example")
    own = picture_rule(source.model.manifest)
    theirs = replace(picture_rule(target.model.manifest), fit=own.fit)
    first, second = (read_fitted(path, own, limits) for path in files)
    weights = [number / (frames - 1) for number in range(frames)]
    pair = np.stack([first.samples, second.samples])
    found = interpolate_pictures(pair, source, target, weights, asked, on_progress=on_progress)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"frame_{number:0{len(str(frames - 1))}d}.png" for number in range(frames)]
    for name, frame in zip(names, found, strict=True):
        write_file(folder / name, encode_png(from_array(frame, theirs, first.geometry)))
    titles = [f"{weight:.2f}" for weight in weights]
    save_sheet(
        folder / "sheet.png",
        [Stage("between", found)],
        names=titles,
        across=frames,
        caption=_caption(source, target),
    )
    report = {
        "source": _model(source),
        "target": _model(target),
        "ends": [path.name for path in files],
        "weights": weights,
        "soften": asked.soften,
        "depth": asked.settings.depth,
        "seed": asked.seed,
        "settings": replace(asked.settings, depth=1.0).described(),
        "pictures": names,
    }
    write_json(folder / "report.json", report)
    return report


def _model(party: LocalParty) -> dict[str, str]:
    manifest = party.model.manifest
    return {"name": manifest.name, "domain": manifest.domain, "digest": party.model.bundle.digest}


def _caption(*parties: LocalParty) -> str:
    manifests = [party.model.manifest for party in parties]
    domains = " to ".join(dict.fromkeys(manifest.domain for manifest in manifests))
    notes = [
        manifest.data.note or manifest.data.source for manifest in manifests if manifest.data is not None
    ]
    return ". ".join([domains, *dict.fromkeys(filter(None, notes))])
