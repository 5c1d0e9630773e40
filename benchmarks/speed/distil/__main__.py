"""Distilled models beside their teachers: error and quality of translations in 1, 2, 4 and 8 evaluations a leg.

    python -m benchmarks.speed.distil             points and pictures
    python -m benchmarks.speed.distil --short     fewer samples; pictures only where their models are distilled already

Bundles that are missing under build/distilled are distilled first, by the commands in `RECIPES`. An error is the
distance of a translation from that of the teachers with many evaluations, both of the same held-out sample; its
interval is a bootstrap over samples, for maps over clusters of crops that overlap.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.speed.shared.harness import ROOT, Figure, Form, Report, main
from ddib_fed.datasets.shipped import available, load_shipped, shipped_clusters
from ddib_fed.datasets.synthetic import draw, sample
from ddib_fed.diffusion.bridge import Cycle, Side, cycle
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.metrics.bootstrap import Resamples, resample
from ddib_fed.metrics.pictures import compare
from ddib_fed.metrics.points import domain_sliced_w2_floor, sliced_w2
from ddib_fed.models.bundle import Bundle, load_bundle
from ddib_fed.models.shipped import pretrained
from ddib_fed.reports import plots
from ddib_fed.reports.sheets import Stage, save_sheet

MODELS = ROOT / "build" / "distilled"
PICTURES = ROOT / "docs" / "benchmarks"
POINTS_PAIR, PICTURE_PAIR = ("moons", "checkerboards"), ("satellite", "relief")
RECIPES: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(POINTS_PAIR, ()),
    **dict.fromkeys(PICTURE_PAIR, ()),
}
"""Options of `ddib model distil` for each model."""
SHORT_STEPS = "300"
FEW = (1, 2, 4, 8)
TEACHERS = (4, 8, 16, 48)
REFERENCE = {
    "point": SolverSettings("unipc", 3, 200),
    "picture": SolverSettings("unipc", 3, 96, "uniform-lambda"),
}
SHOWN, FEW_PICTURES = 12, 16
SEED = 20_261
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Pair:
    """Teachers and distilled models of two domains, and held-out samples of the first in model units; which of them."""

    names: tuple[str, str]
    teachers: tuple[Bundle, Bundle]
    distilled: tuple[Bundle, Bundle]
    x: torch.Tensor
    drawn: Resamples
    chosen: NDArray[np.int64]

    @property
    def kind(self) -> str:
        return self.teachers[0].manifest.sample_kind


@dataclass(frozen=True)
class Found:
    """A round trip, the samples that it started from once softened, and CPU seconds of its four legs."""

    trip: Cycle
    seconds: float


def measure(form: Form) -> Report:
    """Translations by distilled models, by their teachers in as few evaluations, and by their teachers in many."""
    torch.set_num_threads(1)
    report = Report(
        "Distilled models beside their teachers, on held-out samples. Error: root mean square of the difference from "
        "the teachers' translation in many evaluations, in deviations of the data, mean over samples. In brackets the "
        "95 % interval of a bootstrap over samples (crops of maps by clusters), and the number of samples."
    )
    pairs = [POINTS_PAIR]
    there = all((MODELS / name / "manifest.json").exists() for name in PICTURE_PAIR)
    if all(map(available, PICTURE_PAIR)) and (there or not form.short):
        pairs.append(PICTURE_PAIR)
    for names in pairs:
        _measure_pair(report, _opened(names, form), form)
    report.note(
        "One seed of distillation for each model; the interval says nothing of others. Trained by "
        + "; ".join(f"`{_command(_folder(name, form))}`" for names in pairs for name in names)
        + "."
    )
    return report


def _measure_pair(report: Report, pair: Pair, form: Form) -> None:
    title = " -> ".join(pair.names)
    reference = _trip(pair, pair.teachers, REFERENCE[pair.kind]).trip
    trips: dict[str, Found] = {}
    for count in FEW:
        trips[f"distilled, {count}"] = _trip(pair, pair.distilled, _few(pair, count))
    for count in form.pick(TEACHERS[:3], TEACHERS):
        trips[f"teachers, {count}"] = _trip(pair, pair.teachers, SolverSettings("unipc", 3, count))
    if not form.short:
        trips["distilled by unipc, 48"] = _trip(pair, pair.distilled, SolverSettings("unipc", 3, 48))
    # A softened sample is led back to itself, not to what it was before; the reference is there.
    back = pair.x if pair.kind == "point" else reference.returned
    for name, found in trips.items():
        _add(report, f"{title}: {name}: error", pair, _rms(found.trip.translated, reference.translated))
        _add(report, f"{title}: {name}: latent", pair, _rms(found.trip.latent, reference.latent))
        _add(report, f"{title}: {name}: round trip", pair, _rms(found.trip.returned, back))
        report.add(f"{title}: {name}: CPU of four legs", [found.seconds], "s")
    few = _rms(trips["distilled, 8"].trip.translated, reference.translated)
    same = _rms(trips["teachers, 8"].trip.translated, reference.translated)
    report.bound(
        f"{title}: error at 8 evaluations, distilled / teachers",
        [float(few.mean() / same.mean())],
        at_most=1.0,
    )
    if pair.kind == "point":
        _points_quality(report, pair, reference, trips)
    else:
        _pictures_quality(report, pair, reference, trips)


def _points_quality(report: Report, pair: Pair, reference: Cycle, trips: Mapping[str, Found]) -> None:
    """How near the translated cloud is to the target's; and the figure of it."""
    title, target = " -> ".join(pair.names), pair.names[1]
    real = draw(target, len(pair.x), SEED)
    clouds = {
        "teachers, many": reference.translated,
        **{name: found.trip.translated for name, found in trips.items()},
    }
    for name, cloud in clouds.items():
        report.add(f"{title}: {name}: sliced W2 of the cloud", [sliced_w2(cloud.numpy(), real)], "")
    report.add(f"{title}: its floor", [domain_sliced_w2_floor(target, len(pair.x))], "")
    shown = ("teachers, many", "distilled, 8", "distilled, 2", "distilled, 1", "teachers, 8")
    plots.draw_rows(
        [[plots.Panel(name, clouds[name].numpy()) for name in shown]], PICTURES / "distilled-points.png"
    )


