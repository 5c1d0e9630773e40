"""One connection between two commands that pair: frames with a time limit, first in the clear, then sealed.

    MAGIC                                    once, from each side
    LENGTH (4 bytes, big-endian) PAYLOAD     a frame, of at most `MAX_FRAME` bytes

Sealed frames are ChaCha20-Poly1305 under a key for each direction, with the number of the frame as nonce.
"""

from __future__ import annotations

import socket
import struct
import time
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

MAGIC: Final = b"ddib-pair/1\n"
MAX_FRAME: Final = 64 << 10
_LENGTH: Final = struct.Struct(">I")


class LineBroken(Exception):  # noqa: N818 - a finding of this package; no other sees it
    """The connection ended, or what came over it cannot be used."""

    def __init__(self, what: str, first: bytes = b"") -> None:
        super().__init__(what)
        self.first = first


@dataclass(frozen=True, slots=True)
class Keys:
    """Of one exchange."""

    own_proof: bytes
    other_proof: bytes
    sending: bytes
    receiving: bytes


class Line:
    """Frames over a connected socket, all of them within a time limit."""

    def __init__(self, connection: socket.socket, limit_s: float) -> None:
        self._connection = connection
        self._seals: tuple[ChaCha20Poly1305, ChaCha20Poly1305] | None = None
        self._sent = self._received = 0
        self.extend(limit_s)

    def extend(self, limit_s: float) -> None:
        self._until = time.monotonic() + limit_s

    def greet(self) -> None:
        self._write(MAGIC)

    def expect_greeting(self) -> None:
        """Read the other side's `MAGIC`."""
        first = b""
        while len(first) < len(MAGIC):
            first += self._some(len(MAGIC) - len(first), first)
            if not MAGIC.startswith(first):
                raise LineBroken("it does not speak the protocol of `ddib pair`", first)

    def send(self, payload: bytes) -> None:
        """Send one frame, sealed once there are keys."""
        if self._seals is not None:
            payload = self._seals[0].encrypt(self._sent.to_bytes(12, "big"), payload, None)
            self._sent += 1
        self._write(_LENGTH.pack(len(payload)) + payload)

    def receive(self) -> bytes:
        """Read one frame."""
        (length,) = _LENGTH.unpack(self._exactly(_LENGTH.size))
        if length > MAX_FRAME:
            raise LineBroken(f"it sent a frame of {length} bytes")
        payload = self._exactly(length)
        if self._seals is None:
            return payload
        nonce = self._received.to_bytes(12, "big")
        self._received += 1
        try:
            return self._seals[1].decrypt(nonce, payload, None)
        except InvalidTag as error:
            raise LineBroken("what it sent was changed on its way") from error

    def seal(self, keys: Keys) -> None:
        self._seals = ChaCha20Poly1305(keys.sending), ChaCha20Poly1305(keys.receiving)

    def _write(self, data: bytes) -> None:
        try:
            self._connection.settimeout(self._left())
            self._connection.sendall(data)
        except TimeoutError as error:
            raise LineBroken("it did not take what was sent in time") from error
        except OSError as error:
            raise LineBroken(f"the connection broke: {error.strerror or error}") from error

    def _exactly(self, count: int) -> bytes:
        parts = b""
        while len(parts) < count:
            parts += self._some(count - len(parts), b"")
        return parts

    def _some(self, most: int, before: bytes) -> bytes:
        try:
            self._connection.settimeout(self._left())
            data = self._connection.recv(most)
        except TimeoutError as error:
            raise LineBroken("it did not answer in time", before) from error
        except OSError as error:
            raise LineBroken(f"the connection broke: {error.strerror or error}", before) from error
        if not data:
            raise LineBroken("it closed the connection", before)
        return data

    def _left(self) -> float:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left
