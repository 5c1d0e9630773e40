"""Converts a client's file to the model's array, and a model's output to the client's file.

A picture's own size stays at the node that decoded its file. The target knows only the model's size; the source
inverts the fit on the result. No metadata survives: output files are written from pixels.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import ShapeMismatch
from ddib_fed.models.manifest import Manifest, PictureFormat
from ddib_fed.node.config import LimitsSection
from ddib_fed.samples.images import (
    Fitted,
    Geometry,
    ImageLimits,
    PictureRule,
    decode_image,
    encode_png,
    fit_picture,
    from_array,
    to_array,
)
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.contracts.contract import (
    MAX_CLASS_NAMES,
    REFUSE,
    VALUE_RANGES,
    ContractSide,
    PictureTerms,
    is_class_name,
)

Array = NDArray[np.float32]

MEDIA_FORMATS = {
    common_pb2.MEDIA_TYPE_NPY: "NPY",
    common_pb2.MEDIA_TYPE_PNG: "PNG",
    common_pb2.MEDIA_TYPE_JPEG: "JPEG",
    common_pb2.MEDIA_TYPE_TIFF: "TIFF",
}


def limits_of(section: LimitsSection) -> ImageLimits:
    """The limits on a client's picture, from node.toml."""
    return ImageLimits(max_bytes=section.max_item_bytes, max_pixels=section.max_pixels)


def terms_of(manifest: Manifest) -> PictureTerms | None:
    """The contract's description of the values in this model's files; None for points."""
    if manifest.sample_kind != "picture":
        return None
    form = manifest.picture or PictureFormat()
    return PictureTerms(form.low, form.high, form.bits)


def value_range_of(manifest: Manifest) -> str:
    usual, *others = VALUE_RANGES[manifest.sample_kind]
    return usual if manifest.normalisation.colours == "rgb" else others[0]


def rule_of(manifest: Manifest) -> PictureRule:
    """How files become pictures of this model; without it in the manifest, 8-bit files are resized."""
    channels, height, width = manifest.sample_shape
    form = manifest.picture or PictureFormat()
    return PictureRule(channels, height, width, form.fit, form.low, form.high, form.bits)


def class_names_of(manifest: Manifest) -> tuple[str, ...]:
    names = manifest.classes
    return tuple(names) if len(names) <= MAX_CLASS_NAMES and all(map(is_class_name, names)) else ()


def size_rule_of(manifest: Manifest, *, allowed: str) -> str:
    """How a node fits pictures to a model's size, as a contract names it; `allowed` is `[policy] size_rule`."""
    if manifest.sample_kind != "picture":
        return "none"
    return REFUSE if allowed == REFUSE else rule_of(manifest).fit


def read_picture(content: bytes, rule: PictureRule, limits: ImageLimits) -> Fitted:
    return fit_picture(decode_image(content, limits), rule)


def check_size(geometry: Geometry, rule: PictureRule, size_rule: str) -> None:
    """Return if a contract's size rule accepts a picture of this size; "refuse" accepts only the model's own."""
    if size_rule == REFUSE and (geometry.height, geometry.width) != (rule.height, rule.width):
        said, wanted = f"{geometry.height}x{geometry.width}", f"{rule.height}x{rule.width}"
        raise ShapeMismatch(
            f"a picture of {said} pixels where {wanted} alone is taken",
            hint="resize it to that size, or let both operators set policy.size_rule to model",
            facts={"size": said, "expected": wanted, "size_rule": REFUSE},
        )


def write_translation(samples: Array, rule: PictureRule) -> bytes:
    return encode_png(from_array(samples[0], rule))


def read_answer(content: bytes, side: ContractSide) -> Array:
    """The picture that a peer answered with, at the model's size."""
    rule = rule_of_side(side)
    limits = ImageLimits(max_bytes=len(content), max_pixels=rule.height * rule.width, formats=("PNG",))
    picture = decode_image(content, limits)
    agreed = (rule.height, rule.width, rule.channels)
    if picture.pixels.shape != agreed or picture.bits != rule.bits:
        said = f"{'x'.join(map(str, picture.pixels.shape))} of {picture.bits} bits"
        wanted = f"{'x'.join(map(str, agreed))} of {rule.bits} bits"
        raise ShapeMismatch(
            f"a picture of {said} came, {wanted} was agreed", facts={"got": said, "agreed": wanted}
        )
    array, _ = to_array(picture, _in_numbers(rule))
    return array[None]


def write_translated(samples: Array, side: ContractSide, size_rule: str, geometry: Geometry) -> bytes:
    return encode_png(from_array(samples[0], _in_numbers(rule_of_side(side, size_rule)), geometry))


def write_own(samples: Array, rule: PictureRule, geometry: Geometry) -> bytes:
    return encode_png(from_array(samples[0], rule, geometry))


def rule_of_side(side: ContractSide, size_rule: str = REFUSE) -> PictureRule:
    """The other side's rule; if sizes are refused there is nothing to invert, and any fit will do."""
    assert side.picture is not None  # a contract of pictures has it
    channels, height, width = side.sample_shape
    terms = side.picture
    fit = "resize" if size_rule == REFUSE else size_rule
    # A contract's size rule is one of the rule's own names.
    return PictureRule(channels, height, width, fit, terms.low, terms.high, terms.bits)  # type: ignore[arg-type]


def _in_numbers(rule: PictureRule) -> PictureRule:
    if rule.output_scale == (1.0, 0.0):
        return rule
    return dataclasses.replace(rule, low=0.0, high=float(rule.top))
