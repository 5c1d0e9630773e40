"""What a latent reveals to a surrogate inverter, satellite to relief.

    python -m benchmarks.calibration.leaks      12 minutes of one core

For each share and depth, latents of 512 pictures of the source's training part and their pictures fit the surrogates of
`ddib privacy report`, and latents of the test part are read: PSNR and SSIM of what is read, and how often the nearest
of all test pictures is the right one. Beside them the guess without a latent, the mean of the known pictures. Latents
of partial depth are read off on the way to full depth. A calibrated latent is the plain one, rotated by a matrix that
the contract holds, so it reveals the same. Intervals are over clusters of overlapping pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.calibration.directed import Directed, from_bytes
from benchmarks.command import Rows, Run, command
from ddib_fed import metrics
from ddib_fed.lab.report import Latents, correlation_matrix, fit_inverter, latents_along
from ddib_fed.metrics import Pictures

SHARES: Mapping[float, tuple[float, ...]] = {1.0: (0.85, 0.7, 0.5, 0.3), 0.75: (), 0.5: ()}
"""Shares, and depths beside the whole."""
KNOWN, EVALUATIONS, STEPS = 512, 24, 200
"""Pairs that the surrogates are fitted to, evaluations of encoding, and steps of the surrogate network's training."""


def measure(run: Run) -> Rows:
    """Measure each share and depth."""
    directed = Directed("satellite", "relief", count=run.pick(smoke=2, long=0))
    rows = np.linspace(0, len(directed.train[0]) - 1, run.pick(smoke=16, long=KNOWN)).round().astype(int)
    known, model = from_bytes(directed.train[0][rows]), directed.models[0]
    x = [model.units(pictures) for pictures in (known, directed.test[0])]
    guess = np.broadcast_to(known.mean(0), directed.test[0].shape).astype(np.float32)
    yield {"share": None, "depth": None, "surrogate": "none", **read(directed, guess)}
    for share, depths in run.pick(smoke={1.0: ()}, long=SHARES).items():
        how: dict[str, Any] = {"depths": depths, "share": share, "sigma": model.manifest.soften_sigma}
        how["evaluations"] = run.pick(smoke=4, long=EVALUATIONS)
        latents = [latents_along(model, units, seed=seed, **how) for seed, units in ((1, x[0]), (0, x[1]))]
        for depth in (1.0, *depths):
            z: Latents = {side: along[depth] for side, along in enumerate(latents)}
            surrogate = fit_inverter(z[0], x[0], steps=run.pick(smoke=0, long=STEPS))
            pictures = model.out_of_units(surrogate.inverse(z[1])).clip(-1.0, 1.0)
            white = metrics.whiteness(torch.from_numpy(z[1]))
            yield {
                "share": share,
                "depth": depth,
                "surrogate": surrogate.name,
                **read(directed, pictures),
                "correlation": directed.drawn.mean(np.diagonal(correlation_matrix(z[1], x[1]))),
                "latent_ratio": white.ratio,
                "latent_std": white.latent.std,
            }


def read(directed: Directed, pictures: Pictures) -> dict[str, Any]:
    """Return how near what is read is to the test pictures."""
    originals, drawn = directed.test[0], directed.drawn
    same = metrics.compare(pictures, originals)
    return {
        "psnr_read": drawn.mean(same.psnr),
        "ssim_read": drawn.mean(same.ssim),
        "re_identified": drawn.mean(metrics.hits_by_pixels(pictures, originals, nearest=1)),
        "chance": 1.0 / len(originals),
    }


if __name__ == "__main__":
    sys.exit(command(measure, "calibration/leaks"))
