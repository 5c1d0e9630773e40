"""The node's one port: mutual TLS, health, bounded threads, and the one interceptor of its calls.

The interceptor authorises a call before its message is parsed, and again while its stream runs; it bounds the call,
parses its messages, and answers a failure with the fixed sentence of the error's class alone. Streams are capped below
the number of threads, so that unary calls and Health always find one free.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, TypeVar, cast

import grpc
from grpc_health.v1 import health, health_pb2

from ddib_fed.errors import (
    Cancelled,
    ConfigError,
    DdibError,
    DeadlineExceeded,
    DiskFull,
    InternalError,
    MessageInvalid,
    RefusedError,
    TooManyStreams,
)
from ddib_fed.files import RETRY_AFTER_S, is_disk_full
from ddib_fed.node.config import LimitsSection
from ddib_fed.node.connections import InboundGuard, Repeated, file_limit, most_connections, server_options
from ddib_fed.protocol.addresses import bracketed, split_address
from ddib_fed.protocol.calls import DETAIL_KEY, MAX_MESSAGE_BYTES, time_entry, to_detail
from ddib_fed.security.admission import (
    Admission,
    AuthContext,
    Authoriser,
    Refusals,
    Verifier,
    claimed_identity,
    parse_message,
    presented_certificate,
)
from ddib_fed.security.audit import AuditLog
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import PeerStore

log = logging.getLogger(__name__)

if TYPE_CHECKING:  # the stubs make generic what cannot be subscripted at run time
    Handler = grpc.RpcMethodHandler[Any, Any]
    Interceptor = grpc.ServerInterceptor[Any, Any]
else:
    Handler = grpc.RpcMethodHandler
    Interceptor = grpc.ServerInterceptor
P = ParamSpec("P")
T = TypeVar("T")

# Calls whose request has not arrived: each holds a thread of the reserve for unary calls, which is larger
# (`RESERVED_THREADS`). One person may have as many clients as a node works on jobs, and so many of the places.
MAX_WAITING_OF_ONE: Final = 16
MAX_WAITING: Final = 24
# The same for callers of health alone, all certificates of an institution together: it may issue any number. The part
# of a request that has arrived is in memory, up to 4 MiB of each.
MAX_WAITING_OTHERS_OF_ONE: Final = 4
MAX_WAITING_OTHERS: Final = 8
LOOK_EVERY_S: Final = 1.0
CHECK_EVERY_S: Final = 0.01
"""The caller of an object's messages is checked once in this time."""
# An open call takes memory until its caller has taken the answer; these are far more than callers need.
OPEN_OF_ONE: Final = 512
OPEN_OF_OTHERS: Final = 64
UNLIMITED: Final = 1 << 40
SHARE: Final = 2
"""A caller may hold at most this many times the number of free places."""
KEPT: Final = 16
"""Reserve 1/N of the slots for callers without an open call."""
SLOWEST_BYTES_PER_S: Final = 64 << 10
"""An announced object may take as long as its bytes at this rate, half of a client's own patience."""
READ_AHEAD: Final = 4
"""Messages that are read before they are asked for: reading does not wait for each one's digest."""

# Threads beyond the streams' cap: for unary calls, Health, and calls that are refused at once. Of these at most
# `MAX_WAITING` + `MAX_WAITING_OTHERS` wait for a caller's request.
RESERVED_THREADS: Final = 40
MOST_WAITING: Final = 1_024
"""More calls of one connection wait only for callers that take calls back, as HTTP/2 limits the open ones."""
# Open calls of one connection beyond twice the streams' cap. gRPC's default is no limit; each call takes some memory.
MORE_OPEN_CALLS: Final = 64
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    # An idle connection is rebuilt; the grace is longer than the longest stream (a job's day), so that none is cut.
    ("grpc.max_connection_age_ms", 3_600_000),
    ("grpc.max_connection_age_grace_ms", 24 * 3_600_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
)

_CALLER: ContextVar[Admission] = ContextVar("caller")


def caller() -> Identity:
    """Return the identity that the call of this thread was authorised for."""
    return _CALLER.get().identity


