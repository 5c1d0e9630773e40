"""Volumes in slices; or whole, fitted to the grid of a model of volumes, and results brought back to their own grid.

Axes are depth, height and width, from inferior to superior, anterior to posterior and left to right; an oblique volume
keeps its own. Both grids have one centre. Along each axis, with r the model's spacing over the volume's,

    value(m) = sum_j w_j value(j),  w_j ~ max(0, 1 - |m r + offset - j| / max(1, r)),  sum_j w_j = 1
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data.pictures import Pixels, encode_volume
from ddib_fed.data.study import (
    EMPTY,
    Assembled,
    Grid,
    IntensityRule,
    Options,
    Planes,
    Study,
    StudyResults,
    chosen_rule,
    is_empty,
    require_size,
)
from ddib_fed.errors import ImageUnreadable, InputError
from ddib_fed.record import PictureFigures

ALIKE: Final = 1e-3  # spacings that differ by less are the same
MOST_OUTSIDE: Final = 0.01  # share of what is no background that may lie outside the model's grid
_SAME: Final = np.array([[0, 1], [1, 1], [2, 1]])
# In canonical orientation (right, anterior, superior): the axis that slices follow, and those across and up a slice.
PLANES: Final = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Axis:
    """Of a volume of `own` voxels and a model of `model` voxels, `ratio` times as long."""

    own: int
    model: int
    ratio: float

    @property
    def offset(self) -> float:
        """Where the model's first voxel lies among the volume's; a whole number where nothing is resampled."""
        start = (self.own - 1) / 2 - self.ratio * (self.model - 1) / 2
        return float(np.floor(start)) if self.ratio == 1.0 else start

    @property
    def places(self) -> NDArray[np.floating]:
        """Where the volume's voxels lie among the model's."""
        return (np.arange(self.own) - self.offset) / self.ratio

    @property
    def inside(self) -> slice:
        """The volume's voxels that the model sees; none where all of its thick slices lie beyond the model."""
        seen = np.flatnonzero(_within(self.places, self.model))
        return slice(int(seen[0]), int(seen[-1]) + 1) if seen.size else slice(0)

    def there(self) -> Floats:
        return _weights(np.arange(self.model) * self.ratio + self.offset, self.own, self.ratio)

    def back(self) -> Floats:
        return _weights(self.places, self.model, 1 / self.ratio)


def _ratio(model: float, own: float) -> float:
    ratio = model / own
    return 1.0 if abs(ratio - 1) < ALIKE else ratio


def _within(places: NDArray[np.floating], count: int) -> NDArray[np.bool_]:
    return (places > -0.5 - 1e-6) & (places < count - 0.5 + 1e-6)


def _weights(places: NDArray[np.floating], count: int, width: float) -> Floats:
    """(places, count): of each of `count` voxels at each place; zeros outside."""
    near = np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(count)) / max(1.0, width))
    share = near / np.maximum(near.sum(axis=1, keepdims=True), 1e-9)
    return np.where(_within(places, count)[:, None], share, 0.0).astype(np.float32)


def _resampled(volume: Pixels, weights: Sequence[Floats], background: float) -> Pixels:
    """(D, H, W, C) on another grid, in the volume's type."""
    resampled: Floats = volume.astype(np.float32) - np.float32(background)
    for axis, matrix in enumerate(weights):
        resampled = np.moveaxis(np.tensordot(matrix, resampled, axes=(1, axis)), 0, axis)
    resampled = resampled + np.float32(background)
    return (resampled if volume.dtype.kind == "f" else np.rint(resampled)).astype(volume.dtype)


def orientation_of(affine: NDArray[np.float64], hint: str = "export it again") -> NDArray[Any]:
    """(3, 2): for each axis of values its canonical axis (right, anterior, superior), and 1 or -1 for its direction."""
    from nibabel import io_orientation

    finite = np.isfinite(affine).all()
    orientation: NDArray[Any] = io_orientation(affine) if finite else np.full((3, 2), np.nan)
    if np.isnan(orientation).any():
        why = "an axis is all zero" if finite else "it is not finite"
        raise ImageUnreadable(f"its affine has no orientation: {why}", hint=hint)
    return orientation


