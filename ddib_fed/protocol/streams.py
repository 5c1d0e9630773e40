"""Large objects as stream messages (header, chunks, trailer): cut, joined and checked again.

Nothing is buffered before its header was checked, never more than the header announced, and the result has the
announced size and digest. No sockets: the caller passes the messages.

Chunks are written and read as they lie on the wire, without a copy into a protobuf message and another one out of it.
The bytes are those that protobuf would write; what is not exactly of that form is parsed by protobuf.
"""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, Literal, Protocol, TypeVar, cast

from google.protobuf.message import Message

from ddib_fed.errors import ChunkCorrupt, DdibError, ImageTooLarge, MessageInvalid, PointsTooMany
from ddib_fed.files import DIGEST_BYTES
from ddib_fed.v1 import common_pb2

MIN_CHUNK = 64 * 1024
"""Smallest size of every chunk but the last: small chunks would exhaust the receiver."""

MAX_CHUNK = 1024 * 1024
"""Largest size of a chunk; gRPC's 4 MiB message limit is unchanged."""

CHUNK = MAX_CHUNK
"""The chunk size of this release: of 128 KiB to 1 MiB the largest costs both ends the least CPU (docs/benchmarks)."""

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
    """The messages that carry one header, in its oneof field `kind`, and its bytes.

    The bytes are copied once, into each message as it is sent.
    """
    field = chunk_field(message)
    if field is None:
        raise TypeError(f"{message.DESCRIPTOR.name} carries no chunks")
    yield message(**{kind: header})
    count = 0
    for piece in pieces(data, chunk_bytes):
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
        sink: Where they are written as they arrive; without one they are kept in a buffer (`Whole.data`).
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


class Joiner:
    """Joins the chunks of one announced object; memory grows with the received bytes, not the announced size."""

    def __init__(self, announced: Announced) -> None:
        self._announced = announced
        self._buffer = ReceiveBuffer(0 if announced.sink else announced.size_bytes)
        self._sink: Sink = announced.sink or self._buffer
        self._received = 0
        self._digest = hashlib.sha256()
        self._next_index = 0
        self._open = True

    @property
    def received_bytes(self) -> int:
        return self._received

    def feed(self, index: int, data: bytes | memoryview) -> None:
        """Take the next chunk."""
        self._take()
        received = self._received + len(data)
        if index != self._next_index:
            raise self._corrupt("chunk", expected=self._next_index, received=index)
        if not 1 <= len(data) <= MAX_CHUNK:
            raise self._invalid(f"a chunk of {len(data)} bytes", len(data))
        if received > self._announced.size_bytes:
            raise self._corrupt("bytes", expected=self._announced.size_bytes, received=received)
        if received < self._announced.size_bytes and len(data) < MIN_CHUNK:
            raise self._invalid(f"a chunk of {len(data)} bytes that is not the last", len(data))
        self._sink.write(data)
        self._received = received
        self._digest.update(data)
        self._next_index += 1
        self._open = True

    def finish(self, chunks: int) -> memoryview:
        """The bytes, read-only, after the trailer; empty if they went to a sink."""
        self._take()
        if chunks != self._next_index:
            raise self._corrupt("chunks", expected=chunks, received=self._next_index)
        if self._received != self._announced.size_bytes:
            raise self._corrupt("bytes", expected=self._announced.size_bytes, received=self._received)
        if self._digest.digest() != self._announced.sha256:
            raise self._corrupt(
                "sha256", expected=self._announced.sha256.hex(), received=self._digest.hexdigest()
            )
        return self._buffer.whole()

    def _take(self) -> None:
        if not self._open:
            raise MessageInvalid("bytes came after the end of what was announced", facts={"field": "chunk"})
        self._open = False

    def _corrupt(self, what: str, *, expected: int | str, received: int | str) -> ChunkCorrupt:
        return ChunkCorrupt(
            f"{what}: {expected} expected, {received} received",
            facts={"what": what, "expected": expected, "received": received},
        )

    def _invalid(self, detail: str, size: int) -> MessageInvalid:
        return MessageInvalid(
            detail, facts={"field": "chunk", "bytes": size, "min_bytes": MIN_CHUNK, "max_bytes": MAX_CHUNK}
        )


@dataclass(frozen=True, slots=True)
class Whole:
    """One received object: the oneof field of its header, the header, its bytes (empty when they went to a sink)."""

    kind: str
    header: Any
    data: memoryview


Opener = Callable[[Any], Announced]
"""Checks a header and says what follows; it raises for a header that is refused."""


