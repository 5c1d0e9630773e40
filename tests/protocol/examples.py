"""Sides, limits and latents that the wire's tests share."""

import numpy as np

from ddib_fed.latent import Latent
from ddib_fed.protocol.contract import (
    CalibrationTerms,
    Contract,
    ContractLimits,
    ContractSide,
    PictureTerms,
    agree,
)

LIMITS = ContractLimits(
    max_items_per_stream=8, max_samples_per_item=100_000, max_latent_bytes=2 << 20, max_evaluations=1_000
)


TERMS = CalibrationTerms(bytes(range(32)), "rotation", 1_798_761_600)
"""Until the first day of 2027."""


def side(**changes) -> ContractSide:
    """A side that serves points; what is not named is the same on both sides."""
    fields = {
        "institution": "north.example",
        "domain": "moons",
        "sample_kind": "point",
        "sample_shape": (2,),
        "model_sha256": bytes(range(32)),
        "terminal_lambda": -5.0,
        "initial_lambda": 5.3,
    }
    return ContractSide(**{**fields, **changes})


def picture_side(**changes) -> ContractSide:
    """A side that serves pictures."""
    fields = {
        "sample_kind": "picture",
        "sample_shape": (3, 8, 8),
        "value_range": "minus-one-to-one",
        "size_rule": "crop",
        "soften_sigma": 0.02,
        "picture": PictureTerms(0.0, 255.0, 8),
    }
    return side(**{**fields, **changes})


def contract(**changes) -> Contract:
    """A contract between two sides that agree."""
    calibration, limits = changes.pop("calibration", None), changes.pop("limits", LIMITS)
    make = picture_side if changes.get("sample_kind") == "picture" else side
    target = {"institution": "south.example", "domain": "checkerboards", **changes}
    return agree(make(**changes), make(**target), limits, calibration)


def latent(samples: int = 1_000, seed: int = 0) -> Latent:
    return Latent.from_array(np.random.default_rng(seed).standard_normal((samples, 2), dtype=np.float32))


class Whiteness:
    """Statistics of a latent as a Gaussian check would take them; figures can be changed."""

    def __init__(self, latent: Latent, **figures: float) -> None:
        self.count = figures.get("count", latent.data.size)
        self.mean = figures.get("mean", float(latent.data.mean(dtype=np.float64)))
        self.std = figures.get("std", float(latent.data.std(dtype=np.float64)))
        self.kurtosis = figures.get("kurtosis", 0.0)
        self.correlation = figures.get("correlation", 0.01)
