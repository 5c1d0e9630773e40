"""Latents of one item: float32 arrays with the digest of their bytes on the wire."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ddib_fed.errors import NotFinite, ShapeMismatch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

WIRE_DTYPE = np.dtype("<f4")


@dataclass(frozen=True, slots=True, eq=False)
class Latent:
    """Latents of one item.

    Attributes:
        data: (N, *sample_shape), float32, C-contiguous.
        sha256: Digest of its bytes on the wire, 32 bytes.
    """

    data: Array
    sha256: bytes

    @classmethod
    def from_array(cls, array: Array) -> Latent:
        """The latent of an array; float32 arrays in C order are not copied.

        Raises:
            ShapeMismatch: Not an array of at least one sample with at least one axis.
        """
        data = np.ascontiguousarray(array, dtype=np.float32)
        if array.ndim < 2 or data.size == 0:
            raise ShapeMismatch(f"a latent of shape {array.shape}", facts={"shape": shape_text(array.shape)})
        return cls(data, hashlib.sha256(_wire_view(data)).digest())

    @classmethod
    def from_bytes(cls, data: bytes, sample_shape: Sequence[int]) -> Latent:
        """The latent in little-endian row-major float32 bytes; not copied, and read-only, on usual machines.

        Args:
            data: The bytes of N samples.
            sample_shape: Shape of one sample.

        Raises:
            ShapeMismatch: The bytes are no whole number of samples, at least one.
            NotFinite: A value is NaN or infinite.
        """
        samples, rest = divmod(len(data), math.prod(sample_shape) * WIRE_DTYPE.itemsize)
        if samples == 0 or rest:
            raise ShapeMismatch(
                f"{len(data)} bytes are no float32 samples of shape {shape_text(sample_shape)}",
                facts={"sample_shape": shape_text(sample_shape), "bytes": len(data)},
            )
        array = np.frombuffer(data, dtype=WIRE_DTYPE).reshape(samples, *sample_shape)
        array = array.astype(np.float32, copy=False)
        require_finite(array)
        return cls(array, hashlib.sha256(data).digest())

    @property
    def size_bytes(self) -> int:
        """Bytes on the wire."""
        return self.data.nbytes

    def to_bytes(self) -> bytes:
        """Little-endian row-major float32 bytes."""
        return bytes(_wire_view(self.data))


def require_finite(array: Array) -> None:
    """Raise `NotFinite` when a value is NaN or infinite."""
    if not np.isfinite(array).all():
        count = int(array.size - np.isfinite(array).sum())
        raise NotFinite(f"{count} of {array.size} values are NaN or infinite", facts={"count": count})


def _wire_view(data: Array) -> memoryview:
    """The bytes on the wire, without a copy where memory has their order already."""
    return data.astype(WIRE_DTYPE, copy=False).data.cast("B")


def shape_text(shape: Sequence[int]) -> str:
    """A shape for messages: ``1x3x64x64``, at most 100 characters."""
    return "x".join(map(str, shape))[:100]
