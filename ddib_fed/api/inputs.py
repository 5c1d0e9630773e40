"""Samples of a notebook (arrays, PIL pictures, paths) as contents of files, which every translation takes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddib_fed.errors import UsageError
from ddib_fed.samples.formats.decoded import ImageLimits
from ddib_fed.samples.images import encode_png, read_content

Given = Image.Image | NDArray[Any] | str | Path
"""A PIL picture; an array (H, W) or (H, W, C) of raw values, or (N, D) points; or the path of a file of either."""


def contents(samples: Given | Sequence[Given]) -> list[bytes]:
    """The file of each sample: PNG for PIL pictures, .npy for arrays, a path's own bytes.

    Args:
        samples: One sample or a list of them. An array is one sample: (H, W) or (H, W, C) for a picture of raw values,
            (N, D) for a set of points.

    Raises:
        FileMissing, ImageUnreadable, ImageTooLarge: A path cannot be read.
        UsageError: Something else was given, or nothing.
    """
    listed = list(samples) if isinstance(samples, list | tuple) else [samples]
    if not listed:
        raise UsageError("no samples were given", hint="pass a picture, an array, a path, or a list of them")
    return [_content(sample) for sample in listed]


def _content(sample: object) -> bytes:
    if isinstance(sample, str | Path):
        return read_content(Path(sample), ImageLimits(max_bytes=1 << 30))
    if isinstance(sample, Image.Image):
        return encode_png(_pixels(sample))
    if isinstance(sample, np.ndarray):
        stream = io.BytesIO()
        np.save(stream, sample, allow_pickle=False)
        return stream.getvalue()
    raise UsageError(
        f"a sample of type {type(sample).__name__} cannot be translated",
        hint="pass a PIL picture, a numpy array, a path, or a list of them",
    )


def _pixels(picture: Image.Image) -> NDArray[Any]:
    """(H, W, C) of a PIL picture: 16-bit grey stays 16-bit, everything that is not grey becomes RGB on white."""
    if picture.mode.startswith("I;16"):
        return np.asarray(picture)[..., None]
    if picture.mode in {"1", "L"}:
        return np.asarray(picture.convert("L"))[..., None]
    if picture.mode in {"I", "F"}:
        raise UsageError(
            f"a PIL picture of mode {picture.mode!r} has no stated range",
            hint="pass numpy.asarray(picture) instead",
        )
    flat = picture.convert("RGBA")
    white = Image.new("RGBA", flat.size, "white")
    return np.asarray(Image.alpha_composite(white, flat).convert("RGB"))
