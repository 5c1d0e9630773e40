"""Pictures of 256 pixels, satellite to relief: models of latents, tiles of 32 pixels, and what needs no model.

    python -m benchmarks.pictures.large      35 minutes of one core

100 test pictures, evenly spaced, 24 evaluations a leg; intervals are over clusters of pictures that overlap. Tiles are
cut and averaged as `ddib translate` does it. Calibrated ways take the dial of their calibration, but for one.

Whatever a model of latents makes has gone through the target's autoencoder. So the map alone stands there as it is and
through that autoencoder, and so does the truth, to which no translation can be nearer than that.

Wrong is a pixel on the other side of sea and land. CPU seconds are of one picture, there.
"""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

import numpy as np

from benchmarks import command
from benchmarks.calibration.directed import DOMAIN_PICTURES, from_bytes, from_results, thinned, to_files
from benchmarks.calibration.scenes import translated
from benchmarks.command import Rows, Run
from benchmarks.pictures.judged import water
from benchmarks.pictures.sheet import halved, save_sheet
from ddib_fed import Calibration, Model, Request, Settings, datasets, metrics, translate
from ddib_fed.metrics import Pictures

SHEET = command.ROOT / "docs" / "images" / "pictures" / "large.png"
DOMAINS = ("satellite-256", "relief-256")
AS_RELIEF, TILES_AS_RELIEF = "satellite-256-as-relief-256", "satellite-as-relief"
PICTURES, SHOWN = 100, 6


def measure(run: Run) -> Rows:
    """Measure each way."""
    clusters = datasets.clusters_of(DOMAINS[0])
    chosen = np.linspace(0, len(clusters) - 1, run.pick(smoke=2, long=PICTURES)).round().astype(int)
    targets = datasets.shipped_bytes(DOMAINS[1], run.pick(smoke=["test"], long=["test", "train"]))
    (sources,) = datasets.shipped_bytes(DOMAINS[0], ["test"])
    others = thinned(targets[-1], run.pick(smoke=4, long=DOMAIN_PICTURES))
    x, truth, domain = map(from_bytes, (sources[chosen], targets[0][chosen], others))
    drawn, real, sea = metrics.resample(len(x), clusters[chosen]), metrics.features(domain), water(truth)
    shown = {"satellite": x}
    for name, way in ways(run, truth, domain).items():
        began = time.process_time()
        y = shown[name] = way(x)
        seconds, same = time.process_time() - began, metrics.compare(y, truth)
        yield {
            "way": name,
            "pictures": len(x),
            "clusters": len(set(clusters[chosen])),
            "psnr": drawn.mean(same.psnr),
            "ssim": drawn.mean(same.ssim),
            "partner": drawn.mean(metrics.hits_by_pixels(y, truth)),
            "frechet_early": metrics.feature_distance(metrics.features(y), real, drawn),
            "wrong": drawn.mean((water(y) != sea).mean((1, 2))),
            "cpu_seconds": round(seconds / len(x), 2),
        }
    if not run.smoke:
        shown["relief (truth)"] = truth
        save_sheet(SHEET, {name: halved(pictures[:SHOWN]) for name, pictures in shown.items()})


def ways(run: Run, truth: Pictures, domain: Pictures) -> dict[str, Any]:
    """Return each way from the source's pictures to the target's; in a smoke those that need no further model."""
    legs = Settings(evaluations=run.pick(smoke=3, long=24))
    half = Settings(evaluations=24, share=0.5, temperature=0.9, blend=0.15)
    mapped, target = Model.open(AS_RELIEF, threads=1), Model.open(DOMAINS[1], threads=1)
    alone = Calibration.open(AS_RELIEF).alone
    assert alone is not None

    def bridge(source: Model, request: Request, x: Pictures) -> Pictures:
        return from_results([*translate(to_files(x), source, target, request)])

    few = {
        "histogram matching": lambda x: metrics.histogram_match(x, x, domain),
        "map alone": alone,
        "map alone, through the target's autoencoder": lambda x: target.reconstruct(alone(x)),
        "truth, through the target's autoencoder": lambda _: target.reconstruct(truth),
        "latent models, calibrated": partial(bridge, mapped, Request(legs, calibration=AS_RELIEF)),
    }
    if run.smoke:
        return few
    tiles = [Model.open(name, threads=1) for name in (TILES_AS_RELIEF, "relief")]
    return {
        **few,
        "latent models, calibrated, share 0.5": partial(bridge, mapped, Request(half, calibration=AS_RELIEF)),
        "latent models": partial(bridge, Model.open(DOMAINS[0], threads=1), Request(legs)),
        "tiles of 32 pixels, calibrated": lambda x: translated(
            tiles, x, Request(legs, calibration=TILES_AS_RELIEF), "32"
        ),
    }


if __name__ == "__main__":
    sys.exit(command.command(measure, "pictures/large"))
