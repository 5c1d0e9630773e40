"""The calls in what a tap kept: HTTP/2 frames put together again (RFC 9113), headers decoded (RFC 7541)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from hpack import Decoder

from tests.security.tap.relay import Connection

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _CONTINUATION = 0x0, 0x1, 0x9
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20


@dataclass
class Way:
    """One direction of one call."""

    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    padding: bytearray = field(default_factory=bytearray)

    def messages(self) -> Iterator[bytes]:
        """The gRPC messages; one that was cut off is there as far as it came, one that was compressed is inflated."""
        at, data = 0, bytes(self.data)
        while at + 5 <= len(data):
            size = int.from_bytes(data[at + 1 : at + 5], "big")
            message = data[at + 5 : at + 5 + size]
            if data[at]:
                with suppress(zlib.error):
                    message = zlib.decompressobj(47).decompress(message)
            yield message
            at += 5 + size


@dataclass
class Call:
    """One call; `path` is "/ddib_fed.v1.DecodingService/Decode"."""

    asked: Way = field(default_factory=Way)
    answered: Way = field(default_factory=Way)

    @property
    def path(self) -> str:
        return dict(self.asked.headers).get(b":path", b"").decode()


def calls(connection: Connection) -> list[Call]:
    """The calls of a connection, in the order of their stream numbers."""
    asked, answered = _ways(bytes(connection.to_target)), _ways(bytes(connection.to_source))
    numbers = sorted({*asked, *answered})
    return [Call(asked.get(number, Way()), answered.get(number, Way())) for number in numbers]


def _frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, stream and payload of each frame; the last may be cut off."""
    at = len(PREFACE) if data.startswith(PREFACE) else 0
    while at + 9 <= len(data):
        size, stream = int.from_bytes(data[at : at + 3], "big"), int.from_bytes(data[at + 5 : at + 9], "big")
        yield data[at + 3], data[at + 4], stream & 0x7FFF_FFFF, data[at + 9 : at + 9 + size]
        at += 9 + size


def _ways(data: bytes) -> dict[int, Way]:
    """By stream; frames of other kinds (settings, pings) are searched in the raw bytes alone."""
    decoder, found, block = Decoder(), dict[int, Way](), bytearray()
    decoder.max_allowed_table_size = 1 << 20
    for kind, flags, stream, framed in _frames(data):
        if kind not in {_DATA, _HEADERS, _CONTINUATION}:
            continue
        way, payload = found.setdefault(stream, Way()), framed
        if flags & _PADDED and framed and kind != _CONTINUATION:
            end = len(framed) - framed[0]
            payload, padding = framed[1:end], framed[end:]
            way.padding += padding
        if kind == _DATA:
            way.data += payload
            continue
        block += payload[5:] if kind == _HEADERS and flags & _PRIORITY else payload
        if flags & _END_HEADERS:
            decoded = decoder.decode(bytes(block), raw=True)
            way.headers += [(bytes(name), bytes(value)) for name, value in decoded]
            block.clear()
    return found
