"""What two latents of one volume reveal by their difference: with one softening noise for all slices, or one for each.

    python -m benchmarks.calibration.lesions      a minute of one core

Of two slices of a head, one has a planted lesion. The attacker holds no model: it subtracts the latents, blurs the
difference and looks where it is largest. The other slice is the same one without the lesion, or its true neighbour.
Intervals are over groups of four neighbouring slices.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from benchmarks.calibration.directed import from_bytes
from benchmarks.command import Rows, Run, command
from ddib_fed import Model, Settings, datasets, metrics
from ddib_fed.metrics import Pictures

HEADS = ("brain-t1", "brain-t2")
PAIRS, RADIUS, BRIGHTER, BLUR = 24, 2.5, 0.4, 1.5
"""Pairs of slices; of a lesion, pixels, and a fifth of the range of values; of the attacker's blur, pixels."""


def measure(run: Run) -> Rows:
    """Count the lesions that are found in each head."""
    for head in HEADS[: run.pick(smoke=1, long=2)]:
        yield from rows_of(head, *run.pick(smoke=(2, 4), long=(PAIRS, 24)))


def rows_of(head: str, pairs: int, evaluations: int) -> Rows:
    """Yield what is found with noise of its own for each slice, and with one for all."""
    model, slices = Model.open(head, threads=1), from_bytes(datasets.shipped_bytes(head, ["test"])[0])
    plain, neighbours = slices[: 2 * pairs : 2], slices[1 : 2 * pairs : 2]
    planted, places = plant(plain)
    sigma, settings = model.manifest.soften_sigma, Settings(evaluations=evaluations)
    drawn = metrics.resample(pairs, datasets.clusters_of(head)[: 2 * pairs : 2])

    def latents(pictures: Pictures, seed: int) -> NDArray[np.float32]:
        alpha, noise = (
            1.0 / math.hypot(1.0, sigma),
            np.random.default_rng(seed).standard_normal(pictures.shape),
        )
        softened = alpha * model.units(pictures) + alpha * sigma * noise
        return model.integrate(softened.astype(np.float32), settings, sigma=sigma)

    def found(others: Pictures, seed: int) -> Any:
        seen = np.abs(ndimage.gaussian_filter(z - latents(others, seed), (0, 0, BLUR, BLUR)))[:, 0]
        at = np.stack(np.unravel_index(seen.reshape(pairs, -1).argmax(1), seen.shape[1:]), axis=1)
        return drawn.mean(np.hypot(*(at - places).T) <= RADIUS + 1)

    z, chance = latents(planted, 1), math.pi * (RADIUS + 1) ** 2 / plain[0].size
    for noise, seed in (("own", 2), ("one", 1)):
        figures = {"next": found(neighbours, seed), "same": found(plain, seed)}
        yield {"head": head, "noise": noise, "pairs": pairs, **figures, "chance": chance}


def plant(plain: Pictures) -> tuple[Pictures, NDArray[np.float64]]:
    """Return slices (N, 1, H, W) with a lesion in each, and where it is."""
    planted, places, rng = plain.copy(), np.empty((len(plain), 2)), np.random.default_rng(0)
    rows, columns = np.indices(plain.shape[2:])
    for place, (picture,) in zip(places, planted, strict=True):
        brain = ndimage.binary_erosion(ndimage.binary_fill_holes(picture > -0.7), iterations=6)
        place[:] = rng.choice(np.argwhere(brain))
        lesion = np.hypot(rows - place[0], columns - place[1]) <= RADIUS
        picture[lesion] = np.minimum(picture[lesion] + BRIGHTER, 1.0)
    return planted, places


if __name__ == "__main__":
    sys.exit(command(measure, "calibration/lesions"))
