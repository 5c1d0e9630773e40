"""The egress guard for latents, and the check of received latents.

Only `approve` makes an `ApprovedLatent`, and only an `ApprovedLatent` makes a `LatentHeader`:
nothing else can leave a node as a latent.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

from google.protobuf.message import Message

from ddib_fed.errors import (
    ChunkCorrupt,
    ContractMismatch,
    DdibError,
    Difference,
    ImageTooLarge,
    LatentNotGaussian,
    MessageInvalid,
    PointsTooMany,
    ShapeMismatch,
)
from ddib_fed.latent import ITEM_BYTES, Latent, moments, require_finite, shape_text
from ddib_fed.protocol.contract import Contract
from ddib_fed.protocol.streams import Announced, stream
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float32]

M = TypeVar("M", bound=Message)

SAME_FIGURE = 1e-3
"""Tolerance between two measurements of one latent: sums in another order or on another device."""


class Statistics(Protocol):
    """White-noise statistics of a latent, as measured by the engine's Gaussian check; see docs/protocol.md."""

    @property
    def mean(self) -> float: ...

    @property
    def std(self) -> float: ...

    @property
    def count(self) -> int: ...


def audit_head(header: pb.LatentHeader | pb.DecodedHeader) -> common_pb2.AuditHead | None:
    """Return the end of the sender's audit log, which comes with each latent and its answer.

    The receiver writes it into its own log: neither can then cut, roll back or rewrite its log up to that line
    unnoticed.
    """
    return header.audit if header.HasField("audit") else None


_GUARD = object()


class ApprovedLatent:
    """A latent that may be sent under one contract, with its bytes, which cannot be written. Made by `approve`."""

    __slots__ = ("_header", "_payload")
    _header: pb.LatentHeader
    _payload: memoryview

    def __init__(self, guard: object, header: pb.LatentHeader, payload: memoryview) -> None:
        if guard is not _GUARD:
            raise TypeError("only approve() makes a latent fit to leave")
        object.__setattr__(self, "_header", header)
        object.__setattr__(self, "_payload", payload)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"an approved latent does not change: {name}")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("an approved latent is neither copied nor pickled")

    @property
    def item(self) -> int:
        return self._header.item

    @property
    def sha256(self) -> bytes:
        return self._header.tensor.sha256

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._header.tensor.shape)

    @property
    def size_bytes(self) -> int:
        return len(self._payload)

    def recorded(self, anchor: common_pb2.AuditHead) -> ApprovedLatent:
        """Return the same latent, to be sent with the end of the audit log that has its line."""
        header = deepcopy(self._header)
        header.audit.CopyFrom(anchor)
        return ApprovedLatent(_GUARD, header, self._payload)

    def stream(self, message: type[M]) -> Iterator[M]:
        """Yield the messages of a class, `DecodeRequest` or `DecodeResponse`, that carry this latent."""
        return stream(message, "latent", self._header, self._payload)


def approve(
    latent: Latent, contract: Contract, statistics: Statistics, *, item: int, target_class: int | None = None
) -> ApprovedLatent:
    """Approve a latent for sending; no other function does.

    1. Raise ShapeMismatch unless it has the contract's shape, PointsTooMany or ImageTooLarge over its limits.
    2. Raise NotFinite unless every value is finite.
    3. Raise ChunkCorrupt unless the bytes have the digest that the latent was made or stored with: nothing can have
    written them since (`Latent.sealed`), or the digest is computed again.
    4. Raise LatentNotGaussian unless the Gaussian check was made over these numbers: count, mean and deviation agree.

    The latent's own memory is sent, not a copy; nobody can write it through the latent.
    """
    _require_shape(latent.data.shape, contract)
    _require_within_limits(latent.data.shape[0], latent.size_bytes, contract)
    require_finite(latent.data)
    payload = latent.wire()
    if not latent.sealed and hashlib.sha256(payload).digest() != latent.sha256:
        raise ChunkCorrupt("the latent has changed since it was encoded", facts={"what": "latent"})
    _require_own(statistics, latent.data)
    tensor = common_pb2.TensorHeader(shape=latent.data.shape, size_bytes=len(payload), sha256=latent.sha256)
    header = pb.LatentHeader(
        item=item, tensor=tensor, contract_sha256=contract.digest, target_class=target_class
    )
    return ApprovedLatent(_GUARD, header, payload)


class LatentOpener:
    """Checks the header of each latent in one stream of at most `max_items`, before any of its bytes.

    `anchor` is the end of the sender's audit log with the latent whose header came last; None for none.
    """

    def __init__(self, contract: Contract, max_items: int) -> None:
        self._contract = contract
        self._items_left = max_items
        self._last_item = -1
        self.anchor: common_pb2.AuditHead | None = None

    def __call__(self, header: pb.LatentHeader) -> Announced:
        ours, theirs = self._contract.digest, header.contract_sha256
        if theirs != ours:
            remedy = "Negotiate the contract again: one of the two nodes has a new model or new limits."
            raise ContractMismatch(
                "the latent is under another contract",
                differences=(Difference("contract_sha256", theirs.hex()[:64], ours.hex(), remedy),),
            )
        if header.item <= self._last_item or self._items_left <= 0:
            raise MessageInvalid(f"item {header.item} is not expected now", facts={"field": "item"})
        announced = open_tensor(header.tensor, self._contract)
        self._last_item = header.item
        self._items_left -= 1
        self.anchor = audit_head(header)
        return announced


def open_tensor(header: common_pb2.TensorHeader, contract: Contract) -> Announced:
    shape = tuple(header.shape)
    _require_shape(shape, contract)
    if header.size_bytes != math.prod(shape) * ITEM_BYTES:
        raise ShapeMismatch(
            f"{header.size_bytes} bytes were announced for shape {shape_text(shape)}",
            facts={"shape": shape_text(shape), "bytes": header.size_bytes},
        )
    _require_within_limits(shape[0], header.size_bytes, contract)
    return Announced(header.size_bytes, header.sha256, contract.limits.max_latent_bytes, _too_large(contract))


def _require_shape(shape: Sequence[int], contract: Contract) -> None:
    expected = contract.latent_shape
    if len(shape) != len(expected) + 1 or tuple(shape[1:]) != expected or shape[0] < 1:
        raise ShapeMismatch(
            f"a latent of shape {shape_text(shape)} where (N, {shape_text(expected)}) was agreed",
            facts={"shape": shape_text(shape), "latent_shape": shape_text(expected)},
        )


def _require_within_limits(samples: int, size_bytes: int, contract: Contract) -> None:
    limits = contract.limits
    if samples > limits.max_samples_per_item or size_bytes > limits.max_latent_bytes:
        raise _too_large(contract)(
            f"{samples} samples in {size_bytes} bytes",
            facts={
                "samples": samples,
                "limit_samples": limits.max_samples_per_item,
                "size_bytes": size_bytes,
                "limit_bytes": limits.max_latent_bytes,
            },
        )


def _require_own(statistics: Statistics, array: Array) -> None:
    mean, std = moments(array)
    same = abs(statistics.mean - mean) < SAME_FIGURE and abs(statistics.std - std) < SAME_FIGURE
    if statistics.count != array.size or not same:
        raise LatentNotGaussian("the statistics are not those of this latent", facts={"what": "statistics"})


def _too_large(contract: Contract) -> type[DdibError]:
    return PointsTooMany if contract.target.sample_kind == "point" else ImageTooLarge
