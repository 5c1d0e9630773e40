"""Files that clients and peers send: pictures, points."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Final

import numpy as np
from PIL import Image

from ddib_fed.data.pictures import decode_image, decode_volume
from ddib_fed.data.points import parse_npy, to_npy
from tests.data_modules import picture_examples as pictures
from tests.fuzz.target import LIMITS, MOST, Target


def picture(data: bytes) -> None:
    """PNG, JPEG, TIFF or .npy of a client."""
    decode_image(data, LIMITS)


def _png() -> list[bytes]:
    grey, colour, deep = (
        pictures.noise(8, 9, 1), pictures.noise(7, 5, 3), pictures.noise(6, 6, 1, "uint16"),
    )  # fmt: skip
    interlaced = io.BytesIO()
    Image.fromarray(colour).save(interlaced, "PNG", optimize=True)
    return [pictures.png_of(each) for each in (grey, colour, deep)] + [interlaced.getvalue()]


def _jpeg() -> list[bytes]:
    return [pictures.saved(pictures.noise(16, 17, channels), "JPEG") for channels in (1, 3)]


def _tiff() -> list[bytes]:
    made = [pictures.tiff_of(pictures.noise(8, 9, 3)), pictures.tiff_of(pictures.noise(8, 9, 1, "uint16"))]
    file = io.BytesIO()
    Image.fromarray(pictures.noise(8, 8, 3)).save(file, "TIFF", compression="tiff_lzw")
    return [*made, file.getvalue()]


def _npy() -> list[bytes]:
    return [pictures.npy_of(pictures.noise(8, 9, 3)), pictures.npy_of(np.zeros((4, 4), np.float32))]


def points(data: bytes) -> None:
    """Points of a client, or of a peer's answer."""
    parse_npy(data, max_bytes=MOST, max_points=10_000, dim=2)


TARGETS: Final[Mapping[str, Target]] = {
    "png": Target(picture, _png),
    "jpeg": Target(picture, _jpeg, slow=True),
    "tiff": Target(picture, _tiff, slow=True),
    "npy-picture": Target(picture, _npy),
    "npy-volume": Target(decode_volume, lambda: [pictures.npy_of(np.zeros((4, 5, 6), np.float32))]),
    "npy-points": Target(points, lambda: [to_npy(np.zeros((5, 2), np.float32))]),
}
