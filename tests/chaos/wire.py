"""A TCP proxy between two ends of a connection, for faults of the wire."""

import contextlib
import socket
import threading
from typing import Literal, Self

Direction = Literal["to_client", "to_server"]


class Wire:
    """Relays to a port on loopback."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self.port = int(self._listener.getsockname()[1])
        self._threads[0].start()

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
