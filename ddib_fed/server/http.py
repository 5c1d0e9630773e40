"""Plain HTTP /healthz, /readyz and /metrics on loopback, for probes on the same machine.

It shows only counts and states; the configuration refuses any other address.
"""

from __future__ import annotations

import logging
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ddib_fed.errors import ConfigError
from ddib_fed.rpc.addresses import split_address
from ddib_fed.server.metrics import Metrics

log = logging.getLogger(__name__)

# The longest time that closing takes.
POLL_S = 0.05
# Each connection holds a thread and an open file: how long one lasts at most, and how many there are at once. Beyond
# that the oldest is ended, so that silent or slow connections cannot block a probe.
LONGEST_S = 5.0
MOST_CONNECTIONS = 16


class ProbeServer:
    """A small HTTP server on a thread of its own."""

    def __init__(self, listen: str, state: Callable[[], str], metrics: Metrics) -> None:
        try:
            self._server = _server_class(listen)(split_address(listen, bound=True), _handler(state, metrics))
        except OSError as error:
            raise ConfigError(
                f"http.listen = {listen!r} cannot be bound: {error.strerror}", hint="choose another port"
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(POLL_S,), name="http", daemon=True
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


def _server_class(listen: str) -> type[ThreadingHTTPServer]:
    class Server(_Bounded):
        address_family = socket.AF_INET6 if ":" in split_address(listen, bound=True)[0] else socket.AF_INET

    return Server


class _Bounded(ThreadingHTTPServer):
    """Bounds number and duration of connections, and keeps errors off stderr."""

    def __init__(self, *arguments: Any) -> None:
        self._open: dict[Any, float] = {}
        self._lock = threading.Lock()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start one, closing the oldest if there are too many."""
        with self._lock:
            self._open[request] = time.monotonic()
            excess = list(self._open)[:-MOST_CONNECTIONS]
        _end(excess)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """End one in order."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Between two connections: end those that have lasted too long."""
        limit = time.monotonic() - LONGEST_S
        with self._lock:
            old = [request for request, since in self._open.items() if since < limit]
        _end(old)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - socketserver's signature
        if not isinstance(sys.exception(), OSError):
            log.error("a probe could not be answered", exc_info=sys.exc_info())


def _end(requests: list[Any]) -> None:
    for request in requests:
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)


def _handler(state: Callable[[], str], metrics: Metrics) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = LONGEST_S

        def do_GET(self) -> None:
            if self.path == "/healthz":
                self._answer(200, b"ok\n")
            elif self.path == "/readyz":
                now = state()
                self._answer(200 if now == "serving" else 503, now.encode() + b"\n")
            elif self.path == "/metrics":
                self._answer(200, metrics.exposition())
            else:
                self._answer(404, b"/healthz, /readyz or /metrics\n")

        def _answer(self, code: int, body: bytes) -> None:
            self.send_response(code)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
            """Probes every few seconds are no news."""

    return Handler
