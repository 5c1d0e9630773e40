"""Latents of one item: float32 arrays, in the type in which their bytes cross the wire, with the digest of these bytes.

A latent of a narrower type is rounded when it is made, to nearest, ties to even: what is judged, stored, sent and
decoded are the same numbers.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from ddib_fed.errors import NotFinite, ShapeMismatch
from ddib_fed.latent_types import FLOAT32, LATENT_TYPES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]
    Words = NDArray[Any]

SUM_BLOCK: Final = 1 << 16
"""Numbers that are summed in single precision; the sums of blocks are added in double precision."""


class _WireType(NamedTuple):
    """How float32 numbers lie in the bytes of a type, and how they come back; neither copies where it need not."""

    to_wire: Callable[[Array], Words]
    from_wire: Callable[[bytes | bytearray | memoryview], Array]


def _to_bfloat16(data: Array) -> Words:
    """The upper halves of float32 numbers, rounded to nearest, ties to even; NaN stays NaN."""
    words = data.view(np.uint32)
    rounded = words + (((words >> 16) & 1) + np.uint32(0x7FFF))
    upper: Words = (rounded >> 16).astype("<u2")
    nan = np.isnan(data)
    if nan.any():  # rounding could carry a NaN's digits over into another number
        upper[nan] = 0x7FC0
    return upper


def _from_bfloat16(data: bytes | bytearray | memoryview) -> Array:
    return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)


def _to_float16(data: Array) -> Words:
    with np.errstate(over="ignore"):  # infinity is refused by name where the latent is made
        return data.astype("<f2")


_TYPES: Final[Mapping[str, _WireType]] = MappingProxyType(
    {
        FLOAT32: _WireType(
            lambda data: data.astype("<f4", copy=False),
            lambda data: np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False),
        ),
        "float16": _WireType(_to_float16, lambda data: np.frombuffer(data, dtype="<f2").astype(np.float32)),
        "bfloat16": _WireType(_to_bfloat16, _from_bfloat16),
    }
)


@dataclass(frozen=True, slots=True, eq=False)
class Latent:
    """Latents of one item; made by `from_array` or `from_bytes`, which measure the digest."""

    data: Array
    sha256: bytes
    dtype: str = FLOAT32
    sealed: bool = False

    def __post_init__(self) -> None:
        # A view of our own, so that nobody changes through this latent what its digest was taken of.
        data = self.data.view()
        data.flags.writeable = False
        object.__setattr__(self, "data", data)

    @classmethod
    def from_array(cls, array: Array, dtype: str = FLOAT32) -> Latent:
        """The latent of an array, which is copied: what is done with the array later does not change the latent."""
        if array.ndim < 2 or array.size == 0:
            raise ShapeMismatch(f"a latent of shape {array.shape}", facts={"shape": shape_text(array.shape)})
        # A copy takes a quarter of the time of the second digest that a latent in shared memory needs to be sent.
        data = np.array(array, dtype=np.float32, order="C")
        kind = _TYPES[dtype]
        words = kind.to_wire(data)
        digest = hashlib.sha256(words.data.cast("B")).digest()
        if dtype != FLOAT32:
            data = kind.from_wire(words.data.cast("B")).reshape(data.shape)
            require_finite(data)
        return cls(data, digest, dtype, sealed=True)

    @classmethod
    def from_bytes(
        cls,
        data: bytes | bytearray | memoryview,
        sample_shape: Sequence[int],
        dtype: str = FLOAT32,
        *,
        sha256: bytes | None = None,
    ) -> Latent:
        """The latent in little-endian row-major bytes; float32 is not copied, on usual machines."""
        samples, rest = divmod(len(data), math.prod(sample_shape) * LATENT_TYPES[dtype])
        if samples == 0 or rest:
            raise ShapeMismatch(
                f"{len(data)} bytes are no {dtype} samples of shape {shape_text(sample_shape)}",
                facts={"sample_shape": shape_text(sample_shape), "bytes": len(data)},
            )
        array = _TYPES[dtype].from_wire(data).reshape(samples, *sample_shape)
        require_finite(array)
        digest = sha256 or hashlib.sha256(data).digest()
        return cls(array, digest, dtype, sealed=isinstance(data, bytes))

    @property
    def size_bytes(self) -> int:
        return self.data.size * LATENT_TYPES[self.dtype]

    def wire(self) -> memoryview:
        return _TYPES[self.dtype].to_wire(self.data).data.cast("B").toreadonly()

    def to_bytes(self) -> bytes:
        return bytes(self.wire())


def moments(array: Array) -> tuple[float, float]:
    """Mean and standard deviation (over the count) of all numbers, in one pass and without a copy of them."""
    flat = array.reshape(-1)
    # Near the mean, so that little is lost where it is far from 0 and the deviation small.
    shift = flat[:SUM_BLOCK].mean()
    total = squares = 0.0
    for start in range(0, flat.size, SUM_BLOCK):
        block = flat[start : start + SUM_BLOCK] - shift
        total += float(block.sum())
        squares += float(np.dot(block, block))
    offset = total / flat.size
    return float(shift) + offset, math.sqrt(max(squares / flat.size - offset * offset, 0.0))


def require_finite(array: Array) -> None:
    """Raise `NotFinite` when a value is NaN or infinite."""
    if _squares_are_finite(array):
        return
    finite = np.isfinite(array)
    if not finite.all():
        count = int(array.size - finite.sum())
        raise NotFinite(f"{count} of {array.size} values are NaN or infinite", facts={"count": count})


def _squares_are_finite(array: Array) -> bool:
    flat = array.reshape(-1)
    blocks = (flat[start : start + SUM_BLOCK] for start in range(0, flat.size, SUM_BLOCK))
    with np.errstate(over="ignore", invalid="ignore"):
        return all(math.isfinite(float(np.dot(block, block))) for block in blocks)


def shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))[:100]
