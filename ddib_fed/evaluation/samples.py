"""Files as samples of a model, and what came back as files: the same for a source node and for one process.

Points, pictures and volumes differ here and nowhere else. No metadata survives: output files are written from pixels.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data.fitting import (
    PictureRule,
    fit_picture,
    fitted_size,
    fixed_bytes,
    from_array,
    memory_of,
    output_bytes,
    own_size_mse,
    to_array,
)
from ddib_fed.data.pictures import (
    Geometry,
    ImageLimits,
    Picture,
    Pixels,
    decode_image,
    decode_volume,
    encode_png,
    encode_volume,
    faults_as_unreadable,
    volume_shape,
)
from ddib_fed.data.points import (
    parse_npy,
    picture_for_points,
    picture_for_volumes,
    read_header,
    refuse_picture,
    to_npy,
)
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Decoded
from ddib_fed.errors import DdibError, ImageUnreadable, PointsUnreadable, ShapeMismatch
from ddib_fed.metrics import cycle_error, doubtful, file_rule, mse, structure, to_psnr
from ddib_fed.models.units import PictureMap
from ddib_fed.record import CycleError, PictureFigures, digits

Array = NDArray[np.float32]
REFUSE = "refuse"  # the size rule that accepts the model's own size alone


@dataclass(frozen=True, slots=True)
class Given:
    """Samples in a client's file."""

    samples: Array
    original: Array
    picture: PictureFigures | None = None
    model_size: bool = False

    @property
    def is_fitted(self) -> bool:
        return self.picture is not None and self.picture.fitted_height is not None

    @property
    def geometry(self) -> Geometry:
        """Size of results: the picture's, unless they keep the models', as volumes always do."""
        assert self.picture is not None
        if self.model_size or self.picture.depth:
            return Geometry(math.prod(self.samples.shape[2:-1]), self.samples.shape[-1])
        return Geometry(self.picture.height, self.picture.width)

    def at_model_size(self) -> Given:
        """Return a copy for results that keep the models' size."""
        enlarged_from = dict.fromkeys(("fitted_height", "fitted_width"))  # nothing is enlarged again
        picture = None if self.picture is None else self.picture.model_copy(update=enlarged_from)
        return dataclasses.replace(self, picture=picture, model_size=True)


class SampleFile(NamedTuple):
    """A result as a file, and its record."""

    file: bytes
    figures: Mapping[str, Any] = MappingProxyType({})


class PointSamples:
    """Clouds of points, .npy in and out; methods as of `PictureSamples`."""

    format: str = "NPY"
    formats: frozenset[str] = frozenset({"NPY"})

    def __init__(self, model: DomainModel, max_bytes: int, max_points: int) -> None:
        self._model, self._dim = model, model.sample_shape[0]
        self._max_bytes, self._max_points = max_bytes, max_points

    def refusal(self, given: str) -> DdibError:
        if given:
            return picture_for_points(given, self._dim)
        problem = "an unknown media type for a model of points"
        return PointsUnreadable(problem, facts={"takes": ".npy files of points"})

    def read(self, content: bytes, size_rule: str) -> Given:  # noqa: ARG002 - points have no size
        refuse_picture(content, self._dim)
        points = self._parse(content)
        return Given(points, points)

    def memory(self, content: bytes) -> int:
        try:
            numbers = math.prod(read_header(content).shape)
        except PointsUnreadable:
            return 0
        return 21 * min(numbers, len(content))

    def output_memory(self, given: Given) -> int:
        return 3 * given.samples.nbytes

    def answer(self, file: bytes, rule: PictureRule | None, count: int) -> Array:  # noqa: ARG002
        points = self._parse(file)
        if len(points) != count:
            raise ShapeMismatch(f"{len(points)} samples came back for {count}")
        return points

    def translation(self, samples: Array, *_: object, **__: object) -> SampleFile:
        return SampleFile(self.file(samples))

    def file(self, samples: Array) -> bytes:
        return to_npy(samples)

    def returned(self, given: Given, back: Decoded) -> SampleFile:
        assert back.normalised is not None  # the own model decoded it
        error = CycleError(**cycle_error(self._model.normalise(given.samples), back.normalised))
        return SampleFile(to_npy(back.samples), {"cycle": error})

    def returned_at_own_size(self, content: bytes, back: Decoded) -> Mapping[str, float]:
        del content, back
        return {}

    def _parse(self, content: bytes) -> Array:
        return parse_npy(content, max_bytes=self._max_bytes, max_points=self._max_points, dim=self._dim)


