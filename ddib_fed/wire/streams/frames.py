"""Chunks as they lie on the wire: written and read without a copy into a protobuf message and another one out of it.

The bytes are those that protobuf would write: a message whose one field is a chunk of index and data, in this order.
What is not exactly of that form is parsed by protobuf, with all its checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, Protocol

from google.protobuf.message import Message

_INDEX: Final = 0x08
_DATA: Final = 0x12
_LENGTH_DELIMITED: Final = 2
# Three bytes of a varint: indices and sizes beyond 2 MiB are left to protobuf, and refused after it.
_VARINT_BYTES: Final = 3


class Sendable(Protocol):
    """A message, or what is written as one."""

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        ...


class ChunkFrame:
    """A message that holds one chunk; the data are a view of what was sent or received, not a copy."""

    __slots__ = ("data", "field", "index")

    def __init__(self, field: int, index: int, data: memoryview) -> None:
        self.field = field
        self.index = index
        self.data = data

    def WhichOneof(self, group: str) -> Literal["chunk"]:  # noqa: N802, ARG002 - protobuf's name
        return "chunk"

    @property
    def chunk(self) -> ChunkFrame:
        return self

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        """The message's bytes; the data are copied here, once."""
        index = bytes([_INDEX]) + _varint(self.index) if self.index else b""
        inner = index + bytes([_DATA]) + _varint(len(self.data))
        outer = _varint(len(inner) + len(self.data))
        return b"".join((bytes([self.field << 3 | _LENGTH_DELIMITED]), outer, inner, self.data))


def serialised(message: Sendable) -> bytes:
    return message.SerializeToString()


def writing(serialise: Callable[..., bytes] | None) -> Callable[..., bytes] | None:
    """A serialiser that takes frames too, in place of a message's; None, for bytes as they are, stays None."""
    return None if serialise is None else serialised


def chunk_field(kind: type[Message]) -> int | None:
    """The number of a stream message's field `chunk`; None if it has none."""
    field = kind.DESCRIPTOR.fields_by_name.get("chunk")
    is_chunk = field is not None and field.message_type is not None and field.message_type.name == "Chunk"
    return field.number if field is not None and is_chunk else None


def reading(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A deserialiser that reads chunks as frames, and everything else as `parse` does.

    Args:
        parse: `FromString` of a message's class; any other function, or None, comes back as it is.
    """
    kind = getattr(parse, "__self__", None)
    field = chunk_field(kind) if isinstance(kind, type) and issubclass(kind, Message) else None
    if field is None or parse is None:
        return parse

    def read(data: bytes) -> Any:
        return _frame(field, data) or parse(data)

    return read


def _frame(field: int, data: bytes) -> ChunkFrame | None:
    """The frame in some bytes; None if they are not exactly one, as protobuf writes it."""
    if not data or data[0] != (field << 3 | _LENGTH_DELIMITED):
        return None
    size, at = _read_varint(data, 1)
    if size != len(data) - at:
        return None
    index = 0
    if data[at : at + 1] == bytes([_INDEX]):
        index, at = _read_varint(data, at + 1)
    if index < 0 or data[at : at + 1] != bytes([_DATA]):
        return None
    size, at = _read_varint(data, at + 1)
    return ChunkFrame(field, index, memoryview(data)[at:]) if size == len(data) - at else None


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number, and where it ends; (-1, `at`) where there is none of at most three bytes."""
    number = 0
    for place, byte in enumerate(data[at : at + _VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return number, at + place + 1
    return -1, at
