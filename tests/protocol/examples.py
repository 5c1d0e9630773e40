"""Sides, limits and latents that the wire's tests share."""

from typing import Any

import numpy as np

from ddib_fed.latent import Latent
from ddib_fed.protocol.contract import Contract, agree
from ddib_fed.v1.common_pb2 import CalibrationTerms, GuidanceTerms, PictureTerms
from ddib_fed.v1.decoding_pb2 import ContractLimits, ContractSide


def limits_of(items: int, samples: int, size_bytes: int, evaluations: int) -> ContractLimits:
    return ContractLimits(
        max_items_per_stream=items, max_samples_per_item=samples, max_latent_bytes=size_bytes,
        max_evaluations=evaluations,
    )  # fmt: skip


LIMITS = limits_of(8, 100_000, 2 << 20, 1_000)
TERMS = CalibrationTerms(sha256=bytes(range(32)), kind="rotation", expires=1_798_761_600)
"""Until the first day of 2027."""


def changed(message: Any, **fields: Any) -> Any:
    """A copy with other fields."""
    return type(message)(**{**{field.name: value for field, value in message.ListFields()}, **fields})


def offer(
    scale: float, classifier: float = 0.0, sha256: bytes = b"", classes: int = 0, *, clip: bool = False
) -> GuidanceTerms:
    return GuidanceTerms(
        max_guidance=scale, max_classifier_scale=classifier, classifier_sha256=sha256, classifier_classes=classes,
        clip=clip,
    )  # fmt: skip


def side(**changes) -> ContractSide:
    """A side that serves points; what is not named is the same on both sides."""
    fields = {
        "institution": "north.example",
        "domain": "moons",
        "sample_kind": "point",
        "sample_shape": (2,),
        "model_sha256": bytes(range(32)),
        "size_rule": "none",
        "value_range": "unit-std",
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
        "picture": PictureTerms(low=0.0, high=255.0, bits=8),
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
