"""Points from .npy bytes that nobody vouches for, and which .npy files are points."""

import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ddib_fed.data.points import MAX_HEADER, parse_npy, refuse_picture
from ddib_fed.errors import KindMismatch, NotFinite, PointsTooMany, PointsUnreadable

DTYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8"]


def saved(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, version=version)
    return file.getvalue()


def forged(header: str | bytes, numbers: bytes = b"", version: int = 1) -> bytes:
    text = header.encode() if isinstance(header, str) else header
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text + numbers


def described(shape: str = "(1, 2)", descr: str = "'<f4'", order: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


def parse(data: bytes, **limits) -> np.ndarray:
    return parse_npy(data, **{"max_bytes": 1 << 20, "max_points": 1_000, "dim": 2, **limits})


@given(
    dtype=st.sampled_from(DTYPES),
    big_endian=st.booleans(),
    shape=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    fortran=st.booleans(),
    version=st.sampled_from([(1, 0), (2, 0), (3, 0)]),
    data=st.data(),
)
def test_every_real_type_order_and_format_is_read(dtype, big_endian, shape, fortran, version, data):
    """As float32 in C order, with the values that numpy itself converts to."""
    kind = np.dtype(dtype).newbyteorder(">" if big_endian else "<")
    elements = (
        st.floats(-1e4, 1e4, width=16).filter(lambda x: abs(x) < 1e4)
        if kind.kind == "f"
        else st.integers(0, 100)
    )
    array = data.draw(hnp.arrays(kind, shape, elements=elements))
    array = np.asfortranarray(array) if fortran else array
    points = parse_npy(saved(array, version), max_bytes=1 << 20, max_points=10)
    assert (points.dtype, points.flags.c_contiguous) == (np.dtype("float32"), True)
    np.testing.assert_array_equal(points, array.astype(np.float32))


@pytest.mark.parametrize(
    "data",
    [
        b"not an array at all",
        saved(np.array([[{}, {}]], dtype=object)),
        saved(np.zeros((1, 2), dtype=np.complex64)),
        saved(np.zeros((1, 2)))[:-1],
        saved(np.zeros((1, 2))) + b"\0",
        forged(described(shape="(1000, 2)"), bytes(8)),
        forged(described(shape="(True, 2)"), bytes(8)),
        forged(described(descr="__import__('os').getpid()"), bytes(8)),
        forged("(" * 4_000),
        forged(" " * (MAX_HEADER + 1) + described(), bytes(8)),
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(60),
    ],
)
def test_what_is_no_array_of_real_numbers_is_unreadable(data):
    """Pickles, archives, other types, torn, padded and forged files: one named error."""
    with pytest.raises(PointsUnreadable):
        parse(data)


@pytest.mark.parametrize("points", [1_001, 2**62, 10**100])
def test_too_many_points_are_refused_by_the_header_alone(points):
    with pytest.raises(PointsTooMany) as caught:
        parse(forged(described(shape=f"({points}, 2)"), bytes(8)))
    assert caught.value.facts == {"points": str(points), "limit_points": "1000"}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_what_is_not_finite_in_float32_is_refused(value):
    """Also a double that is too large for it; the error counts."""
    with pytest.raises(NotFinite) as caught:
        parse(saved(np.array([[0.0, value], [value, 1.0]])))
    assert caught.value.facts == {"not_finite": "2"}


def npy(shape, dtype="float32") -> bytes:
    return saved(np.zeros(shape, dtype))


@pytest.mark.parametrize("shape", [(64, 64), (48, 32), (32, 32, 3), (3, 32, 32)], ids=str)
def test_pictures_are_not_taken_as_points(shape):
    with pytest.raises(KindMismatch, match="a picture"):
        refuse_picture(npy(shape, "uint8"))
