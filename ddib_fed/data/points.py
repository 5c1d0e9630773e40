"""Reads and writes points: .npy bytes to (N, D) float32 and back.

The header is compared with the actual bytes before it is used; no pickle is read.
"""

from __future__ import annotations

import ast
import io
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ddib_fed.errors import NotFinite, PointsTooMany, PointsUnreadable, ShapeMismatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

MAGIC = b"\x93NUMPY"
MAX_HEADER = 4_096
"""Bytes of a header; numpy writes 118 for points. Too short for a nesting that exhausts the parser."""

# Real numbers of 1 to 8 bytes: bool, complex, long double, structures and objects are not points.
_TYPE_NAME = re.compile(r"[<>|=]?[A-Za-z]\d{0,3}")
_DESCR = re.compile(r"[<>|=]?(f[248]|[iu][1248])\Z")


class Header(NamedTuple):
    dtype: np.dtype[Any]
    fortran_order: bool
    shape: tuple[int, ...]


def parse_npy(data: bytes, *, max_bytes: int, max_points: int, dim: int | None = None) -> Array:
    """Points from the bytes of a .npy file, format 1.0 to 3.0."""
    if len(data) > max_bytes:
        raise PointsTooMany(
            f"{len(data)} bytes, {max_bytes} are the limit",
            facts={"size_bytes": len(data), "limit_bytes": max_bytes},
        )
    header, start = read_header(data)
    _check_shape(header.shape, max_points, dim)
    size = header.shape[0] * header.shape[1] * header.dtype.itemsize
    if size != len(data) - start:
        raise _unreadable(f"the header asks for {size} bytes of numbers, there are {len(data) - start}")
    raw = np.frombuffer(data, dtype=header.dtype, offset=start)
    return _finite(raw.reshape(header.shape, order="F" if header.fortran_order else "C"))


def to_npy(points: Array) -> bytes:
    """The bytes of a .npy file, format 1.0: little-endian float32 in C order; the same for the same points."""
    file = io.BytesIO()
    array = np.ascontiguousarray(points, dtype="<f4")
    np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)
    return file.getvalue()


def read_header(data: bytes) -> tuple[Header, int]:
    """The checked header of a .npy, and where the numbers start."""
    if not data:
        raise _unreadable("the file is empty")
    if data[:6] != MAGIC or len(data) < 10:
        raise _unreadable("it does not begin as a .npy file does")
    if tuple(data[6:8]) not in {(1, 0), (2, 0), (3, 0)}:
        raise _unreadable(f"format {data[6]}.{data[7]} is not known")
    width = 2 if data[6] == 1 else 4
    length = int.from_bytes(data[8 : 8 + width], "little")
    start = 8 + width + length
    if length > MAX_HEADER or start > len(data):
        raise _unreadable(f"its header claims {length} bytes")
    return _parse_header(data[8 + width : start]), start


def _parse_header(text: bytes) -> Header:
    try:
        fields = ast.literal_eval(text.decode("utf-8").strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise _unreadable("its header is not a dictionary of plain values") from error
    if not isinstance(fields, dict) or set(fields) != {"descr", "fortran_order", "shape"}:
        raise _unreadable("its header does not have descr, fortran_order and shape")
    descr, order, shape = fields["descr"], fields["fortran_order"], fields["shape"]
    if not isinstance(descr, str) or not _DESCR.match(descr):
        # Only what can name a type: a header can hold any text, and facts are shown and sent.
        named = descr if isinstance(descr, str) and _TYPE_NAME.fullmatch(descr) else "no type of NumPy's"
        raise _unreadable("it does not have real numbers of 1 to 8 bytes", dtype=named)
    if not isinstance(order, bool) or not isinstance(shape, tuple):
        raise _unreadable("its fortran_order or shape has the wrong type")
    if not all(type(n) is int and n >= 0 for n in shape):
        raise _unreadable("its shape is not made of integers from 0")
    return Header(np.dtype(descr), order, shape)


def _check_shape(shape: tuple[int, ...], max_points: int, dim: int | None) -> None:
    wanted = f"(N, {dim or 'D'})"
    if len(shape) != 2 or min(shape) < 1 or dim not in {None, shape[1]}:
        text = "x".join(map(str, shape[:8]))[:100] or "none"
        raise ShapeMismatch(f"the array is {text}, not {wanted}", facts={"shape": text, "expected": wanted})
    if shape[0] > max_points:
        raise PointsTooMany(
            f"{shape[0]} points, {max_points} are the limit",
            facts={"points": shape[0], "limit_points": max_points},
        )


def _finite(raw: NDArray[Any]) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        points = np.ascontiguousarray(raw, dtype=np.float32)
    wrong = int(points.size - np.isfinite(points).sum())
    if wrong:
        raise NotFinite(
            f"{wrong} of {points.size} values are not finite float32", facts={"not_finite": wrong}
        )
    return points if points.flags.writeable else points.copy()


def _unreadable(why: str, **facts: str) -> PointsUnreadable:
    return PointsUnreadable(
        why, hint="numpy.save(file, points) with points of shape (N, D) writes such a file", facts=facts
    )
