"""Pictures of 256 pixels, satellite to relief: models of latents, tiles of 32 pixels, and what needs no model.

    python -m benchmarks.pictures.large      35 minutes of one core

100 test pictures, evenly spaced, 24 evaluations a leg; they overlap, and intervals are over clusters of them. Tiles are
cut and averaged as `ddib translate` does it. Calibrated ways take the dial of their calibration, but for one.

Whatever a model of latents makes has gone through the target's autoencoder, which blurs. So the map alone stands there
as it is and through that autoencoder, and so does the truth: no translation can be nearer than that.

Wrong is a pixel on the other side of sea and land. CPU seconds are of one picture, there. The first pictures of each
way are in docs/images/pictures/large.png.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from benchmarks import command
from benchmarks.calibration.directed import DOMAIN_PICTURES, from_bytes, from_results, thinned, to_files
from benchmarks.calibration.scenes import translated
from benchmarks.command import Rows, Run
from benchmarks.pictures.marks import water
from benchmarks.pictures.sheet import save_sheet
from ddib_fed import Calibration, Model, Request, Settings, datasets, metrics, translate
from ddib_fed.metrics import Pictures

SHEET = command.ROOT / "docs" / "images" / "pictures" / "large.png"
DOMAINS = ("satellite-256", "relief-256")
AS_RELIEF = "satellite-256-as-relief-256"
PICTURES, SHOWN = 100, 6
Way = Callable[[Pictures], Pictures]


def measure(run: Run) -> Rows:
    """Measure each way."""
    total = len(datasets.clusters_of(DOMAINS[0]))
    chosen = np.linspace(0, total - 1, run.pick(smoke=2, long=PICTURES)).round().astype(int)
    x, truth = (from_bytes(datasets.shipped_bytes(name, ["test"])[0][chosen]) for name in DOMAINS)
    part, most = run.pick(smoke=("held_out", 4), long=("train", DOMAIN_PICTURES))
    domain = from_bytes(thinned(datasets.shipped_bytes(DOMAINS[1], [part])[0], most))
    drawn, real = metrics.resample(len(x), datasets.clusters_of(DOMAINS[0])[chosen]), metrics.features(domain)
    sea, shown = water(truth), {"satellite": x[:SHOWN]}

    def row(name: str, pictures: Pictures, seconds: float) -> dict[str, object]:
        same = metrics.compare(pictures, truth)
        return {
            "way": name,
            "pictures": len(x),
            "clusters": drawn.counts.shape[1],
            "psnr": drawn.mean(same.psnr),
            "ssim": drawn.mean(same.ssim),
            "partner": drawn.mean(metrics.hits_by_pixels(pictures, truth)),
            "frechet_early": metrics.feature_distance(metrics.features(pictures), real, drawn),
            "wrong": drawn.mean((water(pictures) != sea).mean((1, 2))),
            "cpu_seconds": round(seconds / len(x), 2),
        }

    for name, way in ways(run, truth, domain).items():
        began = time.process_time()
        pictures = way(x)
        yield row(name, pictures, time.process_time() - began)
        shown[name] = pictures[:SHOWN]
    if not run.smoke:
        save_sheet(
            SHEET, {name: halved(each) for name, each in {**shown, "relief (truth)": truth[:SHOWN]}.items()}
        )


def ways(run: Run, truth: Pictures, domain: Pictures) -> dict[str, Way]:
    """Return each way from the source's pictures to the target's."""
    legs = Settings(evaluations=run.pick(smoke=3, long=24))
    half = Settings(evaluations=legs.evaluations, share=0.5, temperature=0.9, blend=0.15)
    plain, mapped, target = (Model.open(name, threads=1) for name in (DOMAINS[0], AS_RELIEF, DOMAINS[1]))
    alone = Calibration.open(AS_RELIEF).alone
    assert alone is not None

    def bridge(source: Model, request: Request, x: Pictures) -> Pictures:
        return from_results([*translate(to_files(x), source, target, request)])

    def tiles(x: Pictures) -> Pictures:
        models = Model.open("satellite-as-relief", threads=1), Model.open("relief", threads=1)
        return translated(models, x, Request(legs, calibration="satellite-as-relief"), "32")

    tiled: dict[str, Way] = {} if run.smoke else {"tiles of 32 pixels, calibrated": tiles}
    return {
        "histogram matching": lambda x: metrics.histogram_match(x, x, domain),
        "map alone": alone,
        "map alone, through the target's autoencoder": lambda x: target.reconstruct(alone(x)),
        "truth, through the target's autoencoder": lambda _: target.reconstruct(truth),
        "latent models": partial(bridge, plain, Request(legs)),
        "latent models, calibrated": partial(bridge, mapped, Request(legs, calibration=AS_RELIEF)),
        "latent models, calibrated, share 0.5": partial(bridge, mapped, Request(half, calibration=AS_RELIEF)),
        **tiled,
    }


def halved(pictures: Pictures) -> Pictures:
    """Return pictures of half the sides."""
    count, channels, height, width = pictures.shape
    small: Pictures = pictures.reshape(count, channels, height // 2, 2, width // 2, 2).mean((3, 5))
    return small


if __name__ == "__main__":
    sys.exit(command.command(measure, "pictures/large"))
