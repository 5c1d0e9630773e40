"""Coasts of 256 x 75 pixels of the satellite map to relief: in tiles that are averaged, as one ODE, and at the dial.

    python -m benchmarks.calibration.scenes      ten minutes of one core

Tiles are cut and averaged as `ddib translate` does it between nodes; under the rotation from one aggregate. Wrong is a
pixel on the other side of sea and land (benchmarks.pictures.marks); a scene is marked by the share of its pixels that
differ from the map, as the source's thresholds say. Intervals are over stripes of the map.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import ddib_fed
from benchmarks.calibration.directed import Directed, from_bytes, save, to_files
from benchmarks.calibration.variants import DIAL, LEGS, agreed
from benchmarks.command import Rows, Run, command
from benchmarks.pictures.judged import water
from ddib_fed import Model, Request, Settings
from ddib_fed.datasets import cut_scene
from ddib_fed.metrics import Pictures, compare, histogram_match, resample, structure

STRIPES, ROWS, HEIGHT = range(7), (112, 368, 624, 832), 256
SEA = (0.25, 0.8)
FEW = Settings(evaluations=4, blend=0.3)


def measure(run: Run) -> Rows:
    """Measure the baselines and each way."""
    directed = Directed("satellite", "relief", count=run.pick(smoke=2, long=0))
    stripes, x, truth = scenes(*run.pick(smoke=(STRIPES[:1], 64), long=(STRIPES, HEIGHT)))
    ways = run.pick(smoke={"proposed": FEW}, long={"share 1": LEGS, "proposed": DIAL})
    calibration, drawn = agreed(directed)[0], resample(len(x), stripes)
    assert calibration.alone is not None
    mapping, least = calibration.alone, directed.thresholds

    def row(way: str, pictures: Pictures, **more: Any) -> dict[str, Any]:
        same, sea = compare(pictures, truth), water(truth)
        wrong, differs = water(pictures) != sea, structure(x, pictures, mapping, least).differs
        assert differs is not None
        shares = differs.mean((1, 2))
        return {
            "way": way,
            "scenes": len(x),
            "psnr": drawn.mean(same.psnr),
            "ssim": drawn.mean(same.ssim),
            "wrong": drawn.mean(wrong.mean((1, 2))),
            "sea_as_land": drawn.mean((wrong & sea).sum((1, 2)) / sea.sum((1, 2))),
            "differs": drawn.mean(shares),
            "marked": int((shares > least.differs).sum()),
            **more,
        }

    yield row("the map alone", mapping(x))
    yield row("histogram matching", histogram_match(x, *(from_bytes(part[::10]) for part in directed.train)))
    whole = [model.of_scene(*x.shape[2:]) for model in directed.models]
    for title, models, tile in (("tiles, averaged", directed.models, "32"), ("one ODE", whole, "none")):
        for name, settings in ways.items():
            began = time.process_time()
            request = Request(settings, calibration=calibration, left=())
            pictures = translated(models, x, request, tile)
            seconds = round((time.process_time() - began) / len(x), 1)
            yield row(f"{title}, {name}", pictures, cpu_seconds=seconds)


def scenes(stripes: range, height: int) -> tuple[Any, Pictures, Pictures]:
    """Return the stripes, sources and truths of the coasts."""
    places = [(stripe, top) for stripe in stripes for top in ROWS]
    kinds = "satellite", "relief"
    pairs = [[from_bytes(cut_scene(kind, n, (top, top + height), 1)) for kind in kinds] for n, top in places]
    kept = [n for n, (_, truth) in enumerate(pairs) if SEA[0] < water(truth[None]).mean() < SEA[1]]
    sources, truths = (np.stack([pairs[n][side] for n in kept]) for side in (0, 1))
    return np.array([places[n][0] for n in kept]), sources, truths


def translated(models: Sequence[Model], x: Pictures, request: Request, tile: str) -> Pictures:
    """Translate scenes as files, as `ddib translate` does."""
    with tempfile.TemporaryDirectory() as folder:
        files, out = Path(folder) / "in", Path(folder) / "out"
        save(np.stack(to_files(x)).transpose(0, 3, 1, 2), files)
        client = models[0].to(models[1])
        run = ddib_fed.Run(client, client.target, out, request)
        run.open([files], tile=tile)
        run.read()
        run.translate()
        run.conclude()
        pictures = [np.asarray(Image.open(path)) for path in sorted(out.glob("*.png"))]
    return from_bytes(np.stack(pictures).transpose(0, 3, 1, 2))


if __name__ == "__main__":
    sys.exit(command(measure, "calibration/scenes"))