class PictureSamples:
    """Pictures, one a file of `formats` in and PNG out; `rule` is what `read` depends on beside the file."""

    format: str = "PNG"

    def __init__(self, model: DomainModel, limits: ImageLimits) -> None:
        self._model, self._manifest = model, model.bundle.manifest
        self._rule, self._limits = file_rule(self._manifest), limits
        self.formats = frozenset(limits.formats)

    def refusal(self, given: str) -> DdibError:
        """Return the error for a file of a format that is not accepted."""
        return ImageUnreadable(
            f"{given or 'an unknown media type'} is not accepted",
            facts={"formats": ", ".join(self._limits.formats)},
        )

    def read(self, content: bytes, size_rule: str) -> Given:
        """Read the samples in a client's file, and the part of its record known before the translation."""
        rule = self._rule
        fitted = fit_picture(self._decoded(content), rule)
        check_size(fitted.geometry, rule, size_rule)
        size, (slope, intercept) = fitted_size(rule, fitted.geometry), rule.output_scale
        figures = PictureFigures(
            height=fitted.geometry.height,
            width=fitted.geometry.width,
            size_rule=size_rule,
            fitted_height=size[0] if size else None,
            fitted_width=size[1] if size else None,
            source_low=rule.low,
            source_high=rule.high,
            back_slope=slope,
            back_intercept=intercept,
            clipped=fitted.use.clipped,
            outside=round(fitted.use.outside, 4),
            used=round(fitted.use.used, 4),
        )
        shape = 1, *self._model.sample_shape
        return Given(fitted.samples.reshape(shape), fitted.original.reshape(shape), figures)

    def memory(self, content: bytes) -> int:
        """Return the bytes that reading takes at most beside the file, by its header; 0 if it will be refused."""
        return memory_of(content, self._limits, self._rule)

    def output_memory(self, given: Given) -> int:
        """Return the bytes that writing a file of this size takes at most."""
        rules = self._rule, dataclasses.replace(self._rule, bits=16)
        return fixed_bytes(given.geometry) + max(output_bytes(given.geometry, rule) for rule in rules)

    def answer(self, file: bytes, rule: PictureRule | None, count: int) -> Array:  # noqa: ARG002 - one a file
        """Read a peer's answer to a latent of `count` samples, by the rule of its pictures."""
        assert rule is not None
        return read_answer(file, rule)

    def translation(
        self,
        samples: Array,
        rule: PictureRule | None,
        given: Given,
        mapping: PictureMap | None = None,
        *,
        blend: float = 0.0,
    ) -> SampleFile:
        """Write the translation by the target's rule, with figures of the structure that it kept.

        A share `blend` of the result is the source's own picture, mapped by the calibration.
        """
        assert given.picture is not None
        assert rule is not None
        # The fit that was done to the source is what is undone; where sizes are refused there is nothing to undo.
        own: Any = "resize" if given.picture.size_rule == REFUSE else given.picture.size_rule
        least = self._manifest.structure
        before, after = self._seen(given.original), self._seen(samples)
        kept = structure(before, after.clip(-1.0, 1.0), mapping, least)
        if blend and mapping is not None:
            samples = (1.0 - blend) * samples + blend * mapping(given.samples)
        file = self._file(samples, in_numbers(dataclasses.replace(rule, fit=own)), given.geometry)
        figures: dict[str, float | str | None] = {"low": rule.low, "high": rule.high, "bits": rule.bits}
        figures |= dict(zip(("slope", "intercept"), rule.output_scale, strict=True))
        figures["edge_correlation"] = float(kept.edge_correlation[0])
        if least is not None:
            figures["least_edge_correlation"] = least.edge_correlation
            figures["structure_doubtful"] = bool(doubtful(kept, least)[0])
            if kept.differs is not None:
                figures |= {"differs": float(kept.differs[0].mean()), "most_differs": least.differs}
                figures["differs_at"] = digits(kept.differs[0])
        if mapping is not None and mapping.forced:  # a map refused for its figures marks nothing
            figures["structure_doubtful"] = True
        return SampleFile(file, {"picture": figures})

    def file(self, samples: Array) -> bytes:
        return self._file(samples, self._rule)

    def returned(self, given: Given, back: Decoded) -> SampleFile:
        """Write the picture that came back, with the error of the round trip at the model's size."""
        error = mse(back.samples.clip(-1.0, 1.0), given.original)
        figures = {"cycle_mse": float(error[0]), "cycle_psnr": float(to_psnr(error)[0])}
        if self._model.bundle.autoencoder is not None:
            alone = self._model.out_of_units(self._model.into_units(given.samples)).clip(-1.0, 1.0)
            figures["autoencoder_psnr"] = float(to_psnr(mse(alone, given.original))[0])
        return SampleFile(self._file(back.samples, self._rule, given.geometry), {"picture": figures})

    def returned_at_own_size(self, content: bytes, back: Decoded) -> Mapping[str, float]:
        """Return figures of a fitted picture's round trip at the size in the client's file."""
        error = own_size_mse(back.samples[0], self._rule, decode_image(content, self._limits))
        return {"cycle_mse": error, "cycle_psnr": float(to_psnr(np.array([error]))[0])}

    def _seen(self, samples: Array) -> Array:
        """Return the part whose structure is compared."""
        return samples

    def _file(self, samples: Array, rule: PictureRule, geometry: Geometry | None = None) -> bytes:
        rows = samples[0].reshape(len(samples[0]), -1, samples.shape[-1])
        return self._encoded(from_array(rows, rule, geometry))

    def _decoded(self, content: bytes) -> Picture:
        return decode_image(content, self._limits)

    def _encoded(self, pixels: Pixels) -> bytes:
        return encode_png(pixels)


