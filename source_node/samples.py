"""Files of clients as samples of the node's model, and what came back as files for the client.

Points and pictures differ here and nowhere else in the source node. A file is decoded once, when its job is submitted;
`Given.to_bytes` lies in the spool beside it from then on.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ddib_fed.bridge.party import Decoded
from ddib_fed.bridge.records.translation_record import CycleError, PictureFigures
from ddib_fed.bridge.serving import ServingParty
from ddib_fed.errors import ChunkCorrupt, DdibError, ImageUnreadable, PointsUnreadable, ShapeMismatch
from ddib_fed.files import parse_json
from ddib_fed.metrics.pictures import given_figures, output_terms, own_size_error, psnr
from ddib_fed.metrics.pictures import mse as picture_mse
from ddib_fed.metrics.points import cycle_error
from ddib_fed.metrics.structure import doubtful, expected, structure
from ddib_fed.models.units.channel_map import ChannelMap
from ddib_fed.node.config import MAX_POINTS_PER_ITEM, LimitsSection
from ddib_fed.node.pictures import (
    MEDIA_FORMATS,
    check_size,
    limits_of,
    read_answer,
    read_picture,
    rule_of,
    rule_of_side,
    write_own,
    write_translated,
    write_translation,
)
from ddib_fed.samples.fitting import output_bytes
from ddib_fed.samples.images import Geometry, decode_image
from ddib_fed.samples.kinds import picture_for_points, refuse_picture
from ddib_fed.samples.picture_memory import cost_of, fixed_bytes, memory_of
from ddib_fed.samples.points import parse_npy, read_header, to_npy
from ddib_fed.samples.units import check_type
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.contracts.contract import ContractSide

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Given:
    """What a client's file holds."""

    samples: Array
    original: Array
    picture: PictureFigures | None = None
    model_size: bool = False

    @property
    def is_fitted(self) -> bool:
        return self.picture is not None and self.picture.fitted_height is not None

    @property
    def geometry(self) -> Geometry:
        """The size of results: the one that the picture had, unless they keep the models'."""
        assert self.picture is not None
        if self.model_size:
            return Geometry(*self.samples.shape[-2:])
        return Geometry(self.picture.height, self.picture.width)

    def to_bytes(self, rule: str) -> bytes:
        """For the spool: a line of JSON, then the arrays, float32, little-endian."""
        arrays = [self.samples] if self.original is self.samples else [self.samples, self.original]
        header = {
            "rule": rule,
            "shape": self.samples.shape,
            "arrays": len(arrays),
            "picture": None if self.picture is None else self.picture.model_dump(exclude_none=True),
        }
        return b"".join(
            [json.dumps(header).encode(), b"\n", *(array.astype("<f4").tobytes() for array in arrays)]
        )

    @classmethod
    def from_bytes(cls, data: bytes, rule: str) -> Given | None:
        """What `to_bytes` made; None when it was made by another rule."""
        start = data.find(b"\n") + 1
        try:
            header = parse_json(data[:start])
            if header["rule"] != rule:
                return None
            shape, picture = tuple(header["shape"]), header["picture"]
            arrays = np.frombuffer(data, "<f4", offset=start).reshape(header["arrays"], *shape)
            figures = None if picture is None else PictureFigures.model_validate(picture)
        except (ValueError, KeyError, TypeError) as error:
            raise ChunkCorrupt("a decoded file in the spool cannot be read") from error
        samples = arrays[0].astype(np.float32)
        return cls(samples, samples if len(arrays) == 1 else arrays[1].astype(np.float32), figures)


@dataclass(frozen=True, slots=True)
class Result:
    """A file that the client gets."""

    file: bytes
    figures: Mapping[str, Any]


