"""Maps errors to the gRPC error detail that crosses the wire, and back.

Only an error's reason, fixed sentence, facts and differences are sent; text for the person at this machine stays here.
Texts from a peer are made short and printable, and name the institution that they are from where it is not the
caller's own. Our nodes attach a detail to every error: a status without one comes from gRPC or from the network.

Every call of a node ends with the trailing metadata `ddib-time`: its Unix time in seconds. Certificates, calibrations
and quotas depend on the clock, and a wrong one shows as a refusal whose text speaks of something else.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from ddib_fed import errors
from ddib_fed.protocol.contract import LAST_MOMENT
from ddib_fed.protocol.messages import check
from ddib_fed.terminal import escape
from ddib_fed.v1 import common_pb2 as pb

DETAIL_KEY: Final = "ddib-error-bin"
MAX_DETAIL_BYTES: Final = 6 << 10
MAX_FACTS: Final = 16
MAX_DIFFERENCES: Final = 16
MAX_REASONS: Final = 16
MAX_REFUSED: Final = 10_000
MAX_TEXT: Final = 200
MAX_INCIDENT: Final = 32
MAX_RETRY_AFTER_MS: Final = 24 * 3600 * 1000
TIME_KEY: Final = "ddib-time"
TOLERATED_S: Final = 60.0
"""Certificates are made to begin some minutes before they are issued: less than this refuses nothing."""

# The meaning of a status without our detail. The others are what the transport itself ends calls with: no connection, a
# broken stream, a stopping server, our own limit of time; only these are worth another try.
_BY_STATUS: Final[Mapping[grpc.StatusCode, type[errors.DdibError]]] = {
    grpc.StatusCode.UNIMPLEMENTED: errors.NotFoundError,  # a node without this service; HTTP 404
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,  # HTTP 401
    grpc.StatusCode.PERMISSION_DENIED: errors.RefusedError,  # HTTP 403
    grpc.StatusCode.INVALID_ARGUMENT: errors.InputError,
    grpc.StatusCode.OUT_OF_RANGE: errors.InputError,
    grpc.StatusCode.NOT_FOUND: errors.NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    grpc.StatusCode.FAILED_PRECONDITION: errors.StateConflict,
    grpc.StatusCode.OK: errors.InternalError,
}
# Statuses of permanent errors that transport failures have too: gRPC's texts tell them apart. They are only compared,
# never repeated.
_BY_TEXT: Final[tuple[tuple[str, type[errors.DdibError], str], ...]] = (
    (
        r"^RESOURCE_EXHAUSTED .*(message larger than max|metadata size exceeds)",
        errors.MessageInvalid,
        "a message between us and {} is over gRPC's limit, 4 MiB for a message",
    ),
    (
        r"^INTERNAL Exception deserializing response!",
        errors.MessageInvalid,
        "{} answered with what is no message of this protocol",
    ),
    (
        r"^INTERNAL Exception serializing request!|^UNKNOWN Exception iterating requests!",
        errors.InternalError,
        "a message for {} could not be made; the log says why",
    ),
)


def to_detail(error: errors.DdibError, institution: str, incident: str) -> pb.ErrorDetail:
    """The detail of an error that is sent to a peer."""
    detail = pb.ErrorDetail(
        reason=error.reason,
        sentence=error.said_by(institution)[:MAX_TEXT],
        incident=incident[:MAX_INCIDENT],
        retry_after_ms=round((error.retry_after_s or 0) * 1000),
        institution=institution,
    )
    for key, value in list(error.facts.items())[:MAX_FACTS]:
        detail.facts[_clean(key)] = _clean(value)
    for each in error.differences[:MAX_DIFFERENCES]:
        texts = {name: _clean(getattr(each, name)) for name in ("field", "source", "target", "remedy")}
        detail.differences.add(**texts)
    for reason in sorted(set(error.refused.values()))[:MAX_REASONS]:
        items = [number for number in sorted(error.refused) if error.refused[number] == reason]
        detail.refused.add(reason=reason, items=items[:MAX_REFUSED])
    while detail.ByteSize() > MAX_DETAIL_BYTES and detail.refused:
        last = detail.refused[-1]
        del last.items[len(last.items) // 2 :]
        if not last.items:
            del detail.refused[-1]
    while detail.ByteSize() > MAX_DETAIL_BYTES and detail.facts:
        del detail.facts[max(detail.facts)]
    while detail.ByteSize() > MAX_DETAIL_BYTES and detail.differences:
        del detail.differences[-1]
    return detail


def from_detail(data: bytes, hop: str) -> errors.DdibError | None:
    """The error in a detail; None if it cannot be parsed."""
    if len(data) > MAX_DETAIL_BYTES:
        return None
    try:
        detail = pb.ErrorDetail.FromString(data)
        check(detail)
    except errors.UnknownFields as error:
        error.hop = hop
        return error
    except (DecodeError, errors.MessageInvalid):
        return None
    if not detail.reason:
        return None
    kind, reason = errors.error_class(detail.reason), _clean(detail.reason)
    where, called = _clean(detail.institution), institution_of(hop)
    foreign = hop.startswith(("target ", "peer "))

    def said(text: str) -> str:
        return f'{called} says: "{text}"'[:MAX_TEXT] if text and foreign else text

    differences = tuple(
        errors.Difference(_clean(d.field), _clean(d.source), _clean(d.target), said(_clean(d.remedy)))
        for d in detail.differences
    )
    further = bool(where) and where != called and not foreign
    own_words = kind.said_by(where if further else called)[:MAX_TEXT]
    sentence = said(_clean(detail.sentence) or reason) if kind is errors.InternalError else own_words
    found = kind(
        sentence,
        hop=f"{hop} -> {where}" if further else hop,
        facts={_clean(k): _clean(v) for k, v in sorted(detail.facts.items())},
        retry_after_s=min(detail.retry_after_ms, MAX_RETRY_AFTER_MS) / 1000 or None,
        differences=differences,
        incident="".join(c for c in detail.incident if c.isascii() and c.isalnum()),
    )
    found.refused = {number: _clean(each.reason) for each in detail.refused for number in each.items}
    found.says = called if foreign else where if further and kind is not errors.PeerFault else ""
    return found


def from_rpc_error(error: grpc.RpcError, hop: str) -> errors.DdibError:
    call: Any = error if status_of(error) is not None else None
    trailing: Iterable[Any] = () if call is None else call.trailing_metadata() or ()
    for key, value in trailing:
        if key == DETAIL_KEY and isinstance(value, bytes) and (found := from_detail(value, hop)) is not None:
            return _with_clock(found, clock_difference(trailing))
    code, who = status_of(error), hop or "the peer"
    name, text = (code.name if code else "no status"), ((call.details() or "") if call is not None else "")
    for pattern, without_hope, says in _BY_TEXT:
        if re.search(pattern, f"{name} {text}"):
            return without_hope(says.format(who), hop=hop)
    kind = errors.InternalError if code is None else _BY_STATUS.get(code, errors.PeerUnreachable)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return kind(f"{who} does not offer this call: it has another role, or is of another release", hop=hop)
    if kind is not errors.PeerUnreachable:
        return kind(f"{kind.sentence} ({name})", hop=hop)
    if code is grpc.StatusCode.UNAVAILABLE:
        detail = f"{who} does not answer, or refuses the connection"
    elif code is grpc.StatusCode.DEADLINE_EXCEEDED:
        detail = f"{who} did not answer in time"
    else:
        detail = f"the connection to {who} broke off ({name})"
    hint = f"ddib peer test {institution_of(hop)}" if hop.startswith("target") else "ddib doctor"
    return errors.PeerUnreachable(detail, hop=hop, hint=hint)


def _with_clock(error: errors.DdibError, difference_s: float | None) -> errors.DdibError:
    if (
        isinstance(error, errors.RefusedError)
        and difference_s is not None
        and abs(difference_s) >= TOLERATED_S
    ):
        error.detail = f"{error.detail}; that node's clock is {described(difference_s)}"
        error.args = (error.detail,)
        error.hint = "compare both clocks: `timedatectl` shows whether this machine's is synchronised"
    return error


def status_of(error: Any) -> grpc.StatusCode | None:
    return error.code() if isinstance(error, grpc.Call) else None


def _clean(text: str) -> str:
    return escape(text[:MAX_TEXT])[:MAX_TEXT]


def time_entry(now: float) -> tuple[str, str]:
    return TIME_KEY, f"{now:.3f}"


def clock_difference(trailing: Iterable[Any] | None) -> float | None:
    """Seconds by which the other clock is ahead of this one, too low by the time that the answer took to arrive."""
    for key, value in trailing or ():
        if key == TIME_KEY and isinstance(value, str):
            try:
                said = float(value[:32])
            except ValueError:
                return None
            return said - time.time() if math.isfinite(said) and 0 <= said <= LAST_MOMENT else None
    return None


def described(difference_s: float) -> str:
    """A difference between two clocks, for a person, from this machine's side."""
    size, where = abs(difference_s), "ahead of" if difference_s > 0 else "behind"
    for unit, seconds in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if size >= 2 * seconds:
            return f"{size / seconds:.0f} {unit} {where} this machine's"
    return f"{size:.0f} s {where} this machine's"


