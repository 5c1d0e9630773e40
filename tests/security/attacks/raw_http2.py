"""A caller that speaks HTTP/2 frame by frame over mutual TLS, and keeps to no rule that it does not want to keep to."""

import contextlib
import select
import socket
import ssl
from pathlib import Path
from typing import Self

from hpack import Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0x0, 0x1, 0x3, 0x4, 0x6, 0x8, 0x9
END_STREAM, END_HEADERS = 0x1, 0x4
WINDOW = 0x3FFF_0000
DECODE = "/ddib_fed.v1.DecodingService/Decode"
DESCRIBE = "/ddib_fed.v1.DecodingService/DescribeDomain"
HEALTH = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def message(payload: bytes, *, compressed: bool = False, claimed: int | None = None) -> bytes:
    return bytes([compressed]) + (len(payload) if claimed is None else claimed).to_bytes(4, "big") + payload


class Raw:
    """One connection; an end by the other side shows as `ended`, not as an error."""

    def __init__(self, port: int, pki: Path | None, *, window: int = WINDOW) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_alpn_protocols(["h2"])
        if pki is not None:
            context.load_cert_chain(pki / "leaf.pem", pki / "leaf.key")
        plain = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket = context.wrap_socket(plain)
        self._socket.settimeout(60)
        self._encoder = Encoder()
        self._next = 1
        self.ended = False
        initial = (4).to_bytes(2, "big") + window.to_bytes(4, "big")
        self.send(PREFACE + frame(SETTINGS, 0, 0, initial))
        self.read()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()

    def send(self, data: bytes) -> bool:
        """Send all of it; whether the connection is still there."""
        if not self.ended:
            try:
                self._socket.sendall(data)
            except OSError:
                self.ended = True
        return not self.ended

    def read(self, wait_s: float = 0.0) -> bytes:
        """What the node sent meanwhile."""
        found = b""
        while not self.ended and (self._socket.pending() or select.select([self._socket], [], [], wait_s)[0]):
            try:
                part = self._socket.recv(65_536)
            except (TimeoutError, ssl.SSLWantReadError):
                break
            except OSError:
                part = b""
            self.ended = not part
            found += part
        return found

    def headers(self, path: str, *more: tuple[str, str]) -> bytes:
        """The block of a call's headers."""
        fields = [
            (":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "node-1.south.example"),
            ("te", "trailers"), ("content-type", "application/grpc"), *more,
        ]  # fmt: skip
        return bytes(self._encoder.encode(fields))

    def open(self, path: str, *more: tuple[str, str], end: bool = False) -> int:
        stream, self._next = self._next, self._next + 2
        self.send(frame(HEADERS, END_HEADERS | (END_STREAM if end else 0), stream, self.headers(path, *more)))
        return stream

    def data(self, stream: int, payload: bytes, *, end: bool = False) -> bool:
        """Send a call's bytes in frames of 16 KiB, whatever the window says; whether the connection is there."""
        pieces = [payload[at : at + 16_384] for at in range(0, len(payload), 16_384)] or [b""]
        for number, piece in enumerate(pieces):
            last = end and number == len(pieces) - 1
            if not self.send(frame(DATA, END_STREAM if last else 0, stream, piece)):
                return False
        return True
