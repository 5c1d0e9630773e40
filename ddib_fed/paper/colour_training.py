"""Colour transfer between two photographs: a model of each one's colours, pictures, and a report.

out/models/NAME-SPACE-DIGEST/           a bundle for each photograph; the digest is of its points
out/CONTENT-to-REFERENCE.png            DDIB; beside it -emd.png, -sinkhorn.png, -linear.png
out/report.json                         figures; written last
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ddib_fed.diffusion.plans import SolverSettings, check_settings
from ddib_fed.errors import UsageError
from ddib_fed.files import model_folder, write_file, write_json
from ddib_fed.paper import colour_transfer as colours
from ddib_fed.paper.colour_cloud import Floats, Photograph, Space, dequantised
from ddib_fed.paper.colour_transfer import Palette
from ddib_fed.processes import require_alone
from ddib_fed.samples.images import encode_png
from ddib_fed.samples.points import to_npy
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import train

STEPS = 1_500
"""Optimiser steps of a model: about a minute of one core."""
WIDTH = 96
SOLVER = SolverSettings(evaluations=32)
MIN_POINTS, MAX_POINTS = 65_536, 400_000
_POINTS_SEED = 20_220_316

# Told what is being done, how far, of how much, and a remark.
OnProgress = Callable[[str, int, int, str], None]


@dataclass(frozen=True, slots=True)
class ColourSettings:
    """How colours are learned and exchanged."""

    space: Space = "rgb"
    solver: SolverSettings = SOLVER
    smooth: float = colours.SMOOTH
    train_steps: int = STEPS
    width: int = WIDTH
    batch: int = 2048
    seed: int = 0
    threads: int = 1
    both: bool = False
    compare: bool = True
    command: str = ""


def transfer(
    content: Photograph,
    reference: Photograph,
    settings: ColourSettings,
    out: Path,
    *,
    resume: bool = False,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train what is missing, exchange colours, write pictures and report."""
    require_alone("exchanging colours")
    if content.name == reference.name:
        raise UsageError(f"both pictures are called {content.name}", hint="rename one of them")
    check_settings(settings.solver)
    first, second = (
        palette(photo, settings, out, resume=resume, force=force, on_progress=on_progress)
        for photo in (content, reference)
    )
    pairs = [(first, second), (second, first)] if settings.both else [(first, second)]
    report: dict[str, Any] = {
        "space": settings.space,
        "solver": asdict(settings.solver),
        "smooth": settings.smooth,
        "photographs": [_photograph(p) for p in (first, second)],
        "directions": [_direction(a, b, settings, out, on_progress) for a, b in pairs],
    }
    write_json(out / "report.json", report)
    return report


def palette(
    photo: Photograph,
    settings: ColourSettings,
    out: Path,
    *,
    resume: bool = False,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Palette:
    """The photograph with the model of its colours, trained or found in `out`; errors as in `transfer`."""
    count = int(np.clip(photo.index.size, MIN_POINTS, MAX_POINTS))
    content = to_npy(dequantised(photo, settings.space, count, _POINTS_SEED).astype(np.float32))
    label = f"{photo.name[:60]}-{settings.space}-{hashlib.sha256(content).hexdigest()[:8]}"
    folder = out / "models" / label
    out.mkdir(parents=True, exist_ok=True)
    model_folder(folder.parent)
    points = folder.with_name(f"{label}.npy")
    write_file(points, content, private=True)
    config = TrainConfig(
        kind="points",
        data=points,
        name=f"colours-{label}",
        seed=settings.seed,
        steps=settings.train_steps,
        batch=settings.batch,
        levels=min(256, settings.batch),
        reference=min(1024, settings.batch),
        width=settings.width,
        threads=settings.threads,
        samples=2_000,
        command=settings.command,
    )
    tell = None
    if on_progress is not None:
        what = f"training {photo.name}"
        tell = lambda p: on_progress(what, p.step, p.steps, f"loss {p.loss:.4f}")  # noqa: E731
    try:
        bundle = train(config, folder, tell, resume=resume, force=force)
    finally:
        # It can be made again from the picture, bit for bit.
        points.unlink(missing_ok=True)
    return Palette(photo, settings.space, bundle)


def _direction(
    content: Palette, reference: Palette, settings: ColourSettings, out: Path, on_progress: OnProgress | None
) -> dict[str, Any]:
    photo, other = content.photo, reference.photo
    stem = f"{photo.name}-to-{other.name}"

    def tell(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(f"colouring {photo.name}", done, total, "")

    smooth, threads = settings.smooth, settings.threads
    ours = colours.recolour(content, reference, settings.solver, smooth=smooth, on_step=tell, threads=threads)
    _save(out / f"{stem}.png", photo, ours.rgb)
    others = colours.baselines(photo, other, settings.space) if settings.compare else {}
    for name, found in others.items():
        _save(out / f"{stem}-{name}.png", photo, found.rgb)
    return {
        "from": photo.name,
        "to": other.name,
        "picture": f"{stem}.png",
        **colours.figures(photo, other, ours, others),
        **colours.judge(content, reference, settings.solver, smooth=smooth, threads=threads),
    }


def _save(path: Path, photo: Photograph, rgb: Floats) -> None:
    write_file(path, encode_png(photo.paint(rgb)))


def _photograph(palette: Palette) -> dict[str, Any]:
    photo, manifest = palette.photo, palette.bundle.manifest
    height, width = photo.index.shape
    return {
        "name": photo.name,
        "height": height,
        "width": width,
        "bits": 8 if photo.top == 255 else 16,
        "colours": len(photo.colours),
        "credit": photo.credit,
        "model": {
            "digest": palette.bundle.digest,
            "parameters": manifest.parameters,
            "steps": manifest.training.steps,
            **manifest.training.figures,
        },
    }
