"""Calibrations of colours, without pairs, that need the source's model trained again on its mapped pictures.

    python -m benchmarks.calibration.retrained                                  70 minutes of one core
    python -m benchmarks.calibration.retrained --pairs satellite-relief --seeds 0   of one model alone

The colour map is from the target's noised aggregate. A seed is that of the noise, of the search and of the training.
Models are kept below build/retrained, and one that is there is not trained again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ddib_fed
from benchmarks.calibration.directed import NAMED, ROOT, Directed
from benchmarks.calibration.variants import COLOUR_MAP, under
from benchmarks.command import Rows, Run, command
from ddib_fed import Calibration, CalibrationRequest, TrainConfig

PAIRS = ("satellite-relief", "relief-satellite")
ANCHORS, DAYS = 8, 3650
MAPS = {"steps": 400, "batch": 32, "precision": "bfloat16", "checkpoint_every": 200}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this benchmark."""
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=PAIRS, metavar="SOURCE-TARGET")
    parser.add_argument("--seeds", nargs="+", type=int, help="default: 0 1 2, of the ways back 0 alone")


def measure(run: Run) -> Rows:
    """Train and measure what is asked for."""
    if run.smoke:
        with tempfile.TemporaryDirectory() as folder:
            yield from rows_of(Directed(*NAMED[PAIRS[0]], count=2), 0, Path(folder))
        return
    for pair in run.options.pairs:
        for seed in run.options.seeds or ((0, 1, 2) if pair == PAIRS[0] else (0,)):
            yield from rows_of(Directed(*NAMED[pair]), seed, ROOT / "build" / "retrained" / f"{pair}-{seed}")


def rows_of(directed: Directed, seed: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of one seed: the map alone, and the retrained model at each setting."""
    calibration, name = calibrated(directed, seed, folder), directed.source_name
    values = {
        **MAPS,
        "domain": name,
        "name": name,
        "init": Path(name),
        "calibration": folder / "calibration.json",
        "soften_sigma": directed.models[0].manifest.soften_sigma,
        "seed": seed,
        "command": f"python -m benchmarks.calibration.retrained --pairs {directed.name} --seeds {seed}",
    }
    config, model = TrainConfig.model_validate(values), directed.models[0]
    ways = {} if directed.count else COLOUR_MAP
    if not directed.count:  # in a smoke a step and all that is measured after the last one take 10 s
        model = ddib_fed.train(config, folder / "model", resume=True)
    for row in under(directed, calibration, model, ways):
        yield {"seed": seed, **row, "model": model.digest[:12]}


def calibrated(directed: Directed, seed: int, folder: Path) -> Calibration:
    """Return the calibration of a seed, which is made unless it is there."""
    path = folder / "calibration.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        # In a smoke by pairs, which is quicker.
        anchors = directed.write_anchors(folder / "anchors", ANCHORS, seed) if directed.count else None
        request = CalibrationRequest(kind="colour-map", anchors=anchors, days=DAYS, seed=seed, force=True)
        ddib_fed.calibrate(*directed.models, request).save(path)
    return Calibration.open(path)


if __name__ == "__main__":
    sys.exit(command(measure, "calibration/retrained", arguments=arguments))
