"""Turns errors into the detail that may cross the wire, and what crossed it back into errors.

The rule: of an error only its reason, its fixed sentence, its facts and its differences cross; what was written for
the person at this machine stays here. What a peer sends back is short and printable, or is cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from ddib_fed.errors import (
    AlreadyExists,
    Cancelled,
    ChunkCorrupt,
    DdibError,
    DeadlineExceeded,
    Difference,
    ExhaustedError,
    InputError,
    InternalError,
    NotFoundError,
    PeerUnreachable,
    RefusedError,
    StateConflict,
    Unauthenticated,
    error_class,
)
from ddib_fed.v1 import common_pb2 as pb

DETAIL_KEY: Final = "ddib-error-bin"
MAX_DETAIL_BYTES: Final = 6 << 10
MAX_FACTS: Final = 16
MAX_DIFFERENCES: Final = 16
MAX_TEXT: Final = 200
MAX_INCIDENT: Final = 32
MAX_RETRY_AFTER_MS: Final = 24 * 3600 * 1000

_BY_STATUS: Final[Mapping[grpc.StatusCode, type[DdibError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InputError,
    grpc.StatusCode.OUT_OF_RANGE: InputError,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: RefusedError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: StateConflict,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ExhaustedError,
    grpc.StatusCode.DATA_LOSS: ChunkCorrupt,
    grpc.StatusCode.CANCELLED: Cancelled,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def to_detail(error: DdibError, institution: str, incident: str) -> pb.ErrorDetail:
    """What a peer may read of an error.

    Args:
        error: Whose class decides reason and sentence.
        institution: Of the node that says so.
        incident: Under which its log has the rest.
    """
    detail = pb.ErrorDetail(
        reason=error.reason,
        sentence=error.sentence,
        incident=incident[:MAX_INCIDENT],
        retry_after_ms=round((error.retry_after_s or 0) * 1000),
        institution=institution,
    )
    for key, value in list(error.facts.items())[:MAX_FACTS]:
        detail.facts[_clean(key)] = _clean(value)
    for difference in error.differences[:MAX_DIFFERENCES]:
        detail.differences.add(
            field=_clean(difference.field),
            source=_clean(difference.source),
            target=_clean(difference.target),
            remedy=_clean(difference.remedy),
        )
    _shorten(detail)
    return detail


def _shorten(detail: pb.ErrorDetail) -> None:
    """Trailing metadata has a limit of 8 KiB in all: leave out facts, then differences, beyond ours."""
    while detail.ByteSize() > MAX_DETAIL_BYTES and detail.facts:
        del detail.facts[max(detail.facts)]
    while detail.ByteSize() > MAX_DETAIL_BYTES and detail.differences:
        del detail.differences[-1]


def from_detail(data: bytes, hop: str) -> DdibError | None:
    """The error in a detail; none when it is not one.

    Args:
        data: Serialised ErrorDetail, from a peer: nothing in it is believed beyond its form.
        hop: Where the call went, e.g. ``target south.example``.
    """
    if len(data) > MAX_DETAIL_BYTES:
        return None
    try:
        detail = pb.ErrorDetail.FromString(data)
    except DecodeError:
        return None
    if not detail.reason:
        return None
    kind, reason = error_class(detail.reason), _clean(detail.reason)
    differences = tuple(
        Difference(_clean(d.field), _clean(d.source), _clean(d.target), _clean(d.remedy))
        for d in detail.differences[:MAX_DIFFERENCES]
    )
    sentence = (_clean(detail.sentence) or reason) if kind is InternalError else kind.sentence
    where = _clean(detail.institution)
    return kind(
        sentence,
        hop=hop if not where or where == hop.rpartition(" ")[2] else f"{hop} -> {where}",
        facts={_clean(k): _clean(v) for k, v in sorted(detail.facts.items())[:MAX_FACTS]},
        retry_after_s=min(detail.retry_after_ms, MAX_RETRY_AFTER_MS) / 1000 or None,
        differences=differences,
        incident="".join(c for c in detail.incident[:MAX_INCIDENT] if c.isascii() and c.isalnum()),
    )


def from_rpc_error(error: grpc.RpcError, hop: str) -> DdibError:
    """What a failed call means.

    Args:
        error: From a stub. Its own text is not used: it is the peer's, or gRPC's.
        hop: Where the call went, e.g. ``source north.example``.
    """
    for key, value in _trailing(error):
        if key == DETAIL_KEY and isinstance(value, bytes) and (found := from_detail(value, hop)) is not None:
            return found
    code = status_of(error)
    if code is grpc.StatusCode.UNAVAILABLE:
        name = hop.rpartition(" ")[2]
        return PeerUnreachable(
            f"{hop or 'the peer'} does not answer, or refuses the connection",
            hop=hop,
            hint=f"ddib peer test {name}" if hop.startswith("target") else "ddib doctor",
        )
    kind = _BY_STATUS.get(code, InternalError) if code is not None else InternalError
    return kind(f"{kind.sentence} ({code.name if code else 'no status'})", hop=hop)


def status_of(error: grpc.RpcError) -> grpc.StatusCode | None:
    """The status that a call ended with; none when it never began."""
    call = _as_call(error)
    return call.code() if call is not None else None


def _trailing(error: grpc.RpcError) -> list[tuple[str, str | bytes]]:
    call = _as_call(error)
    return [] if call is None else [(str(key), value) for key, value in call.trailing_metadata() or ()]


def _as_call(error: Any) -> grpc.Call | None:
    """The call's side of an error: the stubs do not know that what a stub raises is both."""
    return error if isinstance(error, grpc.Call) else None


def _clean(text: str) -> str:
    """Text that is short and cannot steer a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_TEXT])