def _pictures_quality(report: Report, pair: Pair, reference: Cycle, trips: Mapping[str, Found]) -> None:
    """How near the translations are to the true partners; and the sheet of them."""
    title, target = " -> ".join(pair.names), pair.teachers[1].manifest
    sources, truth = (load_shipped(name).test[pair.chosen] for name in pair.names)
    drawn = {
        name: np.clip(target.normalisation.undo(cloud.numpy()), -1.0, 1.0)
        for name, cloud in (
            ("teachers, many", reference.translated),
            *((name, found.trip.translated) for name, found in trips.items()),
        )
    }
    for name, pictures in drawn.items():
        found = compare(pictures, truth)
        _add(report, f"{title}: {name}: PSNR to the true partner", pair, found.psnr, "dB")
        _add(report, f"{title}: {name}: SSIM to the true partner", pair, found.ssim)
    shown = np.linspace(0, len(truth) - 1, SHOWN).astype(int)
    lines = {"source": sources, **drawn, "true partner": truth}
    few = (f"distilled, {count}" for count in reversed(FEW))
    keys = ("source", "teachers, many", *few, "teachers, 8", "true partner")
    origins = (bundle.manifest.data for bundle in pair.teachers)
    caption = f"Test crops of {title}. {'; '.join(data.note for data in origins if data is not None)}."
    save_sheet(
        PICTURES / "distilled-pictures.png", [Stage(key, lines[key][shown]) for key in keys], caption=caption
    )


def _opened(names: tuple[str, str], form: Form) -> Pair:
    for name in names:
        _distil(name, form)
    teachers = tuple(map(pretrained, names))
    distilled = tuple(load_bundle(_folder(name, form)) for name in names)
    for teacher, made in zip(teachers, distilled, strict=True):
        origin = made.manifest.distilled
        if origin is None or origin.teacher != teacher.digest:
            raise SystemExit(f"{_folder(teacher.manifest.name, form)} is of another teacher: remove it")
    if teachers[0].manifest.sample_kind == "point":
        x = torch.from_numpy(sample(names[0], form.pick(2_000, 10_000), SEED))
        chosen = np.arange(len(x))
        drawn = resample(len(x))
    else:
        count = len(load_shipped(names[0]).test)
        chosen = np.linspace(0, count - 1, min(count, form.pick(FEW_PICTURES, count))).astype(np.int64)
        x = torch.from_numpy(teachers[0].manifest.normalisation.apply(load_shipped(names[0]).test[chosen]))
        drawn = resample(len(x), shipped_clusters(names[0])[chosen])
    return Pair(names, (teachers[0], teachers[1]), (distilled[0], distilled[1]), x, drawn, chosen)


def _command(folder: Path) -> str:
    return load_bundle(folder).manifest.training.command.replace(f"{ROOT}/", "")


def _trip(pair: Pair, bundles: tuple[Bundle, Bundle], settings: SolverSettings) -> Found:
    """There and back; the source is softened as its model says, always with the same noise."""
    sides = [Side(b.denoiser(), b.schedule, b.manifest.soften_sigma) for b in bundles]
    noise = torch.randn(pair.x.shape, generator=torch.Generator().manual_seed(SEED))
    started = time.process_time()
    parts = zip(pair.x.split(_rows(pair)), noise.split(_rows(pair)), strict=True)
    found = [cycle(x, sides[0], sides[1], settings, noise=part) for x, part in parts]
    seconds = time.process_time() - started
    joined = (
        torch.cat([getattr(trip, name) for trip in found])
        for name in ("latent", "translated", "latent_again", "returned")
    )
    return Found(Cycle(*joined), seconds)


def _few(pair: Pair, count: int) -> SolverSettings:
    origin = pair.distilled[1].manifest.distilled
    return SolverSettings("flow-map", evaluations=count, grid="default" if origin is None else origin.grid)


def _rows(pair: Pair) -> int:
    return 2_000 if pair.kind == "point" else 32


def _rms(found: torch.Tensor, expected: torch.Tensor) -> NDArray[np.float64]:
    distances: NDArray[np.float64] = (found - expected).flatten(1).square().mean(1).sqrt().double().numpy()
    return distances


def _add(report: Report, what: str, pair: Pair, values: NDArray[np.float64], unit: str = "") -> None:
    found = pair.drawn.mean(values)
    report.figures.append(Figure(what, unit, found["value"], found["low"], found["high"], len(values)))


def _folder(name: str, form: Form) -> Path:
    whole = MODELS / name
    return whole if (whole / "manifest.json").exists() or not form.short else MODELS / f"{name}-short"


def _distil(name: str, form: Form) -> None:
    folder = _folder(name, form)
    if (folder / "manifest.json").exists():
        return
    options = [*RECIPES[name], *(("--steps", SHORT_STEPS) if form.short else ())]
    command = [
        str(Path(sys.executable).parent / "ddib"),
        "model",
        "distil",
        name,
        "--out",
        str(folder.relative_to(ROOT)),
        "--resume",
    ]
    subprocess.run([*command, *options], check=True, cwd=ROOT)


if __name__ == "__main__":
    raise SystemExit(main("distil", measure))
