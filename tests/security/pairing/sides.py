"""The two sides of a pairing, in one process."""

from __future__ import annotations

import socket
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from ddib_fed.errors import DdibError
from ddib_fed.security.pairing import Paired, listen
from ddib_fed.security.peers import Peer

CODE, OTHER = "482-173-063", "111-222-335"


@dataclass
class Side:
    """A node that may refuse, and remembers whom it admitted."""

    peer: Peer
    refuses: DdibError | None = None
    fails: DdibError | None = None
    admitted: list[str] = field(default_factory=list)
    file: bytes = b""

    @property
    def own(self) -> bytes:
        return self.file or self.peer.to_bytes()

    def judge(self, other: Peer) -> None:
        if self.refuses is not None:
            raise self.refuses

    def admit(self, other: Peer) -> None:
        if self.fails is not None:
            raise self.fails
        self.admitted.append(other.institution)


class Waiting:
    """South's side, listening on a thread."""

    def __init__(self, south: Side, *, life_s: float = 20.0) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.strangers: list[str] = []
        self._pool = ThreadPoolExecutor(1)
        self.result: Future[Paired] = self._pool.submit(self._listen, south, life_s)

    def _listen(self, south: Side, life_s: float) -> Paired:
        with self._listener:
            return listen(
                self._listener,
                CODE,
                south,
                life_s=life_s,
                on_stranger=lambda _host, why: self.strangers.append(why),
            )

    def settle(self) -> None:
        """Wait until one connection has ended."""
        until = time.monotonic() + 10
        while not (self.strangers or self.result.done()):
            assert time.monotonic() < until
            threading.Event().wait(0.01)

    def close(self) -> None:
        self._pool.shutdown(wait=True)
