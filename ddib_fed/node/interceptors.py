"""The one interceptor of a node's calls: maps errors, authorises, bounds and parses; limits for those who wait.

A call is authorised before its message is parsed, and again while its stream runs. Only the fixed sentence of an
error's class is sent.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast

import grpc

from ddib_fed.errors import (
    Cancelled,
    DdibError,
    DeadlineExceeded,
    DiskFull,
    InternalError,
    MessageInvalid,
    RefusedError,
    TooManyStreams,
)
from ddib_fed.files import RETRY_AFTER_S, is_disk_full
from ddib_fed.protocol.calls import ReadAhead
from ddib_fed.protocol.details import DETAIL_KEY, time_entry, to_detail
from ddib_fed.security.admission import (
    Admission,
    Audit,
    AuthContext,
    Authoriser,
    Refusals,
    Verifier,
    claimed_identity,
    parse_message,
    presented_certificate,
)
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import PeerStore

log = logging.getLogger(__name__)

if TYPE_CHECKING:  # the stubs make generic what cannot be subscripted at run time
    Handler = grpc.RpcMethodHandler[Any, Any]
    Interceptor = grpc.ServerInterceptor[Any, Any]
else:
    Handler = grpc.RpcMethodHandler
    Interceptor = grpc.ServerInterceptor
Continuation = Callable[[grpc.HandlerCallDetails], Handler | None]
T = TypeVar("T")

HEALTH_PREFIX: Final = "/grpc.health.v1.Health/"
MAX_HEALTH_BYTES: Final = 1 << 10
MAX_STREAMS: Final = 64
# Calls whose request has not arrived: each holds a thread of the reserve for unary calls, which is larger
# (`server.RESERVED_THREADS`). One person may have as many clients as a node works on jobs, and so many of the places.
MAX_WAITING_OF_ONE: Final = 16
MAX_WAITING: Final = 24
# The same for those who may ask for health and nothing else, all certificates of an institution together: it issues as
# many as it likes. What of a request has arrived is in memory, up to 4 MiB of each.
MAX_WAITING_OTHERS_OF_ONE: Final = 4
MAX_WAITING_OTHERS: Final = 8
REQUEST_S: Final = 20.0
"""A request is one small message: what servers give a client for its headers."""
IDLE_S: Final = 300.0
LOOK_EVERY_S: Final = 1.0
CHECK_EVERY_S: Final = 0.01
"""The messages of an object come within it: their caller is checked once."""
# A call is open until its caller has taken the answer, and takes some memory: far more than callers need that do.
OPEN_OF_ONE: Final = 512
OPEN_OF_OTHERS: Final = 64
SHARE: Final = 2
"""A caller may hold at most this many times the number of free places."""
KEPT: Final = 16
"""One of so many places is kept for callers that hold none."""
SLOWEST_BYTES_PER_S: Final = 64 << 10
"""An announced object may take as long as its bytes at this rate: half of what a client itself waits for."""
READ_AHEAD: Final = 4
"""Messages that are read before they are asked for: reading does not wait for each one's digest."""

_CALLER: ContextVar[Admission] = ContextVar("caller")


def caller() -> Identity:
    """The identity that the call of this thread was authorised for."""
    return _CALLER.get().identity


