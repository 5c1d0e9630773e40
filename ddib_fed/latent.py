"""Latents of one item: float32 arrays with the digest of their bytes as they cross the wire, little-endian."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import NotFinite, ShapeMismatch

Array = NDArray[np.float32]

ITEM_BYTES: Final = 4
SUM_BLOCK: Final = 1 << 16
"""Numbers that are summed in single precision, which takes a third of the time; sums of blocks are added in double."""


@dataclass(frozen=True, slots=True, eq=False)
class Latent:
    """Latents of one item; made by `from_array` or `from_bytes`, which measure the digest."""

    data: Array
    sha256: bytes
    sealed: bool = False

    def __post_init__(self) -> None:
        # A view of our own, so that nobody changes through this latent what its digest was taken of.
        data = self.data.view()
        data.flags.writeable = False
        object.__setattr__(self, "data", data)

    @classmethod
    def from_array(cls, array: Array) -> "Latent":
        """Make the latent of an array, which is copied: later changes of the array do not reach the latent."""
        if array.ndim < 2 or array.size == 0:
            raise ShapeMismatch(f"a latent of shape {array.shape}", facts={"shape": shape_text(array.shape)})
        # A copy takes a quarter of the time of the second digest that a latent in shared memory needs to be sent.
        data = np.array(array, dtype=np.float32, order="C")
        return cls(data, hashlib.sha256(_wire(data)).digest(), sealed=True)

    @classmethod
    def from_bytes(
        cls, data: bytes | bytearray | memoryview, sample_shape: Sequence[int], *, sha256: bytes | None = None
    ) -> "Latent":
        """Make the latent of little-endian row-major bytes, which are not copied on usual machines."""
        samples, rest = divmod(len(data), math.prod(sample_shape) * ITEM_BYTES)
        if samples == 0 or rest:
            raise ShapeMismatch(
                f"{len(data)} bytes are no samples of shape {shape_text(sample_shape)}",
                facts={"sample_shape": shape_text(sample_shape), "bytes": len(data)},
            )
        numbers = np.frombuffer(data, dtype="<f4").astype(np.float32, copy=False)
        array = numbers.reshape(samples, *sample_shape)
        require_finite(array)
        digest = sha256 or hashlib.sha256(data).digest()
        return cls(array, digest, sealed=isinstance(data, bytes))

    @property
    def size_bytes(self) -> int:
        return self.data.size * ITEM_BYTES

    def wire(self) -> memoryview:
        return _wire(self.data).toreadonly()

    def to_bytes(self) -> bytes:
        return bytes(self.wire())


def _wire(data: Array) -> memoryview:
    return data.astype("<f4", copy=False).data.cast("B")


def moments(array: Array) -> tuple[float, float]:
    """Return mean and standard deviation (over the count) of all numbers, in one pass without a copy."""
    flat, total, squares = array.reshape(-1), 0.0, 0.0
    # Near the mean, so that little is lost where it is far from 0 and the deviation small.
    shift = flat[:SUM_BLOCK].mean()
    for start in range(0, flat.size, SUM_BLOCK):
        block = flat[start : start + SUM_BLOCK] - shift
        total += float(block.sum())
        squares += float(np.dot(block, block))
    offset = total / flat.size
    return float(shift) + offset, math.sqrt(max(squares / flat.size - offset * offset, 0.0))


def require_finite(array: Array) -> None:
    """Raise `NotFinite` when a value is NaN or infinite."""
    flat = array.reshape(-1)
    blocks = (flat[start : start + SUM_BLOCK] for start in range(0, flat.size, SUM_BLOCK))
    count = array.size - sum(int(np.count_nonzero(np.isfinite(block))) for block in blocks)
    if count:
        raise NotFinite(f"{count} of {array.size} values are NaN or infinite", facts={"count": count})


def shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))[:100]
