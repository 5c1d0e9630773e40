"""Reads and writes points, .npy bytes to (N, D) float32 and back, and tells them from pictures.

The header is compared with the actual bytes before it is used; no pickle is read.
"""

from __future__ import annotations

import io
import math
import shlex
from collections.abc import Mapping
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic

from ddib_fed.errors import (
    DdibError,
    ImageTooLarge,
    KindMismatch,
    NotFinite,
    PictureMisfit,
    PointsTooMany,
    PointsUnreadable,
    ShapeMismatch,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

MAGIC = b"\x93NUMPY"
MAX_HEADER = 4_096  # numpy writes 118 bytes for points; too short for a nesting that exhausts the parser


class Header(NamedTuple):
    dtype: np.dtype[Any]
    fortran_order: bool
    shape: tuple[int, ...]
    start: int  # of the numbers

    def numbers(self, data: bytes) -> NDArray[Any]:
        """Return the array in the bytes of the file, not copied; raise PointsUnreadable if it has another size."""
        # Python's whole numbers: the product of forged lengths would wrap round in numpy's.
        size = math.prod(self.shape) * self.dtype.itemsize
        if size != len(data) - self.start:
            raise _unreadable(
                f"the header asks for {size} bytes of numbers, there are {len(data) - self.start}"
            )
        raw = np.frombuffer(data, dtype=self.dtype, offset=self.start)
        return raw.reshape(self.shape, order="F" if self.fortran_order else "C")


def parse_npy(data: bytes, *, max_bytes: int, max_points: int, dim: int | None = None) -> Array:
    """Parse points from the bytes of a .npy file, format 1.0 to 3.0."""
    if len(data) > max_bytes:
        facts = {"size_bytes": len(data), "limit_bytes": max_bytes}
        raise PointsTooMany(f"{len(data)} bytes, {max_bytes} are the limit", facts=facts)
    header = read_header(data)
    shape, wanted = header.shape, f"(N, {dim or 'D'})"
    if len(shape) != 2 or min(shape) < 1 or dim not in {None, shape[1]}:
        text = "x".join(map(str, shape[:8]))[:100] or "none"
        raise ShapeMismatch(f"the array is {text}, not {wanted}", facts={"shape": text, "expected": wanted})
    if shape[0] > max_points:
        facts = {"points": shape[0], "limit_points": max_points}
        raise PointsTooMany(f"{shape[0]} points, {max_points} are the limit", facts=facts)
    with np.errstate(over="ignore", invalid="ignore"):
        points = np.array(header.numbers(data), dtype=np.float32, order="C")
    if wrong := int(points.size - np.isfinite(points).sum()):
        problem = f"{wrong} of {points.size} values are not finite float32"
        raise NotFinite(problem, facts={"not_finite": wrong})
    return points


def to_npy(points: Array) -> bytes:
    """Return the bytes of a .npy file, format 1.0, little-endian float32 in C order: equal for equal points."""
    return npy_bytes(np.asarray(points, "<f4"))


def npy_bytes(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def read_header(data: bytes) -> Header:
    """Parse and check the header of a .npy."""
    if not data:
        raise _unreadable("the file is empty")
    if data.startswith(MAGIC) and tuple(data[6:8]) not in {(1, 0), (2, 0), (3, 0)}:
        raise _unreadable("it is of no known format of .npy")
    file = io.BytesIO(data[: MAX_HEADER + 16])
    try:
        read = read_array_header_1_0 if read_magic(file) == (1, 0) else read_array_header_2_0
        shape, order, dtype = read(file, max_header_size=MAX_HEADER)
    except Exception as error:  # of a forged header it may be anything, and its text may quote it
        raise _unreadable("it does not begin as a .npy file does") from error
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise _unreadable("it does not have real numbers of 1 to 8 bytes", dtype=dtype.type.__name__)
    if not all(type(n) is int and n >= 0 for n in shape):
        raise _unreadable("its shape is not made of integers from 0")
    return Header(dtype, order, shape, file.tell())


def _unreadable(why: str, **facts: str) -> PointsUnreadable:
    return PointsUnreadable(
        why, hint="numpy.save(file, points) with points of shape (N, D) writes such a file", facts=facts
    )


MANY_ROWS: Final = 16
FEW_COLUMNS: Final = 4  # fewer than any picture of at least `MANY_ROWS` rows has
SOME_COLUMNS: Final = 16  # floats in so few columns and `MANY_ROWS` times as many rows are points, too


def refuse_points(content: bytes) -> None:
    """Raise KindMismatch if a file expected to be a picture is a .npy of points (N, D)."""
    header = _header(content)
    if header is None or len(header.shape) != 2:
        return
    rows, columns = header.shape
    narrow = columns <= FEW_COLUMNS and rows >= MANY_ROWS
    floats = header.dtype.kind == "f" and columns <= SOME_COLUMNS and rows >= MANY_ROWS * columns
    if columns and (narrow or floats):
        raise _mismatch(f"points, {rows} x {columns}", "pictures")


def refuse_picture(content: bytes, dim: int | None = None) -> None:
    """Raise KindMismatch if a .npy expected to be points (N, D) is a picture."""
    header = _header(content)
    if header is None:
        return
    shape = header.shape
    planes = len(shape) == 3 and (shape[2] in {1, 3, 4} or shape[0] in {1, 3})
    plane = (
        len(shape) == 2
        and header.dtype.kind == "u"
        and FEW_COLUMNS < shape[1] != dim
        and shape[0] < MANY_ROWS * shape[1]
    )
    if planes or plane:
        size = " x ".join(map(str, shape))[:60]
        raise _mismatch(f"a picture, {size}", f"points (N, {dim or 'D'})")


def picture_for_points(what: str, dim: int) -> KindMismatch:
    return _mismatch(f"a picture ({what})", f"points (N, {dim})")


def picture_for_volumes(what: str, shape: str) -> KindMismatch:
    return _mismatch(what, f"volumes (D, H, W) of {shape}")


def _mismatch(holds: str, takes: str) -> KindMismatch:
    facts = {"holds": holds, "takes": takes}
    detail, hint = explain(facts)
    return KindMismatch(detail, hint=hint, facts=facts)


def _header(content: bytes) -> Header | None:
    """Return the header of a .npy; None for anything else, and for a header that the decoder will refuse."""
    try:
        return read_header(content) if content.startswith(MAGIC) else None
    except PointsUnreadable:
        return None


_REASONS: Final[Mapping[str, str]] = {
    "type": "its type cannot hold these values",
    "scale": "its values are of another scale",
    "window": "too many of its values lie outside of that",
    "colour": "its colours would be lost",
}


def explain(facts: Mapping[str, str], name: str = "the file") -> tuple[str, str]:
    """Return the problem with a file and its remedy, from the facts of a `PictureMisfit` or `KindMismatch`."""
    if not {"holds", "takes"} <= facts.keys() or facts.get("problem", "type") not in _REASONS:
        return "", ""
    takes, problem = facts["takes"], facts.get("problem", "")
    if problem == "colour":
        how = "make it grey if that is meant, or use a model trained with --set channels=3"
    elif problem:
        how = f"bring its values to {takes}, or use a model trained with --range {facts.get('fits', '')}"
    elif takes.startswith("volumes"):
        how = (
            "a DICOM series or a NIfTI file is one volume, or a .npy; `ddib domains` lists who takes pictures"
        )
    elif takes == "pictures":
        how = "`ddib domains` lists who takes points; a picture of this shape is saved as (H, W, 1)"
    else:
        how = "`ddib domains` lists who takes pictures; a .npy of points is (N, D)"
    detail = f"{name} holds {facts['holds']}; {facts.get('model', 'the model')} takes {takes}"
    return f"{detail}: {_REASONS[problem]}" if problem else detail, how


def name_file(error: DdibError, name: str) -> DdibError:
    """Return the error for a file of this name, written again from its facts if they suffice."""
    if isinstance(error, PictureMisfit | KindMismatch):
        detail, hint = explain(error.facts, name)
        return type(error)(detail or f"{name}: {error.detail}", hint=hint or error.hint, facts=error.facts)
    pixels, limit = (error.facts.get(key, "") for key in ("pixels", "limit_pixels"))
    if isinstance(error, ImageTooLarge) and pixels.isdecimal() and limit.isdecimal():
        path = PurePath(name)
        smaller, most = path.with_name(f"{path.stem}-smaller.png"), shlex.quote(f"{limit}@>")
        return ImageTooLarge(
            f"{name} has {int(pixels):,} pixels, {int(limit):,} are the limit",
            hint=f"magick {shlex.quote(name)} -resize {most} {shlex.quote(str(smaller))}   (or -crop it); the limit of "
            "a node is [limits] max_pixels in its node.toml",
            facts=error.facts,
            hop=error.hop,
        )
    if name not in error.detail:
        error.detail = f"{name}: {error.detail}"
    return error
