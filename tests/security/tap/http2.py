"""The calls in what a tap kept: HTTP/2 frames put together again (RFC 9113), headers decoded (RFC 7541)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from hpack import Decoder

from tests.security.tap.relay import Connection

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD = 9
_DATA, _HEADERS, _PUSH_PROMISE, _CONTINUATION = 0x0, 0x1, 0x5, 0x9
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_GRPC_HEAD = 5


@dataclass
class Way:
    """One direction of one call."""

    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    padding: bytearray = field(default_factory=bytearray)

    def messages(self) -> list[bytes]:
        """The gRPC messages; one that was cut off is there as far as it came, one that was compressed is inflated."""
        found, at, data = [], 0, bytes(self.data)
        while at + _GRPC_HEAD <= len(data):
            size = int.from_bytes(data[at + 1 : at + _GRPC_HEAD], "big")
            message = data[at + _GRPC_HEAD : at + _GRPC_HEAD + size]
            found.append(_inflated(message) if data[at] else message)
            at += _GRPC_HEAD + size
        return found


def _inflated(message: bytes) -> bytes:
    try:
        return zlib.decompressobj(47).decompress(message)
    except zlib.error:
        return message


@dataclass
class Call:
    """One call; `path` is "/ddib_fed.v1.DecodingService/Decode"."""

    path: str = ""
    asked: Way = field(default_factory=Way)
    answered: Way = field(default_factory=Way)


def calls(connection: Connection) -> list[Call]:
    """The calls of a connection, in the order of their stream numbers."""
    found: dict[int, Call] = {}
    for number, way in _ways(bytes(connection.to_target)).items():
        found.setdefault(number, Call()).asked = way
    for number, way in _ways(bytes(connection.to_source)).items():
        found.setdefault(number, Call()).answered = way
    for call in found.values():
        call.path = dict(call.asked.headers).get(b":path", b"").decode()
    return [found[number] for number in sorted(found) if number]


def frames(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Type, flags, stream and payload of each frame; the last may be cut off."""
    at = len(PREFACE) if data.startswith(PREFACE) else 0
    while at + _HEAD <= len(data):
        size = int.from_bytes(data[at : at + 3], "big")
        kind, flags = data[at + 3], data[at + 4]
        stream = int.from_bytes(data[at + 5 : at + _HEAD], "big") & 0x7FFF_FFFF
        yield kind, flags, stream, data[at + _HEAD : at + _HEAD + size]
        at += _HEAD + size


def _ways(data: bytes) -> dict[int, Way]:
    """By stream; stream 0 holds what frames of other kinds carry (settings, pings, the reason of a goodbye)."""
    decoder, found = Decoder(), {0: Way()}
    decoder.max_allowed_table_size = 1 << 20
    block = bytearray()
    for kind, flags, stream, payload in frames(data):
        if kind == _DATA:
            body, padding = _unpadded(payload, flags)
            way = found.setdefault(stream, Way())
            way.data += body
            way.padding += padding
        elif kind in {_HEADERS, _CONTINUATION}:
            body = payload
            if kind == _HEADERS:
                body, padding = _unpadded(payload, flags)
                body = body[5:] if flags & _PRIORITY else body
                found.setdefault(stream, Way()).padding += padding
            block += body
            if flags & _END_HEADERS:
                found.setdefault(stream, Way()).headers += [
                    (bytes(name), bytes(value)) for name, value in decoder.decode(bytes(block), raw=True)
                ]
                block.clear()
        else:
            found[0].data += payload
    return found


def _unpadded(payload: bytes, flags: int) -> tuple[bytes, bytes]:
    if not flags & _PADDED or not payload:
        return payload, b""
    end = len(payload) - payload[0]
    return payload[1:end], payload[end:]
