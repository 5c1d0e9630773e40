"""A TCP proxy between two ends of a TLS connection that turns single bits over, as a bad cable or router does."""

import contextlib
import socket
import threading
from typing import Literal, Self

Direction = Literal["to_client", "to_server"]


class BitFlipper:
    """Relays to a port on loopback; `arm` it, and one bit of what passes next is another."""

    def __init__(self, upstream: int, *, delay_s: float = 0.0) -> None:
        self._upstream = upstream
        self._delay_s = delay_s
        self._armed: set[Direction] = set()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.port = int(self._listener.getsockname()[1])
        self.flipped = 0
        self._threads[0].start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def arm(self, direction: Direction) -> None:
        self._armed.add(direction)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._upstream))
            self._open += [near, far]
            for source, sink, direction in ((near, far, "to_server"), (far, near, "to_client")):
                self._threads.append(
                    threading.Thread(target=self._pump, args=(source, sink, direction), daemon=True)
                )
                self._threads[-1].start()

    def _pump(self, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        try:
            while data := bytearray(source.recv(65_536)):
                self._pass(data, sink, direction)
        except OSError:
            return
        finally:
            for end in (source, sink):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def _pass(self, data: bytearray, sink: socket.socket, direction: Direction) -> None:
        """One piece of data on its way; OSError ends the connection."""
        threading.Event().wait(self._delay_s)
        if direction in self._armed:
            self._armed.discard(direction)
            data[-1] ^= 1  # the end of a record: its authentication tag
            self.flipped += 1
        sink.sendall(data)

    def close(self) -> None:
        for end in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        for thread in self._threads:
            thread.join(timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
