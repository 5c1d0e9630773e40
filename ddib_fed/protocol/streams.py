"""Files and latents as streams of {header, chunk..., trailer}: made, joined and checked.

A receiver checks an announcement before it buffers anything, and each chunk before it takes it. Chunks lie on the wire
as protobuf writes them, but are written and read without a copy of their bytes (`ChunkFrame`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Literal, Protocol, TypeVar, cast

from google.protobuf.message import Message

from ddib_fed.errors import ChunkCorrupt, DdibError, ImageTooLarge, MessageInvalid, PointsTooMany
from ddib_fed.files import DIGEST_BYTES
from ddib_fed.v1 import common_pb2

MIN_CHUNK = 64 * 1024
"""Smallest size of every chunk but the last: small chunks would exhaust the receiver."""
MAX_CHUNK = CHUNK = 1024 * 1024
"""Largest size of a chunk, and the size of those of this release: the largest costs both ends the least CPU."""

M = TypeVar("M", bound=Message)


def pieces(data: bytes | memoryview, chunk_bytes: int = CHUNK) -> Iterator[memoryview]:
    """The data of chunks, in order, without a copy."""
    if not MIN_CHUNK <= chunk_bytes <= MAX_CHUNK:
        raise ValueError(f"a chunk holds {MIN_CHUNK} to {MAX_CHUNK} bytes, not {chunk_bytes}")
    view = memoryview(data).cast("B")
    for start in range(0, len(view), chunk_bytes):
        yield view[start : start + chunk_bytes]


def stream(
    message: type[M], kind: str, header: Message, data: bytes | memoryview, chunk_bytes: int = CHUNK
) -> Iterator[M]:
    """The messages that carry one header, in its oneof field `kind`, and its bytes, which are copied once."""
    return _framed(message, kind, header, pieces(data, chunk_bytes))


def stream_file(message: type[M], kind: str, header: Message, file: BinaryIO, size_bytes: int) -> Iterator[M]:
    """As `stream`, from a file that is read chunk by chunk; a shorter one ends the stream early."""

    def read() -> Iterator[memoryview]:
        left = size_bytes
        # Never more than is left: Python sets aside as much memory as a read asks for.
        while left and (data := file.read(min(CHUNK, left))):
            yield memoryview(data)
            left -= len(data)

    return _framed(message, kind, header, read())


def _framed(message: type[M], kind: str, header: Message, parts: Iterable[memoryview]) -> Iterator[M]:
    field = chunk_field(message)
    if field is None:
        raise TypeError(f"{message.DESCRIPTOR.name} carries no chunks")
    yield message(**{kind: header})
    count = 0
    for piece in parts:
        # A frame has what is asked of a message: which field it is, the chunk, its bytes.
        yield cast("M", ChunkFrame(field, count, piece))
        count += 1
    yield message(trailer=common_pb2.Trailer(chunks=count))


class Sink(Protocol):
    def write(self, data: bytes | memoryview, /) -> object: ...


@dataclass(frozen=True, slots=True)
class Announced:
    """The announcement in a valid header about the bytes after it.

    Attributes:
        size_bytes: How many follow.
        sha256: Their digest, 32 bytes.
        max_bytes: The receiver's limit.
        too_large: The error for a size over the limit.
        sink: Where they are written as they arrive; without one they are kept in memory (`Whole.data`).
    """

    size_bytes: int
    sha256: bytes
    max_bytes: int
    too_large: type[DdibError] = PointsTooMany
    sink: Sink | None = None

    def __post_init__(self) -> None:
        if len(self.sha256) != DIGEST_BYTES:
            raise MessageInvalid(f"a SHA-256 of {len(self.sha256)} bytes", facts={"field": "sha256"})
        if self.size_bytes > self.max_bytes:
            raise self.too_large(
                f"{self.size_bytes} bytes were announced, {self.max_bytes} are the limit",
                facts={"size_bytes": self.size_bytes, "limit_bytes": self.max_bytes},
            )


@dataclass(frozen=True, slots=True)
class Whole:
    """One received object: the oneof field of its header, the header, its bytes (empty when they went to a sink)."""

    kind: str
    header: Any
    data: memoryview


class _Object:
    """One announced object that arrives; memory is used as bytes are received, not as they are announced."""

    def __init__(self, kind: str, header: Any, announced: Announced) -> None:
        import numpy as np  # which a client that receives nothing does not need

        self.kind, self.header, self.announced = kind, header, announced
        # Not initialised, so not in memory before it is written; numpy asks for huge pages for large arrays.
        self._buffer = np.empty(0 if announced.sink else announced.size_bytes, np.uint8).data
        self._digest = hashlib.sha256()
        self._chunks = 0
        self.received = 0

    def add(self, index: int, data: bytes | memoryview) -> None:
        end, size = self.received + len(data), self.announced.size_bytes
        if index != self._chunks:
            raise _corrupt("chunk", expected=self._chunks, received=index)
        if not 1 <= len(data) <= MAX_CHUNK or (end < size and len(data) < MIN_CHUNK):
            raise MessageInvalid(
                f"a chunk of {len(data)} bytes{' that is not the last' if end < size else ''}",
                facts={"field": "chunk", "bytes": len(data), "min_bytes": MIN_CHUNK, "max_bytes": MAX_CHUNK},
            )
        if end > size:
            raise _corrupt("bytes", expected=size, received=end)
        if self.announced.sink is None:
            self._buffer[self.received : end] = data
        else:
            self.announced.sink.write(data)
        self._digest.update(data)
        self._chunks += 1
        self.received = end

    def whole(self, chunks: int) -> Whole:
        for what, expected, received in (
            ("chunks", chunks, self._chunks),
            ("bytes", self.announced.size_bytes, self.received),
            ("sha256", self.announced.sha256.hex(), self._digest.hexdigest()),
        ):
            if expected != received:
                raise _corrupt(what, expected=expected, received=received)
        return Whole(self.kind, self.header, self._buffer.toreadonly())


def _corrupt(what: str, *, expected: int | str, received: int | str) -> ChunkCorrupt:
    return ChunkCorrupt(
        f"{what}: {expected} expected, {received} received",
        facts={"what": what, "expected": expected, "received": received},
    )


Opener = Callable[[Any], Announced]
"""Checks a header and says what follows; it raises for a header that is refused."""


class Assembler:
    """Assembles the objects of a stream of {header, chunk..., trailer}, one at a time.

    `openers` has for each oneof field that can be a header the function that checks it; other fields are refused.
    """

    def __init__(self, openers: Mapping[str, Opener]) -> None:
        self._openers = openers
        self._current: _Object | None = None

    def feed(self, message: Message) -> Whole | None:
        """Take the next message of the stream; the complete object after its trailer, otherwise None.

        Raises:
            MessageInvalid: A header where a chunk or trailer is due, the reverse, or an empty message.
            ChunkCorrupt: Order, size, count or digest are not as announced.
            DdibError: Whatever an opener refuses a header with.
        """
        kind = message.WhichOneof("message")
        if kind in {"chunk", "trailer"}:
            current, self._current = self._current, None  # a refused object takes nothing any more
            if current is None:
                raise MessageInvalid(f"a {kind} without a header", facts={"field": kind})
            if kind == "trailer":
                return current.whole(message.trailer.chunks)  # type: ignore[attr-defined]
            chunk = message.chunk  # type: ignore[attr-defined]
            current.add(chunk.index, chunk.data)
            self._current = current
            return None
        if kind is None or kind not in self._openers:
            raise MessageInvalid(
                f"{kind or 'nothing'} is not expected here", facts={"field": kind or "message"}
            )
        if self._current is not None:
            raise MessageInvalid(f"a {kind} before the trailer of the last", facts={"field": kind})
        header = getattr(message, kind)
        self._current = _Object(kind, header, self._openers[kind](header))
        return None

    def end(self) -> None:
        """Raise `ChunkCorrupt` if the stream ended inside an object."""
        if self._current is not None:
            raise ChunkCorrupt(
                f"the stream ended {self._current.received} bytes into a {self._current.kind}",
                facts={"what": "stream", "received": self._current.received},
            )


def assemble(messages: Iterable[Message], openers: Mapping[str, Opener]) -> Iterator[Whole]:
    """Every object of a stream that contains nothing else; errors as of `Assembler.feed` and `end`."""
    assembler = Assembler(openers)
    for message in messages:
        if (whole := assembler.feed(message)) is not None:
            yield whole
    assembler.end()


def file_header(media_type: int, data: bytes) -> common_pb2.FileHeader:
    """The header of a file's bytes."""
    return common_pb2.FileHeader(
        media_type=common_pb2.MediaType.Name(media_type),
        size_bytes=len(data),
        sha256=hashlib.sha256(data).digest(),
    )


