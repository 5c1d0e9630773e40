"""How well the shipped pairs of picture domains translate, on ground that no model was trained on.

    python -m benchmarks.pictures.measure                                what is missing, then write pages and pictures
    python -m benchmarks.pictures.measure --pairs brain --only softening --count 16 --evaluations 24   a look
    python -m benchmarks.pictures.measure --models DIR --out /tmp/look   bundles DIR/satellite, ...; pages elsewhere
    python -m benchmarks.pictures.measure --report                       only pages, from what has been measured

    quality     the whole test part by the models as they ship: pairs, retrieval, features, structure, samples
    softening   several noise levels: latents, round trip, translation
    depth       partial depth: what structure it keeps, and what of the picture is left in the latent

One JSON for each measurement under OUT/benchmarks/pictures; one that is there for the same models and settings is not
measured again, and translations are kept in build/pictures, so that new figures of them take seconds. One
thread, float32. Every figure has the CPU seconds that it took beside it.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.pictures.pair import (
    DEPTHS,
    DOCS,
    DOMAIN_PICTURES,
    PAIRS,
    SIGMAS,
    Options,
    Pair,
    thinned,
    white,
)
from benchmarks.pictures.report import report
from ddib_fed.bridge.arrays import Asked, Stages, draw_samples
from ddib_fed.datasets.shipped import shipped_clusters
from ddib_fed.diffusion.gaussianity import measure
from ddib_fed.metrics import features, retrieval
from ddib_fed.metrics.judgement import judge
from ddib_fed.metrics.pictures import compare, mse, psnr, spread
from ddib_fed.metrics.structure import Thresholds, calibrate, structure
from ddib_fed.reports.sheets import Stage, latent_pictures

KINDS = ("quality", "softening", "depth")
SHOWN, FEW = 16, 8
SAMPLES = 48
MOST_CALIBRATING = 48


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", choices=list(PAIRS), default=list(PAIRS))
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--count", type=int, help="test pictures; default: 64 for tables, all for quality")
    parser.add_argument("--evaluations", type=int, default=48, help="network evaluations of a leg")
    parser.add_argument("--models", type=Path, help="folder of bundles, one a domain")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of pages, measurements and pictures")
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.report:
        options = Options(
            given.count or 64, given.count, given.evaluations, given.out, given.models, given.fresh
        )
        for name in given.pairs:
            pair = Pair(name, options)
            for kind in given.only:
                {"quality": quality, "softening": softening, "depth": depth}[kind](pair)
    report(given.out)


def quality(pair: Pair) -> None:
    rows = pair.rows(pair.options.every)
    pair.measured("quality", rows, lambda: _quality(pair, rows))
    pair.measured("samples", None, lambda: _samples(pair))


def _quality(pair: Pair, rows: np.ndarray) -> dict[str, Any]:
    x, truth = pair.test(rows)
    found, spent = pair.translate(x)
    assert found.back is not None
    thresholds = _thresholds(pair)
    figures = judge(
        found.translated,
        source=x,
        truth=truth,
        back=found.back,
        domain=pair.domain,
        thresholds=thresholds,
        clusters=shipped_clusters(pair.domains[0])[rows],
    )
    each = figures.pop("pictures")
    shown = np.linspace(0, len(x) - 1, min(SHOWN, len(x))).round().astype(int)
    stages = (
        Stage(pair.domains[0], x[shown]),
        Stage("translated", found.translated[shown]),
        Stage(pair.domains[1], truth[shown]),
        Stage("back", found.back[shown]),
    )
    marks = [each[i]["doubtful"] for i in shown]
    pair.sheet("translations", stages, names=[f"{rows[i]}" for i in shown], doubtful=marks)
    return {
        **figures,
        "soften_sigma": [bundle.manifest.soften_sigma for bundle in pair.bundles],
        "parameters": [bundle.manifest.parameters for bundle in pair.bundles],
        "training": [bundle.manifest.training.model_dump() for bundle in pair.bundles],
        "latent": white(found.latent),
        "latent_of_each": _of_each(found.latent),
        "translating_cpu_seconds": round(spent, 1),
    }


def _of_each(latent: np.ndarray) -> dict[str, dict[str, float]]:
    """Spread over the pictures of what the check of a latent looks at (`diffusion.gaussianity`)."""
    each = [measure(torch.from_numpy(one[None])) for one in latent]
    names = ("mean", "std", "kurtosis", "correlation")
    columns = {name: np.array([getattr(one, name) for one in each]) for name in names}
    return {
        name: {"min": float(c.min()), "median": float(np.median(c)), "max": float(c.max())}
        for name, c in columns.items()
    }


def _thresholds(pair: Pair) -> Thresholds:
    held = thinned(pair.pictures[0].held_out, MOST_CALIBRATING)
    return calibrate(held, pair.translate(held, cycle=False)[0].translated)


def _samples(pair: Pair) -> dict[str, Any]:
    """Pictures drawn from each model, and their distance to its own domain."""
    found: dict[str, Any] = {"count": SAMPLES, "samples": {}}
    for side, part in zip(pair.sides, pair.pictures, strict=True):
        drawn = draw_samples(side, SAMPLES, Asked(pair.options.settings))
        real = features.features(thinned(part.train, DOMAIN_PICTURES))
        found["samples"][part.domain.name] = {
            "distance": features.distance(features.features(drawn), real),
            "floor": features.floor(real, SAMPLES),
        }
        pair.sheet(f"samples-{part.domain.name}", [Stage("drawn", drawn[:SHOWN])], caption=part.domain.note)
    return found


def softening(pair: Pair) -> None:
    """Latents, round trips and translations at several noise levels."""
    rows = pair.rows(pair.options.count)
    for sigma in SIGMAS:
        pair.measured(f"softening-{sigma:g}", rows, partial(_softened, pair, rows, sigma))
    shown = pair.rows(FEW)
    pair.measured("latents", shown, lambda: _latent_sheet(pair, shown))


def _softened(pair: Pair, rows: np.ndarray, sigma: float) -> dict[str, Any]:
    return {"soften_sigma": sigma, **_translated(pair, rows, soften=sigma)[1]}


def _latent_sheet(pair: Pair, rows: np.ndarray) -> dict[str, Any]:
    """Latents before and after softening, beside noise, as pictures."""
    x = pair.test(rows)[0]
    sigma = pair.bundles[0].manifest.soften_sigma or SIGMAS[2]
    plain, softened = (pair.translate(x, soften=level, cycle=False)[0].latent for level in (0.0, sigma))
    noise = torch.randn(softened.shape, generator=torch.Generator().manual_seed(0)).numpy()
    stages = (
        Stage(pair.domains[0], x),
        Stage("latent, as it is", latent_pictures(plain)),
        Stage(f"softened by {sigma:g}", latent_pictures(softened)),
        Stage("true noise", latent_pictures(noise)),
    )
    pair.sheet("latents", stages, names=[str(row) for row in rows])
    return {"soften_sigma": sigma, "plain": white(plain), "softened": white(softened)}


def depth(pair: Pair) -> None:
    """Partial depth: encode to a fraction of the angle, decode from there."""
    rows = pair.rows(pair.options.count)
    for fraction in DEPTHS:
        pair.measured(f"depth-{fraction:g}", rows, partial(_deep, pair, rows, fraction))
    shown = pair.rows(FEW)
    pair.measured("depths", shown, lambda: _depth_sheet(pair, shown))


def _deep(pair: Pair, rows: np.ndarray, fraction: float) -> dict[str, Any]:
    found, figures = _translated(pair, rows, depth=fraction)
    own = pair.sides[0].to_model(pair.test(rows)[0]).cpu().numpy()  # with other colours, latents have those
    return {"depth": fraction, "latent_and_picture": likeness(found.latent, own), **figures}


def _depth_sheet(pair: Pair, rows: np.ndarray) -> dict[str, Any]:
    """The same pictures translated at several depths."""
    x, truth = pair.test(rows)
    stages = [Stage(pair.domains[0], x)]
    for fraction in DEPTHS:
        found, _ = pair.translate(x, depth=fraction, cycle=False)
        stages.append(Stage(f"depth {fraction:g}", found.translated))
    pair.sheet("depths", [*stages, Stage(pair.domains[1], truth)], names=[str(row) for row in rows])
    return {"depths": list(DEPTHS)}


def _translated(pair: Pair, rows: np.ndarray, **given: Any) -> tuple[Stages, dict[str, Any]]:
    """A translation of test pictures with the figures of one line of a table."""
    x, truth = pair.test(rows)
    found, spent = pair.translate(x, **given)
    assert found.back is not None
    kept = structure(x, found.translated)
    return found, {
        "count": len(x),
        "latent": white(found.latent),
        "paired": dict(compare(found.translated, truth).means()),
        "cycle_psnr": dict(spread(psnr(found.back, x))),
        "cycle_mse": dict(spread(mse(found.back, x))),
        "retrieval": dict(retrieval.by_pixels(found.translated, truth)),
        "edge_correlation": float(kept.edge_correlation.mean()),
        "mutual_information": float(kept.mutual_information.mean()),
        "translating_cpu_seconds": round(spent, 1),
    }


def likeness(latent: np.ndarray, x: np.ndarray) -> float:
    """Mean correlation of a latent's numbers with its picture's in the model's units, over those that are not flat."""
    found = []
    for z, picture in zip(latent, x, strict=True):
        if picture.std() > 0:
            found.append(float(np.corrcoef(z.ravel(), picture.ravel())[0, 1]))
    return float(np.mean(found))


if __name__ == "__main__":
    main()
