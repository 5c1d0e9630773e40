"""Calls: channels whose answers are checked before they are used, iterators that are read ahead, and errors that cross.

Every channel of this package is wrapped. Only an error's reason, fixed sentence, facts and differences are sent; text
for the person at this machine stays here. Texts from a peer are made short and printable, and name the institution
that they are from where it is not the caller's own. Our nodes attach a detail to every error: a status without one
comes from gRPC or from the network.

Every call of a node ends with the trailing metadata `ddib-time`: its Unix time in seconds. Certificates, calibrations
and quotas depend on the clock, and a wrong one shows as a refusal whose text speaks of something else.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Generic, Self, TypeVar

import grpc
from google.protobuf.message import DecodeError

from ddib_fed import errors
from ddib_fed.protocol.contract import LAST_MOMENT
from ddib_fed.protocol.messages import check
from ddib_fed.terminal import escape
from ddib_fed.v1 import common_pb2 as pb

MAX_MESSAGE_BYTES: Final = 4 << 20
STUCK_S: Final = 3.0
"""A reader that still waits so long after its call has ended is stuck."""
LOOK_EVERY_S: Final = 0.5

T = TypeVar("T")


class _Call:
    """A running call, or its future; everything but the answers is delegated."""

    def __init__(self, call: Any, channel: CheckedChannel) -> None:
        self._call = call
        self._channel = channel
        self.silence_s = math.inf
        """A reader that waits for longer cancels the call: a node that hangs keeps its connection alive."""
        self.gave_up = False
        self._waits_since = self._ended_at = math.inf

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        self._waits_since, self._ended_at = time.monotonic(), math.inf
        self._channel.watch(self)
        try:
            answer = next(self._call)
        finally:
            self._channel.readers.discard(self)
        return self._channel.checked(answer)

    def is_stuck(self, now: float) -> bool:
        if self._call.is_active():
            return False
        self._ended_at = min(self._ended_at, now)
        return now - self._ended_at > STUCK_S

    def end_silence(self, now: float) -> None:
        if now - self._waits_since > self.silence_s and not self.gave_up:
            self.gave_up = True
            self._call.cancel()

    def result(self, timeout: float | None = None) -> Any:
        return self._channel.checked(self._call.result(timeout))

    def add_done_callback(self, fn: Callable[[Any], Any]) -> None:
        self._call.add_done_callback(lambda _: fn(self))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)


grpc.Call.register(_Call)  # type: ignore[attr-defined]  # the stubs do not know that it is an ABC


@dataclass(frozen=True, slots=True)
class _Method:
    method: Any
    channel: CheckedChannel
    streams: bool

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.streams:
            return _Call(self._open(self.method, *args, **kwargs), self.channel)
        answer, call = self._open(self.method.with_call, *args, **kwargs)
        self.channel.clock_s = clock_difference(call.trailing_metadata())
        return self.channel.checked(answer)

    def future(self, *args: Any, **kwargs: Any) -> _Call:
        return _Call(self._open(self.method.future, *args, **kwargs), self.channel)

    def _open(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except ValueError as error:  # what gRPC raises for a closed channel
            hop = self.channel.hop
            raise errors.PeerUnreachable(f"the channel to {hop} was closed", hop=hop) from error


class CheckedChannel(grpc.Channel):
    """A channel whose answers are checked.

    While calls are read, a thread cancels those whose peer is silent for too long. gRPC 1.85 may end a stream without
    waking its reader: for such a reader the thread closes the channel, which wakes it, and which is `broken` then.
    """

    def __init__(self, channel: grpc.Channel, hop: str, *, own: bool) -> None:
        self._channel = channel
        self.hop, self._own = hop, own
        self.readers: set[_Call] = set()  # its methods are atomic
        self._watching = threading.Lock()
        self.broken = False
        self.clock_s: float | None = None

    def watch(self, call: _Call) -> None:
        self.readers.add(call)
        if self._watching.acquire(blocking=False):
            threading.Thread(target=self._watch, name="stuck-calls", daemon=True).start()

    def _watch(self) -> None:
        while True:
            time.sleep(LOOK_EVERY_S)
            readers, now = list(self.readers), time.monotonic()
            for reader in readers:
                reader.end_silence(now)
            if any(reader.is_stuck(now) for reader in readers):
                self.broken = True
                self._channel.close()
                return
            if not readers:  # the next reader starts another thread, unless it came before the release
                self._watching.release()
                if not self.readers or not self._watching.acquire(blocking=False):
                    return

    def checked(self, answer: Any) -> Any:
        """Return the answer; raise PeerFault for a wrong one, an input error for the own institution's."""
        try:
            check(answer)
        except errors.InputError as error:
            if not self._own:
                raise at_fault(error, self.hop) from error
            error.hop = self.hop
            if isinstance(error, errors.UnknownFields):
                error.hint = "ddib --version on both machines: the releases may differ"
            raise
        return answer

    def unary_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self._channel.unary_unary(*args, **kwargs), self, streams=False)

    def stream_unary(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self._channel.stream_unary(*args, **kwargs), self, streams=False)

    def unary_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self._channel.unary_stream(*args, **kwargs), self, streams=True)

    def stream_stream(self, *args: Any, **kwargs: Any) -> Any:
        return _Method(self._channel.stream_stream(*args, **kwargs), self, streams=True)

    def subscribe(self, *args: Any, **kwargs: Any) -> None:
        self._channel.subscribe(*args, **kwargs)

    def unsubscribe(self, *args: Any, **kwargs: Any) -> None:
        self._channel.unsubscribe(*args, **kwargs)

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _End:
    """The iterator is over, by this error if there is one."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class ReadAhead(Generic[T]):
    """The elements of an iterator in order, taken on a thread of its own before they are asked for.

    Making the next element and sending, or using, the present one overlap. A context manager, which takes no more of
    them once it is left. `most` is what elements may weigh together, 1 each if `weigh` does not say otherwise.
    """

    def __init__(
        self, elements: Iterable[T], most: int, name: str, *, weigh: Callable[[T], int] = lambda _: 1
    ) -> None:
        self._elements, self._most, self._weigh = elements, most, weigh
        self._waiting: deque[tuple[T | _End, int]] = deque()
        self._weight = 0
        self._changed = threading.Condition()
        self._left = False
        self._thread = threading.Thread(target=self._read, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.leave()

    @property
    def ready(self) -> bool:
        return bool(self._waiting)

    def leave(self) -> None:
        """Take no more elements: readers get none, and the thread ends after the element that it waits for."""
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def each(
        self, wait_s: Callable[[], float | None] = lambda: None, late: Callable[[], T | None] = lambda: None
    ) -> Iterator[T]:
        """Yield the elements; after `wait_s` without one yield what `late` returns, if anything, and wait anew."""
        while True:
            with self._changed:
                in_time = self._changed.wait_for(lambda: bool(self._waiting) or self._left, wait_s())
                element, weight = self._waiting.popleft() if self._waiting else (_End(), 0)
                self._weight -= weight
                if self._weight <= self._most // 2:  # whoever reads is woken for several
                    self._changed.notify_all()
            if not in_time:
                if (instead := late()) is not None:
                    yield instead
            elif not isinstance(element, _End):
                yield element
                element = _End()  # forgotten before the next is asked for: it may be large
            elif element.error is not None:
                raise element.error
            else:
                return

    def _read(self) -> None:
        end = _End()
        try:
            for element in self._elements:
                if not self._put(element, self._weigh(element)):
                    if isinstance(self._elements, Generator):
                        self._elements.close()
                    return
        except BaseException as error:  # noqa: BLE001 - raised again where the elements are taken
            end = _End(error)
        self._put(end, 0)

    def _put(self, element: T | _End, weight: int) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._left or self._weight < self._most)
            if not self._left:
                self._waiting.append((element, weight))
                self._weight += weight
                self._changed.notify_all()
            return not self._left


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
    detail = pb.ErrorDetail(
        reason=error.reason,
        sentence=error.said_by(institution)[:MAX_TEXT],
        incident=incident[:MAX_INCIDENT],
        retry_after_ms=round((error.retry_after_s or 0) * 1000),
        institution=institution,
    )
    for key, value in list(error.facts.items())[:MAX_FACTS]:
        detail.facts[_clean(key)] = _clean(value)
    for difference in error.differences[:MAX_DIFFERENCES]:
        texts = {name: _clean(getattr(difference, name)) for name in ("field", "source", "target", "remedy")}
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
    """Return the error in a detail; None if it cannot be parsed."""
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
    failure = kind(
        sentence,
        hop=f"{hop} -> {where}" if further else hop,
        facts={_clean(k): _clean(v) for k, v in sorted(detail.facts.items())},
        retry_after_s=min(detail.retry_after_ms, MAX_RETRY_AFTER_MS) / 1000 or None,
        differences=differences,
        incident="".join(c for c in detail.incident if c.isascii() and c.isalnum()),
    )
    failure.refused = {number: _clean(group.reason) for group in detail.refused for number in group.items}
    failure.says = called if foreign else where if further and kind is not errors.PeerFault else ""
    return failure


def from_rpc_error(error: grpc.RpcError, hop: str) -> errors.DdibError:
    call: Any = error if status_of(error) is not None else None
    trailing: Iterable[Any] = () if call is None else call.trailing_metadata() or ()
    for key, value in trailing:
        if (
            key == DETAIL_KEY
            and isinstance(value, bytes)
            and (failure := from_detail(value, hop)) is not None
        ):
            return _with_clock(failure, clock_difference(trailing) or 0.0)
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


def _with_clock(error: errors.DdibError, difference_s: float) -> errors.DdibError:
    if isinstance(error, errors.RefusedError) and abs(difference_s) >= TOLERATED_S:
        error.detail = f"{error.detail}; that node's clock is {described(difference_s)}"
        error.hint = "compare both clocks: `timedatectl` shows whether this machine's is synchronised"
    return error


def status_of(error: Any) -> grpc.StatusCode | None:
    return error.code() if isinstance(error, grpc.Call) else None


def _clean(text: str) -> str:
    return escape(text[:MAX_TEXT])[:MAX_TEXT]


def time_entry(now: float) -> tuple[str, str]:
    return TIME_KEY, f"{now:.3f}"


def clock_difference(trailing: Iterable[Any] | None) -> float | None:
    """Return the seconds by which the other clock is ahead, too low by the time that the answer took to arrive."""
    for key, value in trailing or ():
        if key == TIME_KEY and isinstance(value, str):
            try:
                remote = float(value[:32])
            except ValueError:
                return None
            return remote - time.time() if math.isfinite(remote) and 0 <= remote <= LAST_MOMENT else None
    return None


def described(difference_s: float) -> str:
    """Describe a difference between two clocks, from this machine's side."""
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


def institution_of(hop: str) -> str:
    return hop.rpartition(" ")[2]


def at_fault(error: errors.DdibError, hop: str) -> errors.PeerFault:
    """Return the fault of a peer in whose answer `error` was found."""
    if isinstance(error, errors.PeerFault):
        return error
    fault = _fault(hop, "what cannot be used: ", _clean(error.detail), error)
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
    """Raise PeerFault for errors in the block, which are errors of a peer's answer."""
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
    """Return the error of a failed call to another institution."""
    failure = from_rpc_error(error, hop)
    if type(failure) in {errors.MessageInvalid, errors.UnknownFields} and not failure.incident:
        return at_fault(failure, hop)  # found here, about the answer
    if isinstance(failure, _SAYABLE) or type(failure) in _SAYABLE_ITSELF:
        return failure
    fault = _fault(hop, "", f"a refusal with a reason that it cannot have: {failure.reason}", failure)
    fault.incident = failure.incident
    if (item := failure.facts.get("item", "")).isdecimal():
        fault.facts["item"] = item
    return fault


def is_number(text: str) -> bool:
    """Return whether a text is a number as an item has one."""
    return text.isascii() and text.isdecimal() and len(text) < 10
