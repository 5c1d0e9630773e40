"""What a contract says of pictures, from a model's manifest and back.

A picture's own size stays at the node that decoded its file. The target knows only the model's size; the source
inverts the fit on the result.
"""

from __future__ import annotations

from ddib_fed.metrics.pictures import picture_rule
from ddib_fed.models.manifest import Manifest, PictureFormat
from ddib_fed.node.config import LimitsSection
from ddib_fed.samples.images import ImageLimits, PictureRule
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.contracts.contract import (
    MAX_CLASS_NAMES,
    REFUSE,
    VALUE_RANGES,
    ContractSide,
    PictureTerms,
    is_class_name,
)

MEDIA_FORMATS = {
    common_pb2.MEDIA_TYPE_NPY: "NPY",
    common_pb2.MEDIA_TYPE_PNG: "PNG",
    common_pb2.MEDIA_TYPE_JPEG: "JPEG",
    common_pb2.MEDIA_TYPE_TIFF: "TIFF",
}

MEDIA_TYPES = {name: media for media, name in MEDIA_FORMATS.items()}


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


def class_names_of(manifest: Manifest) -> tuple[str, ...]:
    names = manifest.classes
    return tuple(names) if len(names) <= MAX_CLASS_NAMES and all(map(is_class_name, names)) else ()


def size_rule_of(manifest: Manifest, *, allowed: str) -> str:
    """How a node fits pictures to a model's size, as a contract names it; `allowed` is `[policy] size_rule`."""
    if manifest.sample_kind != "picture":
        return "none"
    return REFUSE if allowed == REFUSE else picture_rule(manifest).fit


def rule_of_side(side: ContractSide) -> PictureRule | None:
    """How the other side's pictures become files; its fit is not known here. None for points."""
    if side.picture is None:
        return None
    channels, height, width = side.sample_shape
    terms = side.picture
    return PictureRule(channels, height, width, "resize", terms.low, terms.high, terms.bits)