class Assembler:
    """Assembles the objects of a stream of {header, chunk..., trailer}, one at a time.

    `openers` has for each oneof field that can be a header the function that checks it; other fields are refused.
    """

    def __init__(self, openers: Mapping[str, Opener]) -> None:
        self._openers = dict(openers)
        self._current: tuple[str, Any, Joiner] | None = None
        self.completed = 0

    def feed(self, message: Message) -> Whole | None:
        """Take the next message of the stream; the complete object after its trailer, otherwise None.

        Raises:
            MessageInvalid: A header where a chunk or trailer is due, the reverse, or an empty message.
            ChunkCorrupt: Order, size, count or digest are not as announced.
            DdibError: Whatever an opener refuses a header with.
        """
        kind = message.WhichOneof("message")
        if kind in {"chunk", "trailer"}:
            if self._current is None:
                raise MessageInvalid(f"a {kind} without a header", facts={"field": kind})
            name, header, joiner = self._current
            if kind == "chunk":
                chunk = message.chunk  # type: ignore[attr-defined]
                joiner.feed(chunk.index, chunk.data)
                return None
            data = joiner.finish(message.trailer.chunks)  # type: ignore[attr-defined]
            self._current = None
            self.completed += 1
            return Whole(name, header, data)
        if kind is None or kind not in self._openers:
            raise MessageInvalid(
                f"{kind or 'nothing'} is not expected here", facts={"field": kind or "message"}
            )
        if self._current is not None:
            raise MessageInvalid(f"a {kind} before the trailer of the last", facts={"field": kind})
        header = getattr(message, kind)
        self._current = (kind, header, Joiner(self._openers[kind](header)))
        return None

    def end(self) -> None:
        """Raise `ChunkCorrupt` if the stream ended inside an object."""
        if self._current is not None:
            received = self._current[2].received_bytes
            raise ChunkCorrupt(
                f"the stream ended {received} bytes into a {self._current[0]}",
                facts={"what": "stream", "received": received},
            )


def assemble(messages: Iterable[Message], openers: Mapping[str, Opener]) -> Iterator[Whole]:
    """Every object of a stream that contains nothing else; errors as of `Assembler.feed` and `end`."""
    assembler = Assembler(openers)
    for message in messages:
        whole = assembler.feed(message)
        if whole is not None:
            yield whole
    assembler.end()


def stream_file(
    message: Callable[..., M], kind: str, header: Message, file: BinaryIO, size_bytes: int
) -> Iterator[M]:
    """As `stream`, from a file that is read chunk by chunk; a shorter one ends the stream early.

    It is never asked for more than is left: Python sets aside as much memory as a read asks for.
    """
    yield message(**{kind: header})
    count, left = 0, size_bytes
    while left and (data := file.read(min(CHUNK, left))):
        yield message(chunk=common_pb2.Chunk(index=count, data=data))
        count += 1
        left -= len(data)
    yield message(trailer=common_pb2.Trailer(chunks=count))


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


def serialise(message: Sendable) -> bytes:
    return message.SerializeToString()


def frame_serialiser(usual: Callable[..., bytes] | None) -> Callable[..., bytes] | None:
    """A serialiser that takes frames too, in place of a message's; None, for bytes as they are, stays None."""
    return None if usual is None else serialise


def chunk_field(kind: type[Message]) -> int | None:
    """The number of a stream message's field `chunk`; None if it has none."""
    field = kind.DESCRIPTOR.fields_by_name.get("chunk")
    is_chunk = field is not None and field.message_type is not None and field.message_type.name == "Chunk"
    return field.number if field is not None and is_chunk else None


def frame_deserialiser(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any] | None:
    """A deserialiser that reads chunks as frames, and everything else as `parse` does.

    Anything but `FromString` of a message with chunks comes back as it is.
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


# From here on huge pages are asked for: touching 64 MiB of fresh memory takes 7 ms with them and 80 without.
_LARGE_BYTES: Final = 4 << 20


class ReceiveBuffer:
    """A buffer of announced size, written once; memory is taken as it is written, not when it is made."""

    def __init__(self, size_bytes: int) -> None:
        self._memory = memoryview(bytearray(size_bytes) if size_bytes < _LARGE_BYTES else _mapped(size_bytes))
        self._written = 0

    def write(self, data: bytes | memoryview, /) -> None:
        end = self._written + len(data)
        self._memory[self._written : end] = data
        self._written = end

    def whole(self) -> memoryview:
        return self._memory[: self._written].toreadonly()


def _mapped(size_bytes: int) -> mmap.mmap:
    # Private: the shared memory that is the default has no huge pages.
    made = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them; small pages do as well
            made.madvise(mmap.MADV_HUGEPAGE)
    return made