def within_share(taken: int, free: int, total: int) -> bool:
    return free > 0 and (taken == 0 or taken < SHARE * (free - total // KEPT))


class Slots:
    """Counts running work, in total and per identity, and refuses excess at once with TooManyStreams."""

    def __init__(self, per_identity: int, total: int) -> None:
        self._per_identity = per_identity
        self._total = total
        self._lock = threading.Lock()
        self._taken: Counter[str] = Counter()

    @property
    def active(self) -> int:
        with self._lock:
            return self._taken.total()

    def take(self, identity: str) -> None:
        with self._lock:
            taken, all_taken = self._taken[identity], self._taken.total()
            free = self._total - all_taken
            if taken >= self._per_identity or not within_share(taken, free, self._total):
                limit = taken if free else self._total
                detail = f"{identity} has {taken} of the {all_taken} calls that are open"
                raise TooManyStreams(detail, facts={"limit": limit}, retry_after_s=1.0)
            self._taken[identity] += 1

    def release(self, identity: str) -> None:
        with self._lock:
            self._taken[identity] -= 1
            self._taken += Counter()  # forgets identities that have none

    @contextmanager
    def taken(self, identity: str) -> Iterator[None]:
        self.take(identity)
        try:
            yield
        finally:
            self.release(identity)


class OpenCall:
    """One call, until its caller has taken all of the answer."""

    def __init__(
        self, context: grpc.ServicerContext, method: str, admission: Admission, idle_s: float
    ) -> None:
        self.context, self.method, self.admission = context, method, admission
        self.account, self.is_known = admission.account, admission.is_known
        self._idle_s = idle_s
        self._next_check = time.monotonic() + CHECK_EVERY_S
        self._wait: tuple[float, str] | None = None

    def check(self) -> None:
        """Raise unless the caller is still admitted; look at most every `CHECK_EVERY_S`."""
        if time.monotonic() >= self._next_check:
            self.admission.check()
            self._next_check = time.monotonic() + CHECK_EVERY_S

    def wait_for(self, seconds: float, what: str) -> None:
        """Give the caller so long to do its part; `what` describes its failure to."""
        self._wait = time.monotonic() + seconds, f"the caller {what} {seconds:g} s"

    def wait_for_reader(self) -> None:
        self.wait_for(self._idle_s, "took nothing of the answers for")

    def wait_no_more(self) -> None:
        self._wait = None

    def answers(self, messages: Iterable[T]) -> Iterator[T]:
        """Yield the messages, for as long as the caller is admitted and takes them."""
        iterator = iter(messages)
        try:
            for message in iterator:
                self.check()
                self.wait_for_reader()
                yield message
                self.wait_no_more()
        finally:
            self.wait_no_more()
            if (close := getattr(iterator, "close", None)) is not None:
                close()

    def end_if_late(self, now: float) -> str | None:
        """End the call if its caller has not done its part in time; return the caller's failure."""
        wait = self._wait
        if wait is None or now < wait[0]:
            return None
        self._wait = None
        call: Any = self.context._rpc_event.call  # type: ignore[attr-defined]  # noqa: SLF001
        call.cancel(grpc.StatusCode[DeadlineExceeded.status].value[0], wait[1])
        return wait[1]


class CallInterceptor(Interceptor):
    """Every failure becomes a status, a fixed sentence and an `ErrorDetail`; every caller is authorised and bounded."""

    def __init__(
        self,
        institution: str,
        peers: PeerStore,
        policy: Authoriser,
        *,
        audit: AuditLog | None = None,
        guard: InboundGuard | None = None,
        clock: Callable[[], float] = time.time,
        on_outcome: Callable[[str, str], object] = lambda *_: None,
        limits: LimitsSection | None = None,
        max_streams_of_one: int | None = None,
    ) -> None:
        self._institution, self._policy, self._clock = institution, policy, clock
        self._on_outcome, self._guard = on_outcome, guard
        self._limits = limits = limits or LimitsSection()
        self._verifier = Verifier(peers, lambda: datetime.fromtimestamp(self._clock(), UTC))
        self.refusals = Refusals(audit)
        self.streams = Slots(max_streams_of_one or limits.max_streams, limits.max_streams)
        # Of callers that are known, and of all others.
        self.waiting = {
            True: Slots(MAX_WAITING_OF_ONE, MAX_WAITING),
            False: Slots(MAX_WAITING_OTHERS_OF_ONE, MAX_WAITING_OTHERS),
        }
        self._open = {True: Slots(OPEN_OF_ONE, UNLIMITED), False: Slots(OPEN_OF_OTHERS, UNLIMITED)}
        self._lock = threading.Lock()
        self._open_calls: set[OpenCall] = set()
        self._looking = Repeated("open-calls", self._end_late_calls, lambda: LOOK_EVERY_S)
        self.start, self.stop = self._looking.start, self._looking.stop

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler: Any = continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        inner = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        streams = bool(handler.request_streaming or handler.response_streaming)
        parse = partial(parse_message, deserialiser=handler.request_deserializer)

        def request_of(call: OpenCall, raw: Iterator[bytes]) -> Any:
            if handler.request_streaming:
                return self._messages(call, raw, parse)
            return parse(self._message(call, raw))

        def one(raw: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            with self._mapping_errors(context, method), self._opened(context, method, streams) as call:
                return inner(request_of(call, raw), context)

        def many(raw: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._mapping_errors(context, method), self._opened(context, method, streams) as call:
                yield from call.answers(inner(request_of(call, raw), context))

        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(many, None, handler.response_serializer)
        return grpc.stream_unary_rpc_method_handler(one, None, handler.response_serializer)

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
        """Add these entries and the time to the trailing metadata of the servicer."""
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

    @contextmanager
    def _opened(self, context: grpc.ServicerContext, method: str, streams: bool) -> Iterator[OpenCall]:
        admission = self._admit(context, method)
        _CALLER.set(admission)
        call = OpenCall(context, method, admission, self._limits.idle_s)
        try:
            self._open[call.is_known].take(call.account)
            with self._lock:
                self._open_calls.add(call)
            try:
                with self.streams.taken(call.account) if streams else nullcontext():
                    yield call
            finally:
                call.wait_for_reader()
                if not context.add_callback(lambda: self._over(call)):
                    self._over(call)
        except RefusedError as error:  # by the servicer: a policy, a latent
            self.refusals.record(context, method, error, identity=admission.identity.uri)
            raise

    def _admit(self, context: grpc.ServicerContext, method: str) -> Admission:
        self._on_message(context)
        pem = b""
        try:
            pem = presented_certificate(cast("AuthContext", context.auth_context()))
            admission = Admission(pem, method, self._verifier, self._policy)
        except RefusedError as error:
            self.refusals.record(context, method, error, identity=claimed_identity(pem))
            raise
        if admission.is_known and self._guard is not None:
            self._guard.admitted(context.peer(), admission.account)
        return admission

    def _on_message(self, context: grpc.ServicerContext) -> None:
        if self._guard is not None:
            self._guard.called(context.peer())

    def _over(self, call: OpenCall) -> None:
        with self._lock:
            self._open_calls.discard(call)
        self._open[call.is_known].release(call.account)

    def _message(self, call: OpenCall, raw: Iterator[bytes]) -> bytes:
        """Return the request of a unary call; waiting calls are bounded in number and time, as it may never arrive."""
        with self.waiting[call.is_known].taken(call.account):
            call.wait_for(self._limits.request_s, "did not send its request within")
            try:
                message = next(raw, None)
            finally:
                call.wait_no_more()
        if message is None:
            raise MessageInvalid("the call ended without its message")
        return message

    def _messages(self, call: OpenCall, raw: Iterator[bytes], parse: Callable[[bytes], Any]) -> Iterator[Any]:
        for data in raw:
            call.check()
            self._on_message(call.context)
            yield parse(data)
        if not call.context.is_active():
            raise Cancelled("the caller went away in the middle of its stream")

    @property
    def open_calls(self) -> list[OpenCall]:
        with self._lock:
            return list(self._open_calls)

    def sweep(self) -> int:
        """Cancel calls of callers that are no longer admitted, idle streams included; return how many."""
        cancelled = 0
        for call in self.open_calls:
            try:
                call.admission.check()
            except RefusedError as error:
                uri = call.admission.identity.uri
                self.refusals.record(call.context, "a running call", error, identity=uri)
                call.context.cancel()  # type: ignore[no-untyped-call]  # untyped in the stubs
                cancelled += 1
        return cancelled

    def _end_late_calls(self) -> None:
        """End the calls whose caller does not do its part in time."""
        ended: Counter[tuple[str, str, str]] = Counter()
        for call in self.open_calls:
            if (fault := call.end_if_late(time.monotonic())) is not None:
                ended[call.account, call.method, fault] += 1
        for (account, method, fault), times in ended.items():
            log.info("%s: ended %d calls of %s: %s", account, times, method, fault)


def _is_grpcs_own(error: Exception, context: Any) -> bool:
    if error.args:  # gRPC's own have no text; a text must not be sent
        return False
    if type(error) is grpc.RpcError:
        return not context.is_active()
    return type(error) is Exception and context.code() is not None


class Pace:
    """How long the next message may take, inside and between objects; time in which the receiver is `busy` is free."""

    def __init__(self, stall_s: float, *, between_s: float, busy: Callable[[], bool] = lambda: False) -> None:
        self._stall_s, self._between_s, self._busy = stall_s, between_s, busy
        self._until: float | None = None
        self._worked = False

    def begin(self, size_bytes: int) -> None:
        self._until = time.monotonic() + self._stall_s + size_bytes / SLOWEST_BYTES_PER_S

    def end(self) -> None:
        self._until = None

    def wait_s(self) -> float:
        if self._until is None:
            self._worked = self._busy()
            return self._between_s
        return max(0.0, min(self._stall_s, self._until - time.monotonic()))

    def late(self) -> None:
        """Raise DeadlineExceeded, as the time for the next message is over, unless it begins anew."""
        if self._until is not None:
            what, facts = "stalled in the middle of its stream", {"stall_s": f"{self._stall_s:g}"}
        # Where an answer went out within this time, the sender has had only a part of it.
        elif not (self._worked or self._busy()):
            what, facts = "kept its stream open and sent nothing", {"idle_s": f"{self._between_s:g}"}
        else:
            return
        raise DeadlineExceeded(f"the sender {what}", hint="the same command again", facts=facts)


class NodeServer:
    def __init__(
        self,
        listen: str,
        credentials: grpc.ServerCredentials,
        interceptors: Sequence[Interceptor],
        *,
        max_streams: int,
        on_call: Callable[[str], object] = lambda _: None,
        on_crowd: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._threads = max_streams + RESERVED_THREADS
        self._pool = FairPool(self._threads, on_call, on_crowd)
        open_calls = ("grpc.max_concurrent_streams", 2 * max_streams + MORE_OPEN_CALLS)
        options = (*OPTIONS, open_calls, *server_options(most_connections(file_limit())))
        self.grpc = grpc.server(self._pool, interceptors=list(interceptors), options=options)
        self._health = health.HealthServicer()
        self._services: list[str] = [""]
        self.set_serving(serving=False)
        self.grpc.add_generic_rpc_handlers([health_handler(self._health)])
        host, port = split_address(listen, bound=True)
        try:
            self.port = self.grpc.add_secure_port(f"{bracketed(host)}:{port}", credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"node.listen = {listen!r} cannot be bound",
                hint="another process has the port: stop it, or choose another port in node.toml",
            ) from error
        self.address = f"{bracketed(host)}:{self.port}"

    def add_services(self, names: Sequence[str]) -> None:
        self._services.extend(names)
        self.set_serving(serving=False)

    def set_serving(self, *, serving: bool) -> None:
        self.serving = serving
        status = health_pb2.HealthCheckResponse
        for name in self._services:
            self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    def start(self) -> None:
        all_started = threading.Event()
        try:
            for _ in range(self._threads):  # none is idle before the event: each gets a thread of its own
                self._pool.submit(all_started.wait)
        except RuntimeError as error:
            self._pool.shutdown(wait=False, cancel_futures=True)
            raise ConfigError(
                f"{self._threads} threads for calls cannot be started: {error}",
                hint="raise the limit on processes (ulimit -u, TasksMax, pids), or lower limits.max_streams",
            ) from error
        finally:
            all_started.set()
        self.grpc.start()

    def stop(self, grace_s: float) -> None:
        """Refuse new calls (gRPC does it with CANCELLED), give running ones `grace_s`, then close."""
        self._health.enter_graceful_shutdown()
        self.grpc.stop(grace_s).wait()
        self._pool.shutdown(wait=False, cancel_futures=True)


def health_handler(servicer: health.HealthServicer) -> grpc.GenericRpcHandler[Any, Any]:
    """Serve Check alone: a Watch would hold a thread, and leave the name that its caller asked for."""
    check = grpc.unary_unary_rpc_method_handler(
        servicer.Check,
        request_deserializer=health_pb2.HealthCheckRequest.FromString,
        response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(health.SERVICE_NAME, {"Check": check})


class FairPool(ThreadPoolExecutor):
    """Threads for calls, taken in turn by the connections whose calls wait: none waits behind all calls of another.

    gRPC hands each call to a pool of threads in the order in which calls arrive, also those that their caller took
    back meanwhile. With one queue, a caller of 10,000 calls delays everybody's Health by the time that all take.
    """

    def __init__(
        self, threads: int, on_call: Callable[[str], object], on_crowd: Callable[[str], object]
    ) -> None:
        super().__init__(threads, thread_name_prefix="rpc")
        self._on_call, self._on_crowd = on_call, on_crowd
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[Callable[[], Any]]] = {}

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function when its connection's turn comes; functions of no call take turns of their own.

        The future is done when one more function has run, which may be another one: gRPC only counts them.
        """
        caller = _connection(args)
        if caller:
            self._on_call(caller)
        with self._lock:
            waiting = self._waiting.setdefault(caller, deque())
            waiting.append(partial(fn, *args, **kwargs))
            crowded = bool(caller) and len(waiting) > MOST_WAITING
        future = super().submit(self._run_next)
        if crowded:
            self._on_crowd(caller)
        return future

    def _run_next(self) -> Any:
        with self._lock:  # the first connection in the order of turns, which then is the last
            caller = next(iter(self._waiting))
            waiting = self._waiting.pop(caller)
            run = waiting.popleft()
            if waiting:
                self._waiting[caller] = waiting
        return run()


def _connection(args: tuple[Any, ...]) -> str:
    """Return gRPC's name of the connection of the call that a task is for; empty for a task of no call."""
    for argument in args[:3]:
        call = getattr(argument, "call", None)
        if call is not None and hasattr(call, "peer"):
            peer = call.peer()
            return peer.decode() if isinstance(peer, bytes) else str(peer)
    return ""
