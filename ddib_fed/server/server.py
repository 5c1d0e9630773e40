"""A gRPC server with mutual TLS, health states and bounded threads.

Streams are capped below the number of threads, so that unary calls and Health always find one free.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc

from ddib_fed.errors import ConfigError
from ddib_fed.rpc.addresses import split_address
from ddib_fed.server import inbound
from ddib_fed.server.fair_pool import FairPool
from ddib_fed.server.health import HealthServicer
from ddib_fed.trust import tls

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
            *inbound.options(inbound.file_limit()),
        )
        self.grpc = grpc.server(self._pool, interceptors=list(interceptors), options=(*OPTIONS, *bounds))
        self.health = HealthServicer()
        self._services: list[str] = [""]
        self.set_serving(serving=False)
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.grpc)
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
        for name in self._services:
            self.health.set(name, serving=serving)

    def start(self) -> None:
        """Start all threads, then begin to accept connections."""
        all_started = threading.Event()
        try:
            for _ in range(
                self._threads
            ):  # none is idle before the event, so that each gets a thread of its own
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
        self.health.close()
        self.grpc.stop(grace_s).wait()
        self._pool.shutdown(wait=False, cancel_futures=True)


def probe_own_port(port: int, host: str) -> None:
    tls.probe_tls12("127.0.0.1" if host in {"0.0.0.0", "::", ""} else host, port)  # noqa: S104 - compared, not bound