def sliced(values: NDArray[Any], orientation: NDArray[Any], plane: str = "axial") -> NDArray[Any]:
    """Values (i, j, k, ...) of an orientation as slices (N, H, W, ...) of a plane; axial ones are (D, H, W, ...)."""
    from nibabel import orientations

    through, across, up = PLANES[plane]
    canonical: NDArray[Any] = orientations.apply_orientation(values, orientation)
    return np.moveaxis(canonical, (through, up, across), (0, 1, 2))[:, ::-1]


def unsliced(slices: NDArray[Any], orientation: NDArray[Any], plane: str = "axial") -> NDArray[Any]:
    """The inverse of `sliced`."""
    from nibabel import orientations

    through, across, up = PLANES[plane]
    canonical = np.moveaxis(slices[:, ::-1], (0, 1, 2), (through, up, across))
    back = orientations.ornt_transform(_SAME, orientation)
    values: NDArray[Any] = orientations.apply_orientation(canonical, back)
    return values


def spacing_of(affine: NDArray[np.float64], orientation: NDArray[Any]) -> tuple[float, float, float]:
    """Between voxels along depth, height and width, in the affine's unit."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    width, height, depth = (float(lengths[list(orientation[:, 0]).index(axis)]) for axis in range(3))
    return depth, height, width


def _background(numbers: Pixels) -> tuple[float, float]:
    """The least number, and the width of all; not np.ptp, whose int16 has no room for more than 32,767."""
    least = float(numbers.min())
    return least, max(float(numbers.max()) - least, 1e-9)


def _shown(
    values: NDArray[Any], rule: IntensityRule, nothing: str
) -> tuple[Pixels, tuple[int, ...], dict[str, Any]]:
    """Numbers (N, ...) of values, which of them show something, and the record; raise if nothing does."""
    intensity = rule.on(values)
    numbers = intensity.numbers(values)
    dark = _background(numbers)
    sent = tuple(at for at, each in enumerate(numbers) if not is_empty(each, *dark))
    if not sent:
        raise ImageUnreadable(nothing)
    return numbers, sent, intensity.record(values)


@dataclass(frozen=True, slots=True)
class Slices(Planes):
    """A volume (N, H, W, C) in the numbers that a model takes."""

    outside: float  # share of what is no background that the model does not see

    @classmethod
    def of(cls, values: NDArray[Any], rule: IntensityRule) -> Slices:
        return cls(*_shown(values, rule, "none of its slices shows anything but background"), rule.text, 0.0)

    @property
    def places(self) -> range:
        return range(len(self.numbers))

    @property
    def volume_sha256(self) -> bytes:
        # Not of the file: under another rule of intensity two slices with one noise would give it away.
        digest = hashlib.sha256(f"{self.numbers.dtype} {self.numbers.shape}".encode())
        for plane in self.numbers:
            digest.update(np.ascontiguousarray(plane).data)
        return digest.digest()

    def fitted(self, item: Pixels, background: float) -> Pixels:
        """Return a result on the study's own grid, whose outside is background; raise InputError on another size."""
        del background
        require_size(item, self.numbers.shape[1:3])
        return item

    @property
    def inside(self) -> tuple[slice, ...]:
        """The part of an item's numbers that the model sees."""
        return ()

    def stack(self, translated: StudyResults) -> Pixels:
        """All slices (N, H, W, C), of volumes (N * D, H, W, C), with background where nothing was translated."""
        shape = (*self.numbers.shape[:-1], translated.channels)
        stack = np.full(shape, translated.background, dtype=translated.dtype)
        for at, item in zip(self.sent, translated.planes, strict=True):
            if item is not None:
                stack[at] = self.fitted(item, translated.background)
        return stack.reshape(-1, *shape[-3:])

    def covered(self, translated: StudyResults) -> Pixels | None:
        """1 where something was translated, shaped as `stack` with one channel; None if that is everywhere."""
        missing = self.missing(translated)
        there = np.zeros((*self.numbers.shape[:-1], 1), np.uint8)
        for at in {*self.sent} - {*missing}:
            there[at][self.inside] = 1
        return there.reshape(-1, *there.shape[-3:]) if missing or self.outside else None

    def summary(self, translated: StudyResults) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Sections of the provenance, and lines for the person."""
        empty = sorted({*self.places} - {*self.sent})
        said = f"{len(empty)} of {len(self.numbers)} slices are background and were not sent"
        return self.report(translated, "slices", empty=empty), (said,) if empty else ()


@dataclass(frozen=True, slots=True)
class Volumes(Slices):
    """Volumes (N, D, H, W, C) on their own grid, in the numbers that a model takes."""

    axes: tuple[Axis, ...]
    spacing: tuple[float, ...]
    grid: Grid

    @classmethod
    def fit(cls, values: NDArray[Any], rule: IntensityRule, spacing: Sequence[float], grid: Grid) -> Volumes:
        """Of values (N, D, H, W, C) with mm between voxels."""
        sides = values.shape[1:4]
        if min(sides) < 2:
            raise ImageUnreadable(
                "it is a single slice, and the source's model takes volumes",
                hint="a source whose model takes slices (ddib domains)",
            )
        if not all(1e-6 < mm < 1e6 for mm in spacing):
            raise ImageUnreadable("its voxels have no size", hint="set its spacing in mm (pixdim)")
        ratios = map(_ratio, grid.spacing or spacing, spacing)
        axes = tuple(Axis(*each) for each in zip(sides, grid.sides, ratios, strict=True))
        numbers, sent, record = _shown(values, rule, "it shows nothing but background")
        least, width = _background(numbers)
        shown = numbers > least + EMPTY * width
        seen = shown[(slice(None), *(axis.inside for axis in axes))]
        outside = 1.0 - np.count_nonzero(seen) / np.count_nonzero(shown)
        if outside > MOST_OUTSIDE:
            pairs = [*zip(axes, spacing, strict=True)]
            own = " x ".join(f"{axis.own * mm:.0f}" for axis, mm in pairs)
            model = " x ".join(f"{axis.model * axis.ratio * mm:.0f}" for axis, mm in pairs)
            whole = "x".join(str(max(axis.model, int(np.ceil(axis.own / axis.ratio)))) for axis in axes)
            raise ImageUnreadable(
                f"{outside:.0%} of what it shows lies outside the model's field of view: it measures {own} mm, the "
                f"model's volumes {model} mm (depth, height, width)",
                hint=f'size={whole}, or [model] scene = "{whole}" at both nodes; or cut it to the part that is meant',
            )
        return cls(numbers, sent, record, rule.text, outside, axes, tuple(spacing), grid)

    @property
    def warnings(self) -> tuple[str, ...]:
        lost = f"{self.outside:.2%} of what it shows lies outside the model's field of view, and is not translated"
        return (*super(Volumes, self).warnings, *((lost,) if self.outside else ()))

    @property
    def volume_sha256(self) -> bytes:
        return b""

    def shrink(self, sides: Sequence[int]) -> tuple[float, tuple[int, ...]]:
        del sides  # the grid has them
        fitted = tuple(max(1, round(axis.own / axis.ratio)) for axis in self.axes)
        return max(1.0, *(axis.ratio for axis in self.axes)), fitted

    def computed(self, translated: StudyResults) -> PictureFigures:
        del translated  # whose volumes have the model's size
        depth, height, width = own = tuple(axis.own for axis in self.axes)
        _, fitted = self.shrink(())
        figures = PictureFigures(depth=depth, height=height, width=width)
        if fitted[1:] == own[1:]:
            return figures
        return figures.model_copy(update={"fitted_height": fitted[1], "fitted_width": fitted[2]})

    def resampled(self, spacing: Sequence[float]) -> Iterator[Pixels]:
        """Each volume (D, H, W, C) whole, at mm between voxels; for training."""
        least, ratios = float(self.numbers.min()), map(_ratio, spacing, self.spacing)
        sides = zip(self.numbers.shape[1:4], ratios, strict=True)
        axes = [Axis(own, max(1, round(own / ratio)), ratio) for own, ratio in sides]
        for at in self.sent:
            yield _resampled(self.numbers[at], [axis.there() for axis in axes], least)

    def items(self) -> Iterator[bytes]:
        weights, least = [axis.there() for axis in self.axes], float(self.numbers.min())
        for at in self.sent:
            yield encode_volume(_resampled(self.numbers[at], weights, least))

    def fitted(self, item: Pixels, background: float) -> Pixels:
        if item.shape[:3] != self.grid.sides:
            raise InputError(f"a result of {item.shape[:3]} voxels came, {self.grid.sides} were sent")
        return _resampled(item, [axis.back() for axis in self.axes], background)

    @property
    def inside(self) -> tuple[slice, ...]:
        return tuple(axis.inside for axis in self.axes)

    def summary(self, translated: StudyResults) -> tuple[dict[str, Any], tuple[str, ...]]:
        fit = {
            "axes": "depth (inferior to superior), height (anterior to posterior), width (left to right)",
            "size": [axis.own for axis in self.axes],
            "spacing_mm": list(self.spacing),
            "model_size": list(self.grid.sides),
            "model_spacing_mm": [own * axis.ratio for own, axis in zip(self.spacing, self.axes, strict=True)],
            "resampled": [axis.ratio != 1.0 for axis in self.axes],
            "padded": [axis.model - int(np.count_nonzero(axis.there().any(axis=1))) for axis in self.axes],
            "outside": round(self.outside, 6),
        }
        return {**self.report(translated, "volumes", **fit), "shrink": self.shrink(())[0]}, self.warnings


@dataclass(frozen=True, slots=True)
class VolumeGeometry:
    """Where the values (i, j, k), a slice (i, j), or a time series (i, j, k, t) of a file lie in space.

    Attributes
    ----------
    shape
        Of the values in the file.
    affine
        (4, 4), from indices to right, anterior and superior, in `unit_mm` mm.
    hint
        What helps where the affine has no orientation.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64]
    unit_mm: float = 1.0
    hint: str = "export it again"

    @property
    def orientation(self) -> NDArray[Any]:
        return orientation_of(self.affine, self.hint)

    def plane(self, options: Options) -> str:
        """Return the plane in which it is cut: that of the options, of a single slice its own."""
        if len(self.shape) == 2:
            through = int(self.orientation[2][0])
            return next(name for name, axes in PLANES.items() if axes[0] == through)
        return options.slices if options.volume is None else "axial"

    def planes(self, values: NDArray[Any], plane: str) -> NDArray[Any]:
        """Return the values of a file as (T, N, H, W, 1), one copy."""
        slices = sliced(values.reshape((*self.shape, 1, 1)[:4]), self.orientation, plane)
        return np.ascontiguousarray(np.moveaxis(slices, 3, 0)[..., None])

    def pixels(self, planes: NDArray[Any], options: Options) -> Slices:
        """Return what a model takes of (T, N, H, W, 1)."""
        rule = chosen_rule(options, planes)
        if options.volume is None:
            return Slices.of(planes.reshape(-1, *planes.shape[2:]), rule)
        spacing = [self.unit_mm * mm for mm in spacing_of(self.affine, self.orientation)]
        return Volumes.fit(planes, rule, spacing, options.volume)

    def restored(self, stack: Pixels, plane: str) -> Pixels:
        """Return slices (T * N, H, W, C) as the values lie in their file; colours are one more axis, the fifth."""
        times = (*self.shape, 1, 1)[3]
        slices = np.moveaxis(stack.reshape(times, -1, *stack.shape[1:]), 0, 3)
        volume = unsliced(slices, self.orientation, plane)
        return volume.reshape(self.shape if volume.shape[4] == 1 else (*volume.shape[:4], 3))


