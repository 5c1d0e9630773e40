"""A gRPC server with mutual TLS, health states and bounded threads.

Streams are capped below the number of threads, so that unary calls and Health always find one free.
"""

from __future__ import annotations

import errno
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2

from ddib_fed.errors import ConfigError
from ddib_fed.node import connections
from ddib_fed.protocol.addresses import split_address
from ddib_fed.security import tls

# Threads beyond the streams' cap: for unary calls, Health, and calls that are refused at once. Of these at most
# `interceptors.MAX_WAITING` + `MAX_WAITING_OTHERS` wait for a caller's request.
RESERVED_THREADS = 40
MAX_MESSAGE_BYTES = 4 << 20
# Open calls of one connection beyond twice the streams' cap. gRPC's default is no limit; each call takes some memory.
MORE_OPEN_CALLS = 64
# Longer than the longest stream (a job's day), so that an idle connection is rebuilt but no stream is cut.
MAX_CONNECTION_AGE_S = 3600
CONNECTION_GRACE_S = 24 * 3600

OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_connection_age_ms", MAX_CONNECTION_AGE_S * 1000),
    ("grpc.max_connection_age_grace_ms", CONNECTION_GRACE_S * 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.so_reuseport", 0),
)

MOST_WAITING: Final = 1_024
"""Calls of one connection that wait for a thread; more come only from callers that take calls back as they make them,
because HTTP/2 limits how many are open at once (`MORE_OPEN_CALLS`)."""

P = ParamSpec("P")
T = TypeVar("T")


class NodeServer:
    """The node's one port."""

    def __init__(
        self,
        listen: str,
        credentials: grpc.ServerCredentials,
        interceptors: Sequence[grpc.ServerInterceptor[Any, Any]],
        *,
        max_streams: int,
        on_crowd: Callable[[str], object] = lambda _: None,
    ) -> None:
        self._threads = max_streams + RESERVED_THREADS
        self._pool = FairPool(self._threads, on_crowd)
        bounds = (
            ("grpc.max_concurrent_streams", 2 * max_streams + MORE_OPEN_CALLS),
            *connections.options(connections.file_limit()),
        )
        self.grpc = grpc.server(self._pool, interceptors=list(interceptors), options=(*OPTIONS, *bounds))
        self._health = health.HealthServicer()
        self._services: list[str] = [""]
        self.set_serving(serving=False)
        self.grpc.add_generic_rpc_handlers([health_handler(self._health)])
        host, port = split_address(listen, bound=True)
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            bound = self.grpc.add_secure_port(where, credentials)
        except RuntimeError as error:
            raise ConfigError(
                f"node.listen = {listen!r} cannot be bound",
                hint="another process has the port: stop it, or choose another port in node.toml",
            ) from error
        self.address = f"{'[' + host + ']' if ':' in host else host}:{bound}"
        self.port = bound

    def add_services(self, names: Sequence[str]) -> None:
        self._services.extend(names)
        self.set_serving(serving=False)

    def set_serving(self, *, serving: bool) -> None:
        self.serving = serving
        status = health_pb2.HealthCheckResponse
        for name in self._services:
            self._health.set(name, status.SERVING if serving else status.NOT_SERVING)

    def start(self) -> None:
        """Start all threads, then begin to accept connections."""
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
    """Check alone: a Watch would hold a thread, and leave the name that its caller asked for."""
    check = grpc.unary_unary_rpc_method_handler(
        servicer.Check,
        request_deserializer=health_pb2.HealthCheckRequest.FromString,
        response_serializer=health_pb2.HealthCheckResponse.SerializeToString,
    )
    return grpc.method_handlers_generic_handler(health.SERVICE_NAME, {"Check": check})


def probe_own_port(port: int, host: str) -> None:
    tls.probe_tls12("127.0.0.1" if host in {"0.0.0.0", "::", ""} else host, port)  # noqa: S104 - compared, not bound


class FairPool(ThreadPoolExecutor):
    """Threads for calls, taken in turn by the connections whose calls wait: none waits behind all calls of another.

    gRPC hands each call to a pool of threads in the order in which calls arrive, also those that their caller took
    back meanwhile. With one queue, a caller of 10,000 calls delays everybody's Health by the time that all take.
    """

    def __init__(self, threads: int, on_crowd: Callable[[str], object]) -> None:
        super().__init__(threads, thread_name_prefix="rpc")
        self._on_crowd = on_crowd
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[tuple[Future[Any], Callable[[], Any]]]] = {}

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run a function when its connection's turn comes; what is of no call has a turn of its own."""
        future: Future[T] = Future()
        caller = _connection(args)
        with self._lock:
            waiting = self._waiting.setdefault(caller, deque())
            waiting.append((future, lambda: fn(*args, **kwargs)))
            crowded = bool(caller) and len(waiting) > MOST_WAITING
        super().submit(self._run_next)
        if crowded:
            self._on_crowd(caller)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As of every executor."""
        with self._lock:
            waiting = [each for queue in self._waiting.values() for each in queue] if cancel_futures else []
        for future, _ in waiting:
            future.cancel()
        super().shutdown(wait, cancel_futures=cancel_futures)

    def _run_next(self) -> None:
        with self._lock:  # the first connection in the order of turns, which then is the last
            caller = next(iter(self._waiting))
            waiting = self._waiting.pop(caller)
            future, run = waiting.popleft()
            if waiting:
                self._waiting[caller] = waiting
        if not future.set_running_or_notify_cancel():
            return
        try:
            result = run()
        except BaseException as error:  # noqa: BLE001 - the future's business, as in every executor
            future.set_exception(error)
        else:
            future.set_result(result)


def _connection(args: tuple[Any, ...]) -> str:
    """GRPC's name of the connection of the call that a task is for; empty for a task of no call."""
    for argument in args[:3]:
        call = getattr(argument, "call", None)
        if call is not None and hasattr(call, "peer"):
            peer = call.peer()
            return peer.decode() if isinstance(peer, bytes) else str(peer)
    return ""


def check_bindable(listen: str, setting: str) -> None:
    """Bind an address and release it: gRPC and http.server only report that binding failed, not why."""
    host, port = split_address(listen, bound=True)
    what = f"{setting} = {listen!a}"
    elsewhere = (
        f"{setting} is an address of this machine (ip -brief address lists them), e.g. 0.0.0.0:{port}; "
        "node.address is what others dial"
    )
    remedies = {
        errno.EADDRINUSE: f"another process has the port (ss -ltnp 'sport = :{port}'): stop it, or choose another "
        f"{setting}",
        errno.EACCES: f"ports below 1024 need a privilege: choose a {setting} above, or "
        "AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit",
    }
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{what}: there is no host {host!a}", hint=elsewhere) from error
    problems = []
    for family, _, _, _, place in found:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(place)
                probe.listen(1)
        except OSError as error:
            problems.append(error)
    busy = [problem for problem in problems if problem.errno == errno.EADDRINUSE]
    if busy or len(problems) == len(found):
        worst = (busy or problems)[0]
        hint = remedies.get(worst.errno or 0, elsewhere)
        raise ConfigError(f"{what} cannot be bound: {worst.strerror}", hint=hint) from worst
