"""A small HTTP CONNECT proxy on loopback that keeps what passes, as a proxy or a relay of an institution sees it."""

import base64
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class ConnectProxy:
    """Opens tunnels to anywhere on loopback, or answers with a status."""

    def __init__(self, *, answer: str | None = None, login: str = "") -> None:
        self.asked: list[str] = []
        self.carried = bytearray()
        self._answer, self._login = answer, login
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def close(self) -> None:
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._open.append(near)
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near: socket.socket) -> None:
        with suppress(OSError):
            request = b""
            while not request.endswith(b"\r\n\r\n"):
                request += (byte := near.recv(1))
                if not byte:
                    return
            first, *headers = request.decode().split("\r\n")
            address = first.split()[1]
            self.asked.append(address)
            status = self._answer or self._checked(headers)
            far = None
            if status is None:
                host, port = address.rsplit(":", 1)
                try:
                    far = socket.create_connection((host.strip("[]"), int(port)), timeout=5)
                except OSError:
                    status = "502 Bad Gateway"
            near.sendall(f"HTTP/1.1 {status or '200 Connection established'}\r\nVia: test\r\n\r\n".encode())
            if far is None:
                near.close()
                return
            self._open.append(far)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _checked(self, headers: list[str]) -> str | None:
        wanted = "proxy-authorization: basic " + base64.b64encode(self._login.encode()).decode()
        if not self._login or any(line.lower() == wanted.lower() for line in headers):
            return None
        return "407 Proxy Authentication Required"

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                self.carried += data
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextmanager
def proxying(**settings: str) -> Iterator[ConnectProxy]:
    """A proxy for a while; arguments as of `ConnectProxy`."""
    proxy = ConnectProxy(**settings)
    try:
        yield proxy
    finally:
        proxy.close()