@dataclass(frozen=True, slots=True)
class VolumeStudy(Study):
    """A file of one volume, slice or time series; its results are a file of the same geometry."""

    pixels: Slices
    geometry: VolumeGeometry
    plane: str

    @abstractmethod
    def encoded(self, volume: Pixels, translated: StudyResults) -> bytes:
        """Return a file of the format with these values, which lie as those of the input do."""

    def assemble(self, translated: StudyResults) -> Assembled:
        from nibabel import aff2axcodes

        stack = self.pixels.stack(translated)
        report, said = self.pixels.summary(translated)
        volume = self.geometry.restored(translated.scaled(stack), self.plane)
        files = {self.origin.outputs[0]: self.encoded(volume, translated)}
        if (there := self.pixels.covered(translated)) is not None:
            (name,) = self.origin.beside
            files[name] = self.encoded(self.geometry.restored(there, self.plane), translated)
            said = (*said, f"what was not translated is 0 in {name}")
        report["geometry"] = {
            "plane": self.plane,
            "shape": [int(side) for side in self.geometry.shape],
            "affine": self.geometry.affine.tolist(),
            "orientation": "".join(aff2axcodes(self.geometry.affine)),
            "slices_in": "RAS: rows downwards, columns to the right of the head, or to the front of sagittal slices",
        }
        return Assembled(files, report, said)
