"""The node's metrics, and plain HTTP /healthz, /readyz and /metrics on loopback for probes of the same machine.

It shows only counts and states; the configuration refuses any other address. Labels never hold content.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http.server import ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, MetricsHandler

from ddib_fed.errors import ConfigError
from ddib_fed.protocol.addresses import split_address

log = logging.getLogger(__name__)

# Each connection holds a thread and an open file: how long one lasts at most, and how many there are at once. Beyond
# that the oldest is ended, so that silent or slow connections cannot block a probe. prometheus_client's own server
# bounds neither.
LONGEST_S: Final = 5.0
MOST_CONNECTIONS: Final = 16


class Metrics:
    """One registry per node, so that two nodes in one process do not share counters."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "ddib_requests", "Calls by method and status.", ["method", "status"], registry=registry
        )
        self.items = Counter(
            "ddib_items", "Items by stage and outcome.", ["stage", "outcome"], registry=registry
        )
        self.samples = Counter("ddib_samples", "Samples by stage.", ["stage"], registry=registry)
        self.latent_bytes = Counter(
            "ddib_latent_bytes", "Bytes of latents by direction.", ["direction"], registry=registry
        )
        self.seconds = Histogram(
            "ddib_stage_seconds",
            "Seconds an item spends in a stage.",
            ["stage"],
            registry=registry,
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
        )
        self.streams = Gauge("ddib_active_streams", "Streams that are open now.", registry=registry)
        expires = "Unix time at which the {} ends; 0 while it cannot be read."
        self.certificate_expires = Gauge(
            "ddib_certificate_expires_timestamp_seconds",
            expires.format("node's certificate"),
            registry=registry,
        )
        self.root_expires = Gauge(
            "ddib_root_expires_timestamp_seconds",
            expires.format("root of the node's certificate"),
            registry=registry,
        )
        self.ready = Gauge("ddib_ready", "1 when the model is loaded and warm.", registry=registry)


class ProbeServer:
    """A small HTTP server on a thread of its own."""

    def __init__(self, listen: str, state: Callable[[], str], metrics: Metrics) -> None:
        address = split_address(listen, bound=True)
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            self._server = type("Server", (_Bounded,), {"address_family": family})(
                address, _handler(state, metrics)
            )
        except OSError as error:
            raise ConfigError(
                f"http.listen = {listen!r} cannot be bound: {error.strerror}", hint="choose another port"
            ) from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="http", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Bounded(ThreadingHTTPServer):
    """Bounds number and duration of connections, on the thread that accepts them, and keeps errors off stderr."""

    daemon_threads = True

    def __init__(self, *arguments: Any) -> None:
        self._open: deque[tuple[float, Any]] = deque()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.append((time.monotonic(), request))
        super().process_request(request, client_address)
        self.service_actions()

    def service_actions(self) -> None:
        """End the oldest connections, if they are too many or too old; one that has ended already is closed."""
        limit = time.monotonic() - LONGEST_S
        while self._open and (len(self._open) > MOST_CONNECTIONS or self._open[0][0] < limit):
            with suppress(OSError):
                self._open.popleft()[1].shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        if not isinstance(sys.exception(), OSError):
            log.error("a probe could not be answered", exc_info=sys.exc_info())


def _handler(state: Callable[[], str], metrics: Metrics) -> type[MetricsHandler]:
    class Handler(MetricsHandler):
        registry = metrics.registry
        timeout = LONGEST_S

        def do_GET(self) -> None:  # noqa: N802 - http.server's name
            if self.path == "/metrics":
                super().do_GET()
            elif self.path == "/healthz":
                self._answer(200, "ok")
            elif self.path == "/readyz":
                now = state()
                self._answer(200 if now == "serving" else 503, now)
            else:
                self._answer(404, "/healthz, /readyz or /metrics")

        def _answer(self, code: int, line: str) -> None:
            body = f"{line}\n".encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