class Samples(Protocol):
    """One kind of sample."""

    @property
    def media_type(self) -> int:
        """Of the files that come out."""

    @property
    def accepted(self) -> frozenset[int]:
        """Media types of the files that go in."""

    @property
    def rule(self) -> str:
        """What the result of `read` depends on beside the file."""

    def refusal(self, media_type: int) -> DdibError:
        """The error for a file of a type that is not accepted."""

    def read(self, content: bytes, size_rule: str) -> Given:
        """Decode a client's file."""

    def again(self, data: bytes, size_rule: str) -> Given | None:
        """As `read`, from `Given.to_bytes`; None when the file must be decoded again: the model takes other samples."""

    def check_header(self, content: bytes, size_rule: str) -> None:
        """Return unless the header of a file shows that `read` will refuse it."""

    def memory(self, content: bytes) -> int:
        """Bytes that reading it takes at most, beside it, by its header; 0 for what `read` will refuse."""

    def output_memory(self, given: Given) -> int:
        """Bytes that writing a file of this size takes at most."""

    def answer(self, file: bytes, side: ContractSide, count: int) -> Array:
        """The samples in a peer's answer to a latent of `count` samples; `side` is the peer's half of the contract."""

    def translation(
        self, samples: Array, side: ContractSide, given: Given, rotation: ChannelMap | None = None
    ) -> Result:
        """What was decoded, as the client gets it."""

    def returned(self, engine: ServingParty, given: Given, back: Decoded) -> Result:
        """What came back over the cycle, as the client gets it, and how far it is from what was given."""

    def returned_at_own_size(self, content: bytes, back: Decoded) -> Mapping[str, float]:
        """Figures of the round trip of a fitted picture at its own size; `content` is the client's file."""

    def source(self, given: Given) -> Result:
        """The samples that were given, as a file of the model's size."""


class PointSamples:
    """Clouds of points, .npy in and out."""

    media_type: int = common_pb2.MEDIA_TYPE_NPY
    accepted: frozenset[int] = frozenset({common_pb2.MEDIA_TYPE_NPY})

    def __init__(self, engine: ServingParty, limits: LimitsSection) -> None:
        self._dim = engine.model.sample_shape[0]
        self._limits = limits

    @property
    def rule(self) -> str:
        return f"points {self._dim}"

    def refusal(self, media_type: int) -> DdibError:
        formats = {int(media): name for media, name in MEDIA_FORMATS.items()}
        if media_type in formats:
            return picture_for_points(formats[media_type], self._dim)
        return PointsUnreadable(
            f"media type {media_type} for a model of points", facts={"takes": ".npy files of points"}
        )

    def read(self, content: bytes, size_rule: str) -> Given:  # noqa: ARG002 - points have no size
        refuse_picture(content, self._dim)
        points = self._parse(content)
        return Given(points, points)

    def again(self, data: bytes, size_rule: str) -> Given | None:  # noqa: ARG002
        return Given.from_bytes(data, self.rule)

    def check_header(self, content: bytes, size_rule: str) -> None: ...

    def memory(self, content: bytes) -> int:
        try:
            numbers = math.prod(read_header(content)[0].shape)
        except PointsUnreadable:
            return 0
        return 21 * min(numbers, len(content))

    def output_memory(self, given: Given) -> int:
        return 3 * given.samples.nbytes

    def answer(self, file: bytes, side: ContractSide, count: int) -> Array:  # noqa: ARG002
        points = self._parse(file)
        if len(points) != count:
            raise ShapeMismatch(f"{len(points)} samples came back for {count}")
        return points

    def translation(
        self,
        samples: Array,
        side: ContractSide,  # noqa: ARG002
        given: Given,  # noqa: ARG002
        rotation: ChannelMap | None = None,  # noqa: ARG002
    ) -> Result:
        return Result(to_npy(samples), {})

    def source(self, given: Given) -> Result:
        return Result(to_npy(given.samples), {})

    def returned_at_own_size(self, content: bytes, back: Decoded) -> Mapping[str, float]:  # noqa: ARG002
        return {}

    def returned(self, engine: ServingParty, given: Given, back: Decoded) -> Result:
        assert back.normalised is not None  # the node's own model decoded it
        error = CycleError(**cycle_error(engine.model.normalise(given.samples), back.normalised))
        return Result(to_npy(back.samples), {"cycle": error})

    def _parse(self, content: bytes) -> Array:
        limits = self._limits
        return parse_npy(
            content, max_bytes=limits.max_item_bytes, max_points=MAX_POINTS_PER_ITEM, dim=self._dim
        )