# What the node of another institution may say of a request: of its own state, policy and model, and of the protocol.
# It gets latents that were checked against the contract, and neither files nor options: an error of those is none.
_SAYABLE: Final = (
    errors.ContractMismatch,
    errors.RefusedError,
    errors.ExhaustedError,
    errors.UnavailableError,
    errors.Cancelled,
    errors.DeadlineExceeded,
    errors.ChunkCorrupt,
    errors.DomainNotFound,
    errors.AggregateNotFound,
    errors.SettingsInvalid,
    errors.InternalError,
)
_SAYABLE_ITSELF: Final = frozenset({errors.NotFoundError, errors.MessageInvalid, errors.UnknownFields})
"""Classes of which no subclass is meant."""


def institution_of(hop: str) -> str:
    return hop.rpartition(" ")[2]


def at_fault(error: errors.DdibError, hop: str) -> errors.PeerFault:
    """The fault of a peer in whose answer `error` was found."""
    if isinstance(error, errors.PeerFault):
        return error
    fault = _fault(hop, "what cannot be used: ", escape(error.detail[:MAX_TEXT])[:MAX_TEXT], error)
    fault.differences = error.differences
    if isinstance(error, errors.UnknownFields):
        fault.hint = "ddib --version at both institutions: the releases may be too far apart"
    return fault


