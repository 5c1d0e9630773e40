"""What a model draws, as files: points, pictures and volumes from noise.

What a folder holds is listed in its report.json, which is written last.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ddib_fed.data.pictures import ImageLimits
from ddib_fed.data.points import to_npy
from ddib_fed.data.synthetic import DOMAINS
from ddib_fed.engine.arrays import ArraySettings, Counter, OnProgress, draw_samples, point_draw, turns
from ddib_fed.engine.local_party import LocalParty
from ddib_fed.engine.party import ToDecode
from ddib_fed.evaluation import sheets
from ddib_fed.evaluation.metrics import distances_to_domain, file_rule
from ddib_fed.evaluation.samples import samples_of
from ddib_fed.evaluation.sheets import save_sheet
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
    report = _asked(party, asked) | {
        "points": count,
        "clip": asked.guidance.clip,
        "seconds": {"wall": round(time.monotonic() - wall, 3), "cpu": round(time.process_time() - cpu, 3)},
        "target_cloud": dict(distances_to_domain(cloud, domain)) if domain in DOMAINS else None,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "samples.npy", to_npy(decoded.samples))
    write_file(folder / "latent.npy", to_npy(noise.numpy()))
    sheets.clouds([("latent", noise.numpy()), ("samples", cloud)], folder / "samples.png")
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
    """Draw pictures and write each as a PNG, or volumes as .npy, with sheet.png and report.json."""
    samples = draw_samples(party, count, asked, on_progress=on_progress)
    manifest = party.model.manifest
    writer, width = samples_of(party.model, ImageLimits(), max_points=0), len(str(count - 1))
    names = [f"sample_{number:0{width}d}.{writer.format.lower()}" for number in range(count)]
    folder.mkdir(parents=True, exist_ok=True)
    for name, sample in zip(names, samples, strict=True):
        write_file(folder / name, writer.file(sample[None]))
    note = "" if manifest.data is None else manifest.data.note or manifest.data.source
    caption = ". ".join(filter(None, [manifest.domain, note]))
    save_sheet(folder / "sheet.png", {"samples": samples[:SHEET_PICTURES]}, caption=caption)
    report = _asked(party, asked) | {
        "class": asked.target_class,
        "count": count,
        "guidance": asdict(asked.guidance),
        "output_scale": dict(zip(("slope", "intercept"), file_rule(manifest).output_scale, strict=True)),
        "pictures": names,
    }
    write_json(folder / "report.json", report)
    return report


def _asked(party: LocalParty, asked: ArraySettings) -> dict[str, Any]:
    manifest = party.model.manifest
    model = {"name": manifest.name, "domain": manifest.domain, "digest": party.model.bundle.digest}
    return {"model": model, "seed": asked.seed, "settings": asked.settings.described()}