class PictureSamples:
    """Pictures, one a file, PNG out."""

    media_type: int = common_pb2.MEDIA_TYPE_PNG

    def __init__(self, engine: ServingParty, limits: LimitsSection) -> None:
        self._rule = rule_of(engine.model.bundle.manifest)
        self._manifest = engine.model.bundle.manifest
        self._limits = limits_of(limits)

    @property
    def accepted(self) -> frozenset[int]:
        return frozenset(media for media, name in MEDIA_FORMATS.items() if name in self._limits.formats)

    @cached_property
    def rule(self) -> str:
        return json.dumps(dataclasses.asdict(self._rule))

    def refusal(self, media_type: int) -> DdibError:
        return ImageUnreadable(
            f"media type {media_type} is not accepted", facts={"formats": ", ".join(self._limits.formats)}
        )

    def read(self, content: bytes, size_rule: str) -> Given:
        fitted = read_picture(content, self._rule, self._limits)
        check_size(fitted.geometry, self._rule, size_rule)
        figures = given_figures(fitted, self._rule, size_rule)
        samples = fitted.samples[None]
        original = samples if fitted.original is fitted.samples else fitted.original[None]
        return Given(samples, original, figures)

    def again(self, data: bytes, size_rule: str) -> Given | None:
        given = Given.from_bytes(data, self.rule)
        if given is None or given.picture is None:
            return None
        check_size(given.geometry, self._rule, size_rule)
        return dataclasses.replace(given, picture=given.picture.model_copy(update={"size_rule": size_rule}))

    def check_header(self, content: bytes, size_rule: str) -> None:
        cost = cost_of(content, self._limits)
        if cost.dtype:
            check_type(cost.dtype, cost.channels, self._rule.low, self._rule.high)
        if (cost.geometry.width, cost.geometry.height) != (
            self._rule.height,
            self._rule.width,
        ):  # lying on its side
            check_size(cost.geometry, self._rule, size_rule)

    def memory(self, content: bytes) -> int:
        return memory_of(content, self._limits, self._rule)

    def output_memory(self, given: Given) -> int:
        deep = dataclasses.replace(self._rule, bits=16)
        return fixed_bytes(given.geometry) + max(
            output_bytes(given.geometry, rule) for rule in (self._rule, deep)
        )

    def answer(self, file: bytes, side: ContractSide, count: int) -> Array:  # noqa: ARG002 - one a file
        return read_answer(file, side)

    def translation(
        self, samples: Array, side: ContractSide, given: Given, rotation: ChannelMap | None = None
    ) -> Result:
        assert given.picture is not None
        file = write_translated(samples, side, given.picture.size_rule, given.geometry)
        kept = structure(given.original, samples.clip(-1.0, 1.0), expected(self._manifest, rotation))
        figures: dict[str, float | None] = {
            **output_terms(rule_of_side(side)),
            "edge_correlation": float(kept.edge_correlation[0]),
            "mutual_information": float(kept.mutual_information[0]),
        }
        if kept.agreement is not None:
            figures["agreement"] = float(kept.agreement[0])
        if (least := self._manifest.structure) is not None:
            figures |= {
                "least_edge_correlation": least.edge_correlation,
                "least_mutual_information": least.mutual_information,
                "least_agreement": None if kept.agreement is None else least.agreement,
                "structure_doubtful": bool(doubtful(kept, least)[0]),
            }
        return Result(file, {"picture": figures})

    def source(self, given: Given) -> Result:
        return Result(write_translation(given.samples, self._rule), {})

    def returned(self, engine: ServingParty, given: Given, back: Decoded) -> Result:  # noqa: ARG002
        written = back.samples.clip(-1.0, 1.0)
        figures = {
            "cycle_mse": float(picture_mse(written, given.original)[0]),
            "cycle_psnr": float(psnr(written, given.original)[0]),
        }
        return Result(write_own(back.samples, self._rule, given.geometry), {"picture": figures})

    def returned_at_own_size(self, content: bytes, back: Decoded) -> Mapping[str, float]:
        return own_size_error(back.samples[0], self._rule, decode_image(content, self._limits))


def samples_of(engine: ServingParty, limits: LimitsSection) -> Samples:
    """What the node's model is of."""
    if engine.model.bundle.manifest.sample_kind == "picture":
        return PictureSamples(engine, limits)
    return PointSamples(engine, limits)