def _fault(hop: str, what: str, found: str, error: errors.DdibError) -> errors.PeerFault:
    peer = institution_of(hop)
    hint = f"ask the operator of {peer}; ddib peer test {peer} asks that node again"
    facts = {"peer": peer, "answer": error.reason, "found": found}
    return errors.PeerFault(f"{peer} answered with {what}{found}", hop=hop, hint=hint, facts=facts)


@contextmanager
def checking_answers(hop: str) -> Iterator[None]:
    """Inside, what is found wrong is wrong with the answer of a peer."""
    try:
        yield
    except (
        errors.InputError,
        errors.ContractMismatch,
        errors.ChunkCorrupt,
        errors.LatentNotGaussian,
    ) as error:
        raise at_fault(error, hop) from error


def failure_of_peer(error: grpc.RpcError, hop: str) -> errors.DdibError:
    """The error of a failed call to another institution."""
    found = from_rpc_error(error, hop)
    if (
        type(found) in {errors.MessageInvalid, errors.UnknownFields} and not found.incident
    ):  # found here, about the answer
        return at_fault(found, hop)
    if isinstance(found, _SAYABLE) or type(found) in _SAYABLE_ITSELF:
        return found
    fault = _fault(hop, "", f"a refusal with a reason that it cannot have: {found.reason}", found)
    fault.incident = found.incident
    if (item := found.facts.get("item", "")).isdecimal():
        fault.facts["item"] = item
    return fault


def is_number(text: str) -> bool:
    """Whether it is a number as an item has one."""
    return text.isascii() and text.isdecimal() and len(text) < 10
