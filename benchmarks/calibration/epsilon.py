"""What the noise of an aggregate costs: epsilon and number of pictures against the rotation that is found from it.

    python -m benchmarks.calibration.epsilon      12 minutes of one core

Degrees from the rotation of the true pairs of all test pixels (Procrustes), and PSNR and SSIM of the test pictures that
the calibration's map alone makes, without any network; beside them histogram matching and the paired rotation. Nine
draws of noise and search each, of which the middle one by SSIM counts, and how many are mirrored; delta 1e-5.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ddib_fed
from benchmarks.calibration.directed import Directed, save
from benchmarks.command import Rows, Run, command
from ddib_fed import CalibrationRequest
from ddib_fed.metrics import Pictures, compare

EPSILONS = (0.1, 0.3, 1.0, 3.0, 8.0)
PICTURES, DRAWS = (500, 1_500, 4_000), 9
MIRRORED = 180.0
Numbers = NDArray[np.float64]


def measure(run: Run) -> Rows:
    """Measure the baselines, then each number of pictures at each epsilon."""
    directed = Directed("satellite", "relief", count=run.pick(smoke=4, long=0))
    best = paired_rotation(directed)
    yield {"way": "histogram matching", **figures(directed, directed.histogram_matched())}
    yield {
        "way": "the rotation of all true pairs",
        **figures(directed, rotated(directed, best)),
        "degrees": 0.0,
    }
    for pictures in run.pick(smoke=(4,), long=PICTURES):
        with tempfile.TemporaryDirectory() as folder:
            chosen = np.arange(pictures) * len(directed.train[1]) // pictures
            save(directed.train[1][chosen], Path(folder) / "relief")
            for epsilon in run.pick(smoke=(8.0,), long=EPSILONS):
                seeds = range(run.pick(smoke=1, long=DRAWS))
                draws = [one(directed, Path(folder), epsilon, seed, best) for seed in seeds]
                middle = sorted(draws, key=lambda row: float(row["ssim"]["value"]))[len(draws) // 2]
                mirrored = sum(draw["degrees"] == MIRRORED for draw in draws)
                yield {"pictures": pictures, "epsilon": epsilon, "mirrored": mirrored, **middle}


def one(directed: Directed, folder: Path, epsilon: float, seed: int, best: Numbers) -> dict[str, Any]:
    """Calibrate with one draw of noise; in a smoke from anchors, because a search takes 5 s."""
    anchors = directed.write_anchors(folder / "anchors", 4, 0) if directed.count else None
    few = CalibrationRequest(epsilon=epsilon, anchors=anchors, seed=seed, force=True)
    request = replace(few, target_pictures=folder / "relief")
    calibration = ddib_fed.calibrate(*directed.models, request)
    assert calibration.alone is not None
    return {
        **figures(directed, calibration.alone(directed.test[0])),
        "degrees": degrees(calibration.map.matrix, best),
        "margin": calibration.effect.margin.value,
        "bytes": calibration.made.crossed_bytes,
    }


def figures(directed: Directed, pictures: Pictures) -> dict[str, Any]:
    """Return PSNR and SSIM against the truth."""
    same = compare(pictures, directed.test[1])
    return {"psnr": directed.drawn.mean(same.psnr), "ssim": directed.drawn.mean(same.ssim)}


def paired_rotation(directed: Directed) -> Numbers:
    """Return the orthogonal map nearest to the true pairs of all test pixels: what a search should find."""
    units = [
        model.manifest.normalisation.apply(x) for model, x in zip(directed.models, directed.test, strict=True)
    ]
    u, v = (np.moveaxis(each, 1, -1).reshape(-1, 3).astype(np.float64) for each in units)
    left, _, right = np.linalg.svd(v.T @ u)
    return np.asarray(left @ right)


def rotated(directed: Directed, rotation: Numbers) -> Pictures:
    """Return the test pictures with their colours turned."""
    units = [model.manifest.normalisation for model in directed.models]
    turned = np.einsum("ij,njhw->nihw", rotation, units[0].apply(directed.test[0])).astype(np.float32)
    return units[1].undo(turned).clip(-1.0, 1.0)


def degrees(first: Numbers, second: Numbers) -> float:
    """Return the angle between two orthogonal maps; 180 where one of them mirrors."""
    between = first @ second.T
    if np.linalg.det(between) < 0:
        return MIRRORED
    return float(np.degrees(np.arccos(np.clip((np.trace(between) - 1) / 2, -1.0, 1.0))))


if __name__ == "__main__":
    sys.exit(command(measure, "calibration/epsilon"))