def open_file(header: common_pb2.FileHeader, *, max_bytes: int, accepted: Collection[int]) -> Announced:
    """Check the header of a file, of one of the `accepted` media types."""
    if header.media_type not in accepted:
        raise MessageInvalid(
            f"media type {header.media_type} is not taken here", facts={"field": "media_type"}
        )
    too_large = PointsTooMany if header.media_type == common_pb2.MEDIA_TYPE_NPY else ImageTooLarge
    return Announced(header.size_bytes, header.sha256, max_bytes, too_large)


# Chunks as they lie on the wire

_INDEX: Final = 0x08
_DATA: Final = 0x12
_LENGTH_DELIMITED: Final = 2
# Three bytes of a varint: indices and sizes beyond 2 MiB are left to protobuf, and refused after it.
_VARINT_BYTES: Final = 3


class ChunkFrame:
    """A message that holds one chunk; the data are a view of what was sent or received, not a copy."""

    __slots__ = ("data", "field", "index")

    def __init__(self, field: int, index: int, data: memoryview) -> None:
        self.field, self.index, self.data = field, index, data

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


def frame_serialiser(usual: Callable[..., bytes] | None) -> Callable[..., bytes] | None:
    """A serialiser that takes frames too, in place of a message's; None, for bytes as they are, stays None."""
    return None if usual is None else lambda message: message.SerializeToString()


def frame_deserialiser(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A deserialiser that reads chunks as frames, and everything else as `parse` does.

    Anything but `FromString` of a message with chunks comes back as it is.
    """
    kind = getattr(parse, "__self__", None)
    field = chunk_field(kind) if isinstance(kind, type) and issubclass(kind, Message) else None
    if field is None or parse is None:
        return parse
    return lambda data: _frame(field, data) or parse(data)


def chunk_field(kind: type[Message]) -> int | None:
    """The number of a stream message's field `chunk`; None if it has none."""
    field = kind.DESCRIPTOR.fields_by_name.get("chunk")
    is_chunk = field is not None and field.message_type is not None and field.message_type.name == "Chunk"
    return field.number if field is not None and is_chunk else None


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
