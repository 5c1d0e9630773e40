"""Answers /healthz, /readyz and /metrics in plain HTTP on loopback, for the machine's own probes.

It shows counts and states only; the configuration refuses any other address.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ddib_fed.errors import ConfigError
from ddib_fed.node.addresses import split_address
from ddib_fed.node.metrics import Metrics

# How long closing takes at most.
POLL_S = 0.05
# A connection that says nothing for so long is closed: each holds a thread.
IDLE_S = 10.0


class ProbeServer:
    """A small HTTP server on a thread of its own.

    Args:
        listen: host:port on loopback; port 0 takes a free one.
        state: Gives the node's state, "serving" when it is ready.
        metrics: What /metrics shows.

    Raises:
        ConfigError: The address cannot be bound.
    """

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
        """host:port as bound."""
        host, port = self._server.server_address[:2]
        return f"{host!s}:{port}"

    def close(self) -> None:
        """Stop answering."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _server_class(listen: str) -> type[ThreadingHTTPServer]:
    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in split_address(listen, bound=True)[0] else socket.AF_INET

    return Server


def _handler(state: Callable[[], str], metrics: Metrics) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = IDLE_S

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
