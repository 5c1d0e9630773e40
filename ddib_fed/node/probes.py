"""The node's metrics, and plain HTTP /healthz, /readyz and /metrics on loopback for probes of the same machine.

It shows only counts and states; the configuration refuses any other address. Labels never hold content.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http.server import ThreadingHTTPServer
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, MetricsHandler

from ddib_fed.errors import ConfigError
from ddib_fed.protocol.addresses import split_address

log = logging.getLogger(__name__)

# Each connection holds a thread and an open file: beyond so many the oldest is ended, so that silent or slow ones
# cannot block a probe. prometheus_client's own server bounds neither number nor time.
LONGEST_S: Final = 5.0
MOST_CONNECTIONS: Final = 16
_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class Metrics:
    """One registry per node, so that two nodes in one process do not share counters."""

    def __init__(self) -> None:
        self.registry = of = CollectorRegistry()
        method, item, stage = ["method", "status"], ["stage", "outcome"], ["stage"]
        self.requests = Counter("ddib_requests", "Calls by method and status.", method, registry=of)
        self.items = Counter("ddib_items", "Items by stage and outcome.", item, registry=of)
        self.samples = Counter("ddib_samples", "Samples by stage.", stage, registry=of)
        self.latent_bytes = Counter(
            "ddib_latent_bytes", "Bytes of latents by direction.", ["direction"], registry=of
        )
        self.seconds = Histogram(
            "ddib_stage_seconds", "Seconds an item spends in a stage.", stage, registry=of, buckets=_BUCKETS
        )
        self.streams = Gauge("ddib_active_streams", "Streams that are open now.", registry=of)
        self.ready = Gauge("ddib_ready", "1 when the model is loaded and warm.", registry=of)
        expires = "Unix time at which the {} ends; 0 while it cannot be read."
        self.certificate_expires = Gauge(
            "ddib_certificate_expires_timestamp_seconds", expires.format("node's certificate"), registry=of
        )
        self.root_expires = Gauge(
            "ddib_root_expires_timestamp_seconds",
            expires.format("root of the node's certificate"),
            registry=of,
        )


class ProbeServer(ThreadingHTTPServer):
    """A small HTTP server on a thread of its own."""

    daemon_threads = True

    def __init__(self, listen: str, state: Callable[[], str], metrics: Metrics) -> None:
        address = split_address(listen, bound=True)
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._open: deque[Any] = deque()
        try:
            super().__init__(address, _handler(state, metrics))
        except OSError as error:
            raise ConfigError(
                f"http.listen = {listen!r} cannot be bound: {error.strerror}", hint="choose another port"
            ) from error
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="http", daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        host, port = self.server_address[:2]
        return f"{host!s}:{port}"

    def close(self) -> None:
        """Stop answering."""
        self.shutdown()
        self.server_close()
        self._thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.append(request)
        if len(self._open) > MOST_CONNECTIONS:
            with suppress(OSError):  # it may have ended
                self._open.popleft().shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        if not isinstance(sys.exception(), OSError):
            log.error("a probe could not be answered", exc_info=sys.exc_info())


def _handler(state: Callable[[], str], metrics: Metrics) -> type[MetricsHandler]:
    class Handler(MetricsHandler):
        registry = metrics.registry
        timeout = LONGEST_S

        def do_GET(self) -> None:  # noqa: N802 - http.server's name
            now = state() if self.path == "/readyz" else ""
            answers = {
                "/healthz": (200, "ok"),
                "/readyz": (200 if now == "serving" else 503, now),
            }
            if self.path == "/metrics":
                super().do_GET()
                return
            code, line = answers.get(self.path, (404, "/healthz, /readyz or /metrics"))
            body = f"{line}\n".encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
