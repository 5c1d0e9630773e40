"""Authentication, authorization, limits and error mapping of calls.

The order is `ErrorInterceptor`, `AuthInterceptor`, `StreamLimiter`, then the servicer. A call is authorised
before its message is parsed, and only the fixed sentence of an exception's class is sent.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast

import grpc

from ddib_fed.errors import Cancelled, DdibError, DiskFull, InternalError, MessageInvalid, RefusedError
from ddib_fed.files import RETRY_AFTER_S, is_disk_full
from ddib_fed.rpc.clocks import time_entry
from ddib_fed.rpc.error_details import DETAIL_KEY, to_detail
from ddib_fed.server.open_calls import IDLE_S, REQUEST_S, OpenCall, OpenCalls
from ddib_fed.server.slots import Slots
from ddib_fed.trust.audit.refusals import Audit, Refusals
from ddib_fed.trust.identity import Identity
from ddib_fed.trust.peers.admission import (
    Admission,
    AuthContext,
    Authoriser,
    Verifier,
    claimed_identity,
    parse_message,
    presented_certificate,
)
from ddib_fed.trust.peers.store import PeerStore
from ddib_fed.wire.streams.frames import reading, writing

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
MAX_HEALTH_BYTES: Final = 1 << 10
# Calls whose request has not arrived: each holds a thread of the reserve for unary calls, which is larger
# (`server.RESERVED_THREADS`). One person may have as many clients as a node works on jobs, and so many of the places.
MAX_WAITING_OF_ONE: Final = 16
MAX_WAITING: Final = 24
# The same for those who may ask for health and nothing else, all certificates of an institution together: it issues as
# many as it likes. What of a request has arrived is in memory, up to 4 MiB of each.
MAX_WAITING_OTHERS_OF_ONE: Final = 4
MAX_WAITING_OTHERS: Final = 8
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
        serialiser = writing(serialiser)
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
            outcome = "OK" if context.is_active() else outcome
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


class AuthInterceptor(Interceptor):
    """Authorises each call before its message is read, and again for each message of a stream."""

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
    ) -> None:
        self._on_called = on_called
        self._on_admitted = on_admitted
        self._verifier = Verifier(peers, clock)
        self._policy = policy
        self.refusals = Refusals(audit)
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
        inner, strict = _behaviour(handler), not method.startswith(HEALTH_PREFIX)
        deserialiser = reading(handler.request_deserializer)

        def parse(data: bytes) -> Any:
            if not strict and len(data) > MAX_HEALTH_BYTES:
                raise MessageInvalid("a request for health is larger than any name of a service")
            return parse_message(data, deserialiser, strict=strict)

        def request_of(call: OpenCall, raw: Iterator[bytes]) -> Any:
            if handler.request_streaming:
                return _whole_stream(map(parse, self._heard(call, raw)), call.context)
            return parse(self._only_message(call, raw))

        def one(raw: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            with self._opened(context, method) as call:
                return inner(request_of(call, raw), context)

        def many(raw: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._opened(context, method) as call:
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
    def _opened(self, context: grpc.ServicerContext, method: str) -> Iterator[OpenCall]:
        """Context while a call of an admitted caller runs."""
        admission = self._admit(context, method)
        _CALLER.set(admission)
        try:
            with self.calls.opened(admission, context, method) as call:
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


class StreamLimiter(Interceptor):
    """Caps streams below the thread pool's size, so that unary calls and Health always find a thread."""

    def __init__(self, total: int, per_identity: int) -> None:
        self._slots = Slots(per_identity, total)

    @property
    def active(self) -> int:
        return self._slots.active

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """See grpc.ServerInterceptor."""
        handler = continuation(handler_call_details)
        if handler is None or not (handler.request_streaming or handler.response_streaming):
            return handler
        inner = _behaviour(handler)

        def one(request: Any, context: grpc.ServicerContext) -> Any:
            with self._slots.taken(_CALLER.get().account):
                return inner(request, context)

        def many(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            with self._slots.taken(_CALLER.get().account):
                yield from inner(request, context)

        return _rebuild(handler, many if handler.response_streaming else one)
