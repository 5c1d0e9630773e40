"""Every way in which bytes could hold other bytes, unwrapped: what a search looks through."""

from __future__ import annotations

import base64
import binascii
import io
import re
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

DEPTH = 3
LEAST = 16
"""Shorter results hold no window that is looked for."""
MOST_INFLATED = 64 << 20
_HEX = re.compile(rb"[0-9a-fA-F]{32,}")
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{22,}={0,2}")
_ZLIB = re.compile(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08")
_PNG = b"\x89PNG\r\n\x1a\n"
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")


def unwrapped(data: bytes, how: str = "", depth: int = DEPTH) -> Iterator[tuple[str, bytes]]:
    """The bytes, and what text encodings, compression and pictures in them hold; how each was reached."""
    yield how, data
    if depth == 0:
        return
    for name, found in _opened(data):
        if len(found) >= LEAST:
            yield from unwrapped(found, f"{how} {name}".strip(), depth - 1)


def _opened(data: bytes) -> Iterator[tuple[str, bytes]]:
    for run in _HEX.findall(data):
        for start in (0, 1):
            text = run[start:]
            yield "hex", binascii.unhexlify(text[: len(text) // 2 * 2])
    for run in _BASE64.findall(data):
        for start in range(4):
            text = run[start:].rstrip(b"=").translate(_TO_STANDARD)
            yield "base64", base64.b64decode(text[: len(text) // 4 * 4] + _tail(text))
    for match in _ZLIB.finditer(data):
        if inflated := _inflate(data[match.start() :], 47):
            yield "inflated", inflated
    if inflated := _inflate(data, -15):
        yield "inflated", inflated
    at = data.find(_PNG)
    while at >= 0:
        if pixels := _pixels(data[at:]):
            yield "png", pixels
        at = data.find(_PNG, at + 1)


def _tail(text: bytes) -> bytes:
    """The last, incomplete group of four, filled up."""
    rest = text[len(text) // 4 * 4 :]
    return rest + b"=" * (4 - len(rest)) if len(rest) > 1 else b""


def _inflate(data: bytes, window: int) -> bytes:
    """What inflates from the beginning; a stream that is damaged or cut off gives what came before that."""
    stream, found = zlib.decompressobj(window), bytearray()
    for at in range(0, len(data), 4096):
        try:
            found += stream.decompress(data[at : at + 4096], MOST_INFLATED)
        except zlib.error:
            # What the last piece held before its damage is found byte by byte in no reasonable time.
            break
        if stream.eof or len(found) >= MOST_INFLATED:
            break
    return bytes(found)


def _pixels(png: bytes) -> bytes:
    try:
        with Image.open(io.BytesIO(png)) as picture:
            return np.asarray(picture).tobytes()
    except (OSError, ValueError, SyntaxError):
        return b""


def parts(data: bytes) -> Iterator[tuple[str, bytes]]:
    """What could be hidden in words of numbers: the bytes at one place of each word."""
    raw = np.frombuffer(data, np.uint8)
    for width in (2, 4, 8):
        words = raw[: len(raw) // width * width].reshape(-1, width)
        for lane in range(width if len(words) >= 4 else 0):
            yield f"byte {lane} of {width}", words[:, lane].tobytes()
