"""Authentication, authorization, limits and error mapping of calls.

The order is `ErrorInterceptor`, `AuthInterceptor`, then the servicer. A call is authorised
before its message is parsed, and only the fixed sentence of an exception's class is sent.
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
from ddib_fed.protocol.streams import frame_deserialiser, frame_serialiser
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
Behaviour = Callable[[Any, grpc.ServicerContext], Any]
Continuation = Callable[[grpc.HandlerCallDetails], Handler | None]

HEALTH_PREFIX: Final = "/grpc.health.v1.Health/"
MAX_STREAMS: Final = 64
MAX_HEALTH_BYTES: Final = 1 << 10
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
# A call is open until its caller has taken the answer, and takes some memory: far more than callers need that do.
OPEN_OF_ONE: Final = 512
OPEN_OF_OTHERS: Final = 64
SHARE: Final = 2
"""Somebody may have so many times as many places as are free."""
KEPT: Final = 16
"""One of so many places is for those who have none."""
_BUILDERS: Final[dict[tuple[bool, bool], Callable[..., Any]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}
T = TypeVar("T")
_CALLER: ContextVar[Admission] = ContextVar("caller")


def caller() -> Identity:
    return _CALLER.get().identity


def _behaviour(handler: Any) -> Behaviour:
    found: Behaviour = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    return found


def _rebuild(handler: Any, behaviour: Behaviour, *, raw_requests: bool = False) -> Handler:
    """The handler around another method; with `raw_requests` it takes a stream of unparsed messages."""
    build = _BUILDERS[raw_requests or handler.request_streaming, handler.response_streaming]
    deserialiser = None if raw_requests else handler.request_deserializer
    serialiser = handler.response_serializer
    if handler.response_streaming:
        serialiser = frame_serialiser(serialiser)
    built: Handler = build(behaviour, request_deserializer=deserialiser, response_serializer=serialiser)
    return built


class ErrorInterceptor(Interceptor):
    """Outermost: maps every failure to a status, a fixed sentence and an `ErrorDetail`."""

    def __init__(
        self,
        institution: str,
        on_outcome: Callable[[str, str], None] | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._institution = institution
        self._on_outcome = on_outcome
        self._clock = clock

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """See grpc.ServerInterceptor."""
        handler, method = continuation(handler_call_details), handler_call_details.method
        if handler is None:
            return None
        inner = _behaviour(handler)

        def one(request: Any, context: grpc.ServicerContext) -> Any:
            with self._guard(context, method):
                return inner(request, context)

        def many(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._guard(context, method):
                yield from inner(request, context)

        return _rebuild(handler, many if handler.response_streaming else one)

    @contextmanager
    def _guard(self, context: grpc.ServicerContext, method: str) -> Iterator[None]:
        outcome = "CANCELLED"
        try:
            yield
            if context.is_active():
                outcome = getattr(_code(context), "name", "OK")
            context.set_trailing_metadata((*(context.trailing_metadata() or ()), time_entry(self._clock())))
        except Exception as error:
            if _is_grpcs_own(error, context):
                outcome = getattr(_code(context), "name", outcome)
                raise
            failure = error if isinstance(error, DdibError) else _foreseen(error)
            outcome = failure.status
            self._abort(context, method, failure, error)
        finally:
            if self._on_outcome is not None:
                self._on_outcome(method, outcome)

    def _abort(
        self, context: grpc.ServicerContext, method: str, failure: DdibError, error: Exception
    ) -> NoReturn:
        incident = failure.incident or secrets.token_hex(6)
        institution = failure.hop.rpartition(" ")[2] or self._institution
        sentence = failure.said_by(institution)
        if failure.status == InternalError.status:
            sentence = f"{InternalError.sentence}, incident {incident}"
            log.error("%s failed, incident %s", method, incident, exc_info=error)
        else:
            log.info("%s: %s: %s (incident %s)", method, failure.reason, failure.detail, incident)
        detail = to_detail(failure, institution, incident)
        trailing = (
            *(context.trailing_metadata() or ()),
            (DETAIL_KEY, detail.SerializeToString()),
            time_entry(self._clock()),
        )
        context.set_trailing_metadata(trailing)
        context.abort(grpc.StatusCode[failure.status], sentence)


def _foreseen(error: Exception) -> DdibError:
    if is_disk_full(error):
        return DiskFull(f"{error}", retry_after_s=RETRY_AFTER_S)
    return InternalError()


def _code(context: Any) -> grpc.StatusCode | None:
    code: grpc.StatusCode | None = context.code()
    return code


def _is_grpcs_own(error: Exception, context: grpc.ServicerContext) -> bool:
    if error.args:  # gRPC's own have no text; a text must not be sent
        return False
    if type(error) is grpc.RpcError:
        return not context.is_active()
    return type(error) is Exception and _code(context) is not None


def _whole_stream(messages: Iterator[T], context: grpc.ServicerContext) -> Iterator[T]:
    yield from messages
    if not context.is_active():
        raise Cancelled("the caller went away in the middle of its stream")


def within_share(taken: int, free: int, total: int) -> bool:
    return free > 0 and (taken == 0 or taken < SHARE * (free - total // KEPT))


class Slots:
    """Counts running work, in total and per identity, and refuses excess."""

    def __init__(self, per_identity: int, total: int | None = None) -> None:
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
            if self._taken[identity] >= self._per_identity:
                self._refuse(f"{identity} has {self._per_identity} calls open", self._per_identity)
            if self._total is not None:
                free = self._total - self._taken.total()
                if free <= 0:
                    self._refuse(f"{self._total} streams are open", self._total)
                if not within_share(self._taken[identity], free, self._total):
                    self._refuse(f"{identity} has its share of {self._total} streams", self._taken[identity])
            self._taken[identity] += 1
        try:
            yield
        finally:
            with self._lock:
                self._taken[identity] -= 1
                if self._taken[identity] <= 0:
                    del self._taken[identity]

    @staticmethod
    def _refuse(detail: str, limit: int) -> NoReturn:
        raise TooManyStreams(detail, facts={"limit": limit}, retry_after_s=1.0)


class OpenCall:
    """One call, while it runs."""

    def __init__(
        self,
        admission: Admission,
        context: grpc.ServicerContext,
        method: str,
        *,
        request_s: float,
        idle_s: float,
    ) -> None:
        self.admission = admission
        self.account = admission.account
        self.context = context
        self.method = method
        self._request_s = request_s
        self._idle_s = idle_s
        self._wait: tuple[float, str] | None = None
        """Until when the caller has to do its part, and what it has not done then."""

    @contextmanager
    def waiting_for_request(self) -> Iterator[None]:
        """Context while the request has not arrived."""
        fault = f"the caller did not send its request within {self._request_s:g} s"
        self._wait = time.monotonic() + self._request_s, fault
        try:
            yield
        finally:
            self._wait = None

    def checked(self, messages: Iterable[T], *, sent: bool = False) -> Iterator[T]:
        """The messages, for as long as the caller is admitted."""
        iterator = iter(messages)
        try:
            for message in iterator:
                self.admission.check()
                if sent:
                    self.answered()
                yield message
                if sent:
                    self._wait = None
        finally:
            if sent:
                self._wait = None
            close = getattr(iterator, "close", None)
            if close is not None:
                close()

    def answered(self) -> None:
        fault = f"the caller took nothing of the answers for {self._idle_s:g} s"
        self._wait = time.monotonic() + self._idle_s, fault

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


class OpenCalls:
    """All calls that run; safe to use from any thread."""

    def __init__(
        self,
        refusals: Refusals,
        *,
        request_s: float = REQUEST_S,
        idle_s: float = IDLE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._refusals = refusals
        self._request_s = request_s
        self._idle_s = idle_s
        self._clock = clock
        self._lock = threading.Lock()
        self._open: set[OpenCall] = set()
        self._of: Counter[str] = Counter()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="open-calls", daemon=True)

    @contextmanager
    def opened(self, admission: Admission, context: grpc.ServicerContext, method: str) -> Iterator[OpenCall]:
        """Context while a call of an admitted caller runs; it is open until its caller has taken all of the answer."""
        call = OpenCall(admission, context, method, request_s=self._request_s, idle_s=self._idle_s)
        most = OPEN_OF_ONE if admission.is_known else OPEN_OF_OTHERS
        with self._lock:
            if self._of[call.account] >= most:
                raise TooManyStreams(
                    f"{call.account} has {most} calls open", facts={"limit": most}, retry_after_s=1.0
                )
            self._of[call.account] += 1
            self._open.add(call)
        try:
            yield call
        finally:
            call.answered()
            if not context.add_callback(lambda: self._over(call)):
                self._over(call)

    def __len__(self) -> int:
        with self._lock:
            return len(self._open)

    def _over(self, call: OpenCall) -> None:
        with self._lock:
            self._open.discard(call)
            self._of[call.account] -= 1
            if not self._of[call.account]:
                del self._of[call.account]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for it when it was started."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def sweep(self) -> int:
        """Cancel calls of callers that are no longer admitted, idle streams included; returns how many."""
        cancelled = 0
        for call in self._all():
            try:
                call.admission.check()
            except RefusedError as error:
                self._refusals.record(
                    call.context, "a running call", error, identity=call.admission.identity.uri
                )
                call.context.cancel()  # type: ignore[no-untyped-call]  # untyped in the stubs
                cancelled += 1
        return cancelled

    def look(self) -> int:
        """End the calls whose caller does not do its part in time; returns how many."""
        ended: Counter[tuple[str, str, str]] = Counter()
        now = self._clock()
        for call in self._all():
            fault = call.fault(now)
            if fault is not None:
                call.end(fault)
                ended[call.account, call.method, fault] += 1
        for (account, method, fault), times in ended.items():
            log.info("%s: ended %d calls of %s: %s", account, times, method, fault)
        return ended.total()

    def _all(self) -> list[OpenCall]:
        with self._lock:
            return list(self._open)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self.look()
            except Exception:  # the thread must outlive any failure
                log.exception("calls that wait for their callers could not be looked at")


class AuthInterceptor(Interceptor):
    """Authorises each call before its message is read, and again for each message of a stream.

    Streams are capped below the thread pool's size, so that unary calls and Health always find a thread.
    """

    def __init__(
        self,
        peers: PeerStore,
        policy: Authoriser,
        *,
        audit: Audit | None = None,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_called: Callable[[str], object] = lambda _: None,
        on_admitted: Callable[[str, str], object] = lambda *_: None,
        request_s: float = REQUEST_S,
        idle_s: float = IDLE_S,
        max_streams: int = MAX_STREAMS,
        max_streams_of_one: int | None = None,
    ) -> None:
        self._on_called = on_called
        self._on_admitted = on_admitted
        self._verifier = Verifier(peers, clock)
        self._policy = policy
        self.refusals = Refusals(audit)
        self.streams = Slots(max_streams_of_one or max_streams, max_streams)
        self._waiting = Slots(MAX_WAITING_OF_ONE, MAX_WAITING)
        self._waiting_others = Slots(MAX_WAITING_OTHERS_OF_ONE, MAX_WAITING_OTHERS)
        self.calls = OpenCalls(self.refusals, request_s=request_s, idle_s=idle_s)

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """See grpc.ServerInterceptor."""
        handler, method = continuation(handler_call_details), handler_call_details.method
        if handler is None:
            return None
        inner, health = _behaviour(handler), method.startswith(HEALTH_PREFIX)
        deserialiser = frame_deserialiser(handler.request_deserializer)

        def parse(data: bytes) -> Any:
            if health and len(data) > MAX_HEALTH_BYTES:
                raise MessageInvalid("a request for health is larger than any name of a service")
            return parse_message(data, deserialiser)

        def request_of(call: OpenCall, raw: Iterator[bytes]) -> Any:
            if handler.request_streaming:
                return _whole_stream(map(parse, self._heard(call, raw)), call.context)
            return parse(self._only_message(call, raw))

        streams = bool(handler.request_streaming or handler.response_streaming)

        def one(raw: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            with self._opened(context, method, streams=streams) as call:
                return inner(request_of(call, raw), context)

        def many(raw: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._opened(context, method, streams=streams) as call:
                yield from call.checked(inner(request_of(call, raw), context), sent=True)

        return _rebuild(handler, many if handler.response_streaming else one, raw_requests=True)

    def _heard(self, call: OpenCall, raw: Iterator[bytes]) -> Iterator[bytes]:
        for message in call.checked(raw):
            self._on_called(call.context.peer())
            yield message

    def _admit(self, context: grpc.ServicerContext, method: str) -> Admission:
        self._on_called(context.peer())
        pem = b""
        try:
            pem = presented_certificate(cast("AuthContext", context.auth_context()))
            admission = Admission(pem, method, self._verifier, self._policy)
        except RefusedError as error:
            self.refusals.record(context, method, error, identity=claimed_identity(pem))
            raise
        if admission.is_known:
            self._on_admitted(context.peer(), admission.account)
        return admission

    @contextmanager
    def _opened(self, context: grpc.ServicerContext, method: str, *, streams: bool) -> Iterator[OpenCall]:
        """Context while a call of an admitted caller runs."""
        admission = self._admit(context, method)
        _CALLER.set(admission)
        try:
            place = self.streams.taken(admission.account) if streams else nullcontext()
            with self.calls.opened(admission, context, method) as call, place:
                yield call
        except RefusedError as error:  # by the servicer: a policy, a latent
            self.refusals.record(context, method, error, identity=admission.identity.uri)
            raise

    def _only_message(self, call: OpenCall, raw: Iterator[bytes]) -> bytes:
        """The request of a unary call; it may never arrive, so the number of waiting calls and their time are
        bounded.
        """
        waiting = self._waiting if call.admission.is_known else self._waiting_others
        with waiting.taken(call.admission.account), call.waiting_for_request():
            message = next(raw, None)
        if message is None:
            raise MessageInvalid("the call ended without its message")
        return message


SLOWEST_BYTES_PER_S: Final = 64 << 10
"""Something announced may take as long as its bytes at this rate: half of what a client itself waits for."""
READ_AHEAD: Final = 4
"""Messages that are read before they are asked for: reading does not wait for each one's digest. As many may have been
handed over already: 8 MiB of chunks at most."""

M = TypeVar("M")


class Pace:
    """How long the next message may take."""

    def __init__(self, stall_s: float, *, between_s: float, busy: Callable[[], bool] = lambda: False) -> None:
        self._stall_s = stall_s
        self._between_s = between_s
        self._busy = busy
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
            raise DeadlineExceeded(
                "the sender stalled in the middle of its stream",
                hint="the same command again",
                facts={"stall_s": f"{self._stall_s:g}"},
            )
        # Where an answer went out within this time, the sender has had only a part of it.
        if not (self._worked or self._busy()):
            raise DeadlineExceeded(
                "the sender kept its stream open and sent nothing",
                hint="the same command again",
                facts={"idle_s": f"{self._between_s:g}"},
            )

    def each(self, ahead: ReadAhead[M]) -> Iterator[M]:
        """The messages of a stream that is read ahead."""
        return ahead.each(self.wait_s, self.late)
