"""A photograph as a cloud of 3-D colours, and the way back to pixels.

rgb   2 r - 1 with r in [0, 1], the numbers of the file (sRGB, as they are)
lab   (L / 50 - 1, a / 50, b / 50): CIE 1976 L*a*b*, D65, in which equal distances look about equally far
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ddib_fed.datasets.packaged import package_folder
from ddib_fed.errors import FileMissing, InputError
from ddib_fed.samples.images import read_image

Floats = NDArray[np.float64]
Space = Literal["rgb", "lab"]

SPACES: tuple[Space, ...] = ("rgb", "lab")
MIN_COLOURS = 50
"""Distinct colours below which there is nothing to learn a density of."""

# IEC 61966-2-1: linear sRGB to CIE XYZ; its white (the row sums) is D65.
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = _XYZ.sum(axis=1)
_DELTA = 6 / 29


@dataclass(frozen=True, slots=True)
class Packaged:
    """A photograph that a package carries."""

    package: str
    file: str
    credit: str


def _sklearn(name: str, page: str) -> Packaged:
    credit = f"{name}.jpg by {page.partition('/')[0]} (flickr.com/photos/{page}), CC BY 2.0, as carried by scikit-learn"
    return Packaged("sklearn", f"datasets/images/{name}.jpg", credit)


def _skimage(file: str, credit: str) -> Packaged:
    return Packaged("skimage", f"data/{file}", f"{credit}, as carried by scikit-image")


PACKAGED: Mapping[str, Packaged] = MappingProxyType(
    {
        "sklearn:china": _sklearn("china", "danielbuechele/6061409035"),
        "sklearn:flower": _sklearn("flower", "vultilion/6056698931"),
        "skimage:astronaut": _skimage("astronaut.png", "Eileen Collins by NASA, public domain"),
        "skimage:coffee": _skimage("coffee.png", "Coffee by Rachel Michetti (Pikolo Espresso Bar), CC0"),
        "skimage:chelsea": _skimage("chelsea.png", "Chelsea the cat by Stefan van der Walt, CC0"),
        "skimage:rocket": _skimage("rocket.jpg", "Falcon 9 by SpaceX, public domain"),
        "skimage:retina": _skimage("retina.jpg", "Retina by Mikael Häggström, CC0"),
        "skimage:hubble": _skimage(
            "hubble_deep_field.jpg", "Hubble eXtreme Deep Field by NASA, public domain"
        ),
    }
)


@dataclass(frozen=True, slots=True)
class Photograph:
    """A picture in colour."""

    name: str
    colours: NDArray[Any]
    index: NDArray[np.int32]
    counts: NDArray[np.int64]
    credit: str = ""

    @property
    def top(self) -> int:
        return int(np.iinfo(self.colours.dtype).max)

    def rgb(self) -> Floats:
        return unit(self.colours, self.top)

    def paint(self, rgb: Floats) -> NDArray[Any]:
        painted: NDArray[Any] = whole(rgb, self.top)[self.index]
        return painted

    def drawn(self, count: int, seed: int) -> NDArray[np.int64]:
        rng = np.random.default_rng(seed)
        return self.index.reshape(-1)[rng.integers(0, self.index.size, count)].astype(np.int64)


def open_photograph(which: str) -> Photograph:
    """The photograph that a name of `PACKAGED` or a path stands for."""
    if re.match(r"(sklearn|skimage):", which):
        return _packaged(which)
    path = Path(which)
    if not path.is_file():
        raise FileMissing(f"there is no file {path}", hint=f"a path, or one of: {', '.join(PACKAGED)}")
    return photograph(re.sub(r"[^A-Za-z0-9.-]+", "-", path.stem).strip("-.") or "picture", _read(path))


def photograph(name: str, pixels: NDArray[Any], credit: str = "") -> Photograph:
    """A photograph, checked: see `open_photograph` for what is refused."""
    if pixels.dtype not in {np.dtype(np.uint8), np.dtype(np.uint16)}:
        raise InputError(
            f"{name} holds {pixels.dtype} numbers; colours are read from pictures of 8 or 16 bits",
            hint="save it as PNG, JPEG or TIFF of 8 or 16 bits a channel",
        )
    if pixels.shape[2] != 3:
        raise _grey(name, "it has one channel")
    colours, index, counts = _distinct(pixels)
    covariance = np.cov(colours.T.astype(np.float64), fweights=counts, ddof=0)
    spread = np.sqrt(np.maximum(np.linalg.eigvalsh(covariance), 0.0))
    if spread[2] < 1.0:
        raise InputError(f"{name} is one flat colour", hint="choose a picture with more colours")
    if spread[0] < 1.0:
        what = "a line" if spread[1] < 1.0 else "a plane"
        raise _grey(name, f"its colours lie on {what} within one level")
    if len(colours) < MIN_COLOURS:
        raise InputError(
            f"{name} has {len(colours)} colours; at least {MIN_COLOURS} are needed",
            hint="choose a photograph",
        )
    return Photograph(name, colours, index, counts, credit)


def unit(pixels: NDArray[Any], top: int) -> Floats:
    return np.asarray(pixels, np.float64) * (2.0 / top) - 1.0


def whole(rgb: Floats, top: int) -> NDArray[Any]:
    levels = np.rint((np.clip(rgb, -1.0, 1.0) + 1.0) * (0.5 * top))
    return levels.astype(np.uint8 if top == 255 else np.uint16)


def to_space(rgb: Floats, space: Space) -> Floats:
    """Points (N, 3) of a space from rgb (N, 3) in [-1, 1]; slightly beyond is allowed."""
    if space == "rgb":
        return np.array(rgb, np.float64)
    linear = _decode_gamma((np.asarray(rgb, np.float64) + 1.0) / 2.0)
    x, y, z = _root(linear @ _XYZ.T / _WHITE).T
    return np.stack([(116 * y - 16) / 50 - 1, 10 * (x - y), 4 * (y - z)], axis=1)


def from_space(points: Floats, space: Space) -> Floats:
    """Numbers rgb (N, 3) from points (N, 3) of a space, not clipped: the inverse of `to_space`."""
    if space == "rgb":
        return np.array(points, np.float64)
    light, a, b = np.asarray(points, np.float64).T
    y = ((light + 1) * 50 + 16) / 116
    ratios = _power(np.stack([y + a / 10, y, y - b / 4], axis=1))
    linear = (ratios * _WHITE) @ np.linalg.inv(_XYZ).T
    return _encode_gamma(linear) * 2.0 - 1.0


def dequantised(photo: Photograph, space: Space, count: int, seed: int) -> Floats:
    """`count` points (N, 3) of a space, each somewhere in the cell of a pixel."""
    rng = np.random.default_rng(seed)
    pixels = photo.index.reshape(-1)
    rounds, rest = divmod(count, len(pixels))
    chosen = np.concatenate([np.tile(pixels, rounds), rng.permutation(pixels)[:rest]])
    cells = photo.colours[chosen] + (rng.random((count, 3)) - 0.5)
    return to_space(unit(cells, photo.top), space)


def _distinct(pixels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.int32], NDArray[np.int64]]:
    codes = pixels.reshape(-1, 3).astype(np.int64) @ (1 << np.array([32, 16, 0]))
    found, index, counts = np.unique(codes, return_inverse=True, return_counts=True)
    colours = np.stack([found >> 32, found >> 16 & 0xFFFF, found & 0xFFFF], axis=1).astype(pixels.dtype)
    return colours, index.reshape(pixels.shape[:2]).astype(np.int32), counts.astype(np.int64)


def _packaged(which: str) -> Photograph:
    found = PACKAGED.get(which)
    if found is None:
        raise FileMissing(
            f"there is no packaged photograph {which!r}", hint=f"there are: {', '.join(PACKAGED)}"
        )
    wheel = {"sklearn": "scikit-learn", "skimage": "scikit-image"}[found.package]
    folder = package_folder(wheel, found.package, needed_by="colours", what=f"{which} comes with")
    path = folder / found.file
    if not path.is_file():
        raise FileMissing(f"{path} is not there: this release of the package does not carry it")
    return photograph(which.partition(":")[2], _read(path), found.credit)


def _read(path: Path) -> NDArray[Any]:
    pixels: NDArray[Any] = read_image(path).pixels
    return pixels


def _grey(name: str, why: str) -> InputError:
    return InputError(
        f"{name} has no three-dimensional colours: {why}",
        hint="a grey or toned picture cannot give or take colours; choose one in colour",
    )


def _decode_gamma(encoded: Floats) -> Floats:
    return np.where(
        encoded <= 0.04045, encoded / 12.92, ((np.maximum(encoded, 0.04045) + 0.055) / 1.055) ** 2.4
    )


def _encode_gamma(linear: Floats) -> Floats:
    return np.where(
        linear <= 0.0031308, linear * 12.92, 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    )


def _root(ratio: Floats) -> Floats:
    return np.where(ratio > _DELTA**3, np.cbrt(ratio), ratio / (3 * _DELTA**2) + 4 / 29)


def _power(value: Floats) -> Floats:
    return np.where(value > _DELTA, value**3, 3 * _DELTA**2 * (value - 4 / 29))
