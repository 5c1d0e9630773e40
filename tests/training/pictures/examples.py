"""Pictures made up for tests, the same in every process."""

import numpy as np

from ddib_fed.training.sources import array_source


def blobs(count, seed=0, *, channels=3, size=8):
    """Pictures (count, channels, size, size) uint8: one bright spot on a dark ground, somewhere."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    centres = rng.uniform(0.25 * size, 0.75 * size, (count, 2, 1, 1))
    spots = np.exp(-((y - centres[:, 0]) ** 2 + (x - centres[:, 1]) ** 2) / 2.0)
    tint = rng.uniform(0.5, 1.0, (count, channels, 1, 1))
    return np.rint(255 * tint * spots[:, None]).astype(np.uint8)


def spots_source(channels=3):
    """56 pictures to train on and 8 held out, of two classes."""
    found = blobs(64, channels=channels)
    labels = np.arange(64) % 2
    return array_source(
        "spots",
        found[:56],
        found[56:],
        labels=labels[:56],
        held_out_labels=labels[56:],
        classes=("even", "odd"),
    )
