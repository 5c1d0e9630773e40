"""The clients of one run of the page, which end together when the server stops."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from ddib_fed.client.client import Client
from ddib_fed.client.connection import PATIENCE_S, OnWait
from ddib_fed.client.profile import Profile


class Clients:
    """Opens clients in any thread."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._running: set[Client] = set()
        self._closed = False
        self._lock = threading.Lock()

    @contextmanager
    def opened(self, on_wait: OnWait | None = None, *, patience_s: float = PATIENCE_S) -> Iterator[Client]:
        """A client, whose calls raise Cancelled once `close` was called."""
        with Client(self.profile, on_wait=on_wait, patience_s=patience_s) as client:
            with self._lock:
                self._running.add(client)
                closed = self._closed
            if closed:
                client.abort()
            try:
                yield client
            finally:
                with self._lock:
                    self._running.discard(client)

    def close(self) -> None:
        """End the calls of all."""
        with self._lock:
            self._closed = True
            running = tuple(self._running)
        for client in running:
            client.abort()