MOST_SLICES = 16  # of a volume whose edges are compared
NUMBER_BYTES = 20  # memory for a voxel's number while a volume is read, or written and compared


class VolumeSamples(PictureSamples):
    """Volumes of the model's shape, one a .npy, in and out; within, a volume is one picture of D * H rows."""

    format: str = "NPY"

    def __init__(self, model: DomainModel, limits: ImageLimits) -> None:
        super().__init__(model, dataclasses.replace(limits, formats=("NPY",)))
        channels, *sides = model.sample_shape
        self._shape, self._numbers = (*sides, channels), channels * math.prod(sides)

    def refusal(self, given: str) -> DdibError:
        return picture_for_volumes(f"a picture ({given or 'of an unknown type'})", self._called)

    def read(self, content: bytes, size_rule: str) -> Given:
        self._limits.check_bytes(len(content))
        given = super().read(content, size_rule)
        assert given.picture is not None
        size = dict(zip(("depth", "height", "width"), self._shape, strict=False))
        return dataclasses.replace(given, picture=given.picture.model_copy(update=size))

    def memory(self, content: bytes) -> int:
        try:
            self._check_shape(content)
        except DdibError:
            return 0
        return NUMBER_BYTES * self._numbers

    def output_memory(self, given: Given) -> int:  # noqa: ARG002 - all volumes have one shape
        return NUMBER_BYTES * self._numbers

    def answer(self, file: bytes, rule: PictureRule | None, count: int) -> Array:  # noqa: ARG002 - one a file
        assert rule is not None
        return agreed(self._decoded(file).pixels, rule).reshape(1, *self._model.sample_shape)

    @property
    def _called(self) -> str:
        return " x ".join(map(str, self._shape[:3]))

    def _check_shape(self, content: bytes) -> None:
        """Raise ShapeMismatch unless a .npy has the model's sides; channels are checked when it is decoded."""
        shape = volume_shape(read_header(content))
        if shape[:3] != self._shape[:3]:
            size = " x ".join(map(str, shape[:3]))
            raise ShapeMismatch(
                f"a volume of {size} voxels where {self._called} alone is taken",
                hint="ddib translate brings NIfTI files and DICOM series to the model's size; of larger volumes both "
                "operators may set [model] scene",
                facts={"size": size, "expected": self._called},
            )

    def _seen(self, samples: Array) -> Array:
        return samples[:, :, :: -(-self._shape[0] // MOST_SLICES)]

    def _decoded(self, content: bytes) -> Picture:
        with faults_as_unreadable("NPY"):
            self._check_shape(content)
        voxels = decode_volume(content)
        return Picture(voxels.reshape(-1, *voxels.shape[2:]), "NPY")

    def _encoded(self, pixels: Pixels) -> bytes:
        return encode_volume(pixels.reshape(self._shape[0], -1, *pixels.shape[1:]))


Samples = PointSamples | PictureSamples


def samples_of(model: DomainModel, limits: ImageLimits, max_points: int) -> Samples:
    if not model.is_picture:
        return PointSamples(model, limits.max_bytes, max_points)
    return (VolumeSamples if model.manifest.sample_kind == "volume" else PictureSamples)(model, limits)


def check_size(geometry: Geometry, rule: PictureRule, size_rule: str) -> None:
    """Raise ShapeMismatch unless a size rule accepts a picture of this size."""
    if size_rule == REFUSE and (geometry.height, geometry.width) != (rule.height, rule.width):
        said, wanted = f"{geometry.height}x{geometry.width}", f"{rule.height}x{rule.width}"
        raise ShapeMismatch(
            f"a picture of {said} pixels where {wanted} alone is taken",
            hint="resize it to that size, or let both operators set policy.size_rule to model",
            facts={"size": said, "expected": wanted, "size_rule": REFUSE},
        )


def read_answer(content: bytes, rule: PictureRule) -> Array:
    """Read the picture (1, C, H, W) in a peer's answer, at the model's size."""
    limits = ImageLimits(max_bytes=len(content), max_pixels=rule.height * rule.width, formats=("PNG",))
    return agreed(decode_image(content, limits).pixels, rule)[None]


def agreed(pixels: Pixels, rule: PictureRule) -> Array:
    """Return the array (C, H, W) of pixels; raise ShapeMismatch unless their size and type are the rule's."""
    shape, kind = (rule.height, rule.width, rule.channels), f"uint{rule.bits}"
    if pixels.shape != shape or pixels.dtype != kind:
        actual, wanted = (
            f"{'x'.join(map(str, size))} of {of}"
            for size, of in ((pixels.shape, pixels.dtype), (shape, kind))
        )
        raise ShapeMismatch(
            f"a picture of {actual} came, {wanted} was agreed", facts={"got": actual, "agreed": wanted}
        )
    return to_array(Picture(pixels, ""), in_numbers(rule))[0]


def in_numbers(rule: PictureRule) -> PictureRule:
    """Return the rule for the numbers of a file, where these are not the raw values."""
    if rule.output_scale == (1.0, 0.0):
        return rule
    return dataclasses.replace(rule, low=0.0, high=float(rule.top))
