"""Runs and pictures made up for tests, the same in every process."""

import numpy as np

from ddib_fed.training.config import TrainConfig
from ddib_fed.training.sources import array_source

TINY_NETWORK = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}


def tiny_points(**changes):
    """A run of a second."""
    usual = {
        "kind": "points", "domain": "moons", "steps": 40, "batch": 64, "warmup": 5, "width": 16, "blocks": 1,
        "checkpoint_every": 7, "samples": 200,
    }  # fmt: skip
    return TrainConfig(**usual | changes)


def tiny_pictures(**changes):
    """A run of about a second."""
    usual = {
        "kind": "pictures", "network": TINY_NETWORK, "batch": 8, "steps": 12, "warmup": 2, "checkpoint_every": 5,
        "samples": 2, "flip": True, "dtype": "float32",
    }  # fmt: skip
    return TrainConfig(**usual | changes)


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
    found, labels = blobs(64, channels=channels), np.arange(64) % 2
    parts = {"labels": labels[:56], "held_out_labels": labels[56:], "classes": ("even", "odd")}
    return array_source("spots", found[:56], found[56:], **parts)


def stop_at(step):
    """What stops a run after a step, as Ctrl-C does."""

    def on_progress(progress):
        if progress.step == step:
            raise KeyboardInterrupt

    return on_progress