def within_share(taken: int, free: int, total: int) -> bool:
    return free > 0 and (taken == 0 or taken < SHARE * (free - total // KEPT))


class Slots:
    """Counts running work, in total and per identity, and refuses excess."""

    def __init__(self, per_identity: int, total: int) -> None:
        self._per_identity = per_identity
        self._total = total
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    @property
    def active(self) -> int:
        with self._lock:
            return self._taken.total()

    @contextmanager
    def taken(self, identity: str) -> Iterator[None]:
        """Hold one place, or raise TooManyStreams at once."""
        with self._lock:
            own, free = self._taken[identity], self._total - self._taken.total()
            if own >= self._per_identity:
                raise _too_many(f"{identity} has {own} calls open", own)
            if free <= 0:
                raise _too_many(f"{self._total} streams are open", self._total)
            if not within_share(own, free, self._total):
                raise _too_many(f"{identity} has its share of {self._total} streams", own)
            self._taken[identity] += 1
        try:
            yield
        finally:
            with self._lock:
                _decrease(self._taken, identity)


def _too_many(detail: str, limit: int) -> TooManyStreams:
    return TooManyStreams(detail, facts={"limit": limit}, retry_after_s=1.0)


def _decrease(counts: Counter[str], key: str) -> None:
    counts[key] -= 1
    if counts[key] <= 0:
        del counts[key]


class OpenCall:
    """One call, until its caller has taken all of the answer."""

    def __init__(
        self, context: grpc.ServicerContext, method: str, admission: Admission | None, idle_s: float
    ) -> None:
        self.context, self.method, self.admission = context, method, admission
        self.account = "" if admission is None else admission.account
        self.peer = context.peer()
        self._idle_s = idle_s
        self._next_check = time.monotonic() + CHECK_EVERY_S
        self._wait: tuple[float, str] | None = None
        """Until when the caller has to do its part, and what it has not done then."""

    def check(self) -> None:
        """Return while the caller is admitted; looks at most every `CHECK_EVERY_S`."""
        if self.admission is not None and time.monotonic() >= self._next_check:
            self.admission.check()
            self._next_check = time.monotonic() + CHECK_EVERY_S

    @contextmanager
    def waiting_for_request(self, request_s: float) -> Iterator[None]:
        fault = f"the caller did not send its request within {request_s:g} s"
        self._wait = time.monotonic() + request_s, fault
        try:
            yield
        finally:
            self._wait = None

    def waits_for_reader(self) -> None:
        fault = f"the caller took nothing of the answers for {self._idle_s:g} s"
        self._wait = time.monotonic() + self._idle_s, fault

    def answers(self, messages: Iterable[T]) -> Iterator[T]:
        """The messages, for as long as the caller is admitted and takes them."""
        iterator = iter(messages)
        try:
            for message in iterator:
                self.check()
                self.waits_for_reader()
                yield message
                self._wait = None
        finally:
            self._wait = None
            if (close := getattr(iterator, "close", None)) is not None:
                close()

    def fault(self, now: float) -> str | None:
        """What the caller has not done in time, once; None if nothing."""
        wait = self._wait
        if wait is None or now < wait[0]:
            return None
        self._wait = None
        return wait[1]

    def end(self, sentence: str) -> None:
        call: Any = self.context._rpc_event.call  # type: ignore[attr-defined]  # noqa: SLF001
        call.cancel(grpc.StatusCode[DeadlineExceeded.status].value[0], sentence)


class CallInterceptor(Interceptor):
    """Every failure becomes a status, a fixed sentence and an `ErrorDetail`; every caller is authorised and bounded.

    Without `peers` and `policy` (the operator's socket, which only one user can open) nobody is authorised.
    Streams are capped below the thread pool's size, so that unary calls and Health always find a thread.
    """

    def __init__(
        self,
        institution: str,
        peers: PeerStore | None = None,
        policy: Authoriser | None = None,
        *,
        audit: Audit | None = None,
        clock: Callable[[], float] = time.time,
        on_outcome: Callable[[str, str], object] = lambda *_: None,
        on_called: Callable[[str], object] = lambda _: None,
        on_admitted: Callable[[str, str], object] = lambda *_: None,
        request_s: float = REQUEST_S,
        idle_s: float = IDLE_S,
        max_streams: int = MAX_STREAMS,
        max_streams_of_one: int | None = None,
    ) -> None:
        self._institution, self._policy, self._clock = institution, policy, clock
        self._on_outcome, self._on_called, self._on_admitted = on_outcome, on_called, on_admitted
        self._request_s, self._idle_s = request_s, idle_s
        self._verifier = None if peers is None else Verifier(peers, self._now)
        self.refusals = Refusals(audit)
        self.streams = Slots(max_streams_of_one or max_streams, max_streams)
        self._waiting = Slots(MAX_WAITING_OF_ONE, MAX_WAITING)
        self._waiting_others = Slots(MAX_WAITING_OTHERS_OF_ONE, MAX_WAITING_OTHERS)
        self._lock = threading.Lock()
        self._open: set[OpenCall] = set()
        self._open_of: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="open-calls", daemon=True)

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """See grpc.ServerInterceptor."""
        handler: Any = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        streams = bool(handler.request_streaming or handler.response_streaming)
        deserialiser = handler.request_deserializer
        most = MAX_HEALTH_BYTES if method.startswith(HEALTH_PREFIX) else None

        def parse(data: bytes) -> Any:
            if most is not None and len(data) > most:
                raise MessageInvalid("a request for health is larger than any name of a service")
            return parse_message(data, deserialiser)

        def request_of(call: OpenCall, raw: Iterator[bytes]) -> Any:
            return (
                self._messages(call, raw, parse)
                if handler.request_streaming
                else parse(self._message(call, raw))
            )

        def one(raw: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            with self._mapping_errors(context, method), self._opened(context, method, streams) as call:
                return inner(request_of(call, raw), context)

        def many(raw: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._mapping_errors(context, method), self._opened(context, method, streams) as call:
                yield from call.answers(inner(request_of(call, raw), context))

        serialiser = handler.response_serializer
        made: Handler = (
            grpc.stream_stream_rpc_method_handler(many, None, serialiser)
            if handler.response_streaming
            else grpc.stream_unary_rpc_method_handler(one, None, serialiser)
        )
        return made

    # Errors

    @contextmanager
    def _mapping_errors(self, context: Any, method: str) -> Iterator[None]:
        outcome = "CANCELLED"
        try:
            yield
            if context.is_active():
                outcome = getattr(context.code(), "name", "OK")
            self._end_with(context)
        except Exception as error:
            if _is_grpcs_own(error, context):
                outcome = getattr(context.code(), "name", outcome)
                raise
            if isinstance(error, DdibError):
                failure = error
            elif is_disk_full(error):
                failure = DiskFull(f"{error}", retry_after_s=RETRY_AFTER_S)
            else:
                failure = InternalError()
            outcome = failure.status
            self._abort(context, method, failure, error)
        finally:
            self._on_outcome(method, outcome)

    def _end_with(self, context: Any, *entries: tuple[str, str | bytes]) -> None:
        """The call's trailing metadata: what the servicer set, these entries, and the time."""
        before = context.trailing_metadata() or ()
        context.set_trailing_metadata((*before, *entries, time_entry(self._clock())))

    def _abort(self, context: Any, method: str, failure: DdibError, error: Exception) -> NoReturn:
        incident = failure.incident or secrets.token_hex(6)
        institution = failure.hop.rpartition(" ")[2] or self._institution
        sentence = failure.said_by(institution)
        if failure.status == InternalError.status:
            sentence = f"{InternalError.sentence}, incident {incident}"
            log.error("%s failed, incident %s", method, incident, exc_info=error)
        else:
            log.info("%s: %s: %s (incident %s)", method, failure.reason, failure.detail, incident)
        self._end_with(context, (DETAIL_KEY, to_detail(failure, institution, incident).SerializeToString()))
        context.abort(grpc.StatusCode[failure.status], sentence)
        raise AssertionError  # abort has raised

    # Callers

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)

    @contextmanager
    def _opened(self, context: grpc.ServicerContext, method: str, streams: bool) -> Iterator[OpenCall]:
        """Context while a call of an admitted caller runs."""
        if self._verifier is None:
            yield OpenCall(context, method, None, self._idle_s)
            return
        admission = self._admit(context, method, self._verifier)
        _CALLER.set(admission)
        call = OpenCall(context, method, admission, self._idle_s)
        try:
            self._count(call)
            try:
                with self.streams.taken(call.account) if streams else nullcontext():
                    yield call
            finally:
                call.waits_for_reader()
                if not context.add_callback(lambda: self._over(call)):
                    self._over(call)
        except RefusedError as error:  # by the servicer: a policy, a latent
            self.refusals.record(context, method, error, identity=admission.identity.uri)
            raise

    def _admit(self, context: grpc.ServicerContext, method: str, verifier: Verifier) -> Admission:
        peer = context.peer()
        self._on_called(peer)
        pem = b""
        try:
            pem = presented_certificate(cast("AuthContext", context.auth_context()))
            admission = Admission(pem, method, verifier, cast("Authoriser", self._policy))
        except RefusedError as error:
            self.refusals.record(context, method, error, identity=claimed_identity(pem))
            raise
        if admission.is_known:
            self._on_admitted(peer, admission.account)
        return admission

    def _count(self, call: OpenCall) -> None:
        known = call.admission is not None and call.admission.is_known
        most = OPEN_OF_ONE if known else OPEN_OF_OTHERS
        with self._lock:
            if self._open_of[call.account] >= most:
                raise _too_many(f"{call.account} has {most} calls open", most)
            self._open_of[call.account] += 1
            self._open.add(call)

    def _over(self, call: OpenCall) -> None:
        with self._lock:
            self._open.discard(call)
            _decrease(self._open_of, call.account)

    def _message(self, call: OpenCall, raw: Iterator[bytes]) -> bytes:
        """The request of a unary call; it may never arrive: the number of waiting calls and their time are bounded."""
        admission = call.admission
        waiting = self._waiting if admission is None or admission.is_known else self._waiting_others
        with waiting.taken(call.account), call.waiting_for_request(self._request_s):
            message = next(raw, None)
        if message is None:
            raise MessageInvalid("the call ended without its message")
        return message

    def _messages(self, call: OpenCall, raw: Iterator[bytes], parse: Callable[[bytes], Any]) -> Iterator[Any]:
        for data in raw:
            call.check()
            self._on_called(call.peer)
            yield parse(data)
        if not call.context.is_active():
            raise Cancelled("the caller went away in the middle of its stream")

    # Open calls

    @property
    def open_calls(self) -> list[OpenCall]:
        with self._lock:
            return list(self._open)

    def start(self) -> None:
        """Begin to end the calls of callers that do nothing."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for it when it was started."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def sweep(self) -> int:
        """Cancel calls of callers that are no longer admitted, idle streams included; returns how many."""
        cancelled = 0
        for call in self.open_calls:
            if call.admission is None:
                continue
            try:
                call.admission.check()
            except RefusedError as error:
                uri = call.admission.identity.uri
                self.refusals.record(call.context, "a running call", error, identity=uri)
                call.context.cancel()  # type: ignore[no-untyped-call]  # untyped in the stubs
                cancelled += 1
        return cancelled

    def look(self) -> int:
        """End the calls whose caller does not do its part in time; returns how many."""
        ended: Counter[tuple[str, str, str]] = Counter()
        now = time.monotonic()
        for call in self.open_calls:
            if (fault := call.fault(now)) is not None:
                call.end(fault)
                ended[call.account, call.method, fault] += 1
        for (account, method, fault), times in ended.items():
            log.info("%s: ended %d calls of %s: %s", account, times, method, fault)
        return ended.total()

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self.look()
            except Exception:  # the thread must outlive any failure
                log.exception("calls that wait for their callers could not be looked at")


def _is_grpcs_own(error: Exception, context: Any) -> bool:
    if error.args:  # gRPC's own have no text; a text must not be sent
        return False
    if type(error) is grpc.RpcError:
        return not context.is_active()
    return type(error) is Exception and context.code() is not None


class Pace:
    """How long the next message of a stream may take: inside an announced object, and between objects.

    Between objects the receiver may be `busy` with what came: that time is not the sender's.
    """

    def __init__(self, stall_s: float, *, between_s: float, busy: Callable[[], bool] = lambda: False) -> None:
        self._stall_s, self._between_s, self._busy = stall_s, between_s, busy
        self._until: float | None = None
        self._worked = False

    def begin(self, size_bytes: int) -> None:
        self._until = time.monotonic() + self._stall_s + size_bytes / SLOWEST_BYTES_PER_S

    def end(self) -> None:
        self._until = None

    def wait_s(self) -> float:
        """Seconds for the next message."""
        if self._until is None:
            self._worked = self._busy()
            return self._between_s
        return max(0.0, min(self._stall_s, self._until - time.monotonic()))

    def late(self) -> None:
        """The time for the next message is over: return if it begins anew."""
        if self._until is not None:
            what, facts = "stalled in the middle of its stream", {"stall_s": f"{self._stall_s:g}"}
        # Where an answer went out within this time, the sender has had only a part of it.
        elif not (self._worked or self._busy()):
            what, facts = "kept its stream open and sent nothing", {"idle_s": f"{self._between_s:g}"}
        else:
            return
        raise DeadlineExceeded(f"the sender {what}", hint="the same command again", facts=facts)

    def each(self, ahead: ReadAhead[T]) -> Iterator[T]:
        """The messages of a stream that is read ahead."""
        return ahead.each(self.wait_s, self.late)
