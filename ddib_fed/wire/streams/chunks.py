"""Splits bytes into stream messages (header, chunks, trailer) and joins and checks them again.

Nothing is buffered before its header was checked, never more than the header announced, and the
result has the announced size and digest. No sockets: the caller passes the messages.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from google.protobuf.message import Message

from ddib_fed.errors import ChunkCorrupt, DdibError, ImageTooLarge, MessageInvalid, PointsTooMany
from ddib_fed.v1 import common_pb2
from ddib_fed.wire.streams.frames import ChunkFrame, chunk_field
from ddib_fed.wire.streams.landing import Landing

MIN_CHUNK = 64 * 1024
"""Smallest size of every chunk but the last: small chunks would exhaust the receiver."""

MAX_CHUNK = 1024 * 1024
"""Largest size of a chunk; gRPC's 4 MiB message limit is unchanged."""

CHUNK = MAX_CHUNK
"""The chunk size of this release: of 128 KiB to 1 MiB the largest costs both ends the least CPU (docs/benchmarks)."""

DIGEST_BYTES = 32

M = TypeVar("M", bound=Message)


def pieces(data: bytes | memoryview, chunk_bytes: int = CHUNK) -> Iterator[memoryview]:
    """Cut bytes into the data of chunks, in order, without a copy."""
    if not MIN_CHUNK <= chunk_bytes <= MAX_CHUNK:
        raise ValueError(f"a chunk holds {MIN_CHUNK} to {MAX_CHUNK} bytes, not {chunk_bytes}")
    view = memoryview(data).cast("B")
    for start in range(0, len(view), chunk_bytes):
        yield view[start : start + chunk_bytes]


def stream(
    message: type[M], kind: str, header: Message, data: bytes | memoryview, chunk_bytes: int = CHUNK
) -> Iterator[M]:
    """The messages that carry one header and its bytes, which are copied once, into each message as it is sent.

    Args:
        message: The stream's message class, e.g. ``FetchResultsResponse``.
        kind: The oneof field that the header goes into, e.g. ``"result"``.
        header: The header, with the size and digest of `data`.
        data: The bytes that follow.
        chunk_bytes: Size of every chunk but the last.

    Raises:
        ValueError: `chunk_bytes` is not from `MIN_CHUNK` to `MAX_CHUNK`.
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
    """A receiver of bytes, e.g. a file."""

    def write(self, data: bytes | memoryview, /) -> object:
        """Write the next bytes."""


@dataclass(frozen=True, slots=True)
class Announced:
    """The announcement in a valid header about the bytes after it.

    Attributes:
        size_bytes: How many follow.
        sha256: Their digest, 32 bytes.
        max_bytes: The receiver's limit.
        too_large: The error for a size over the limit.
        sink: Where they are written as they arrive; without one they are kept in memory.
        landing: Without a sink: whether they are wanted in one buffer (`Whole.landed`) instead of as `Whole.data`.
    """

    size_bytes: int
    sha256: bytes
    max_bytes: int
    too_large: type[DdibError] = PointsTooMany
    sink: Sink | None = None
    landing: bool = False

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
        self._buffer = io.BytesIO()
        self.landing = Landing(announced.size_bytes) if announced.landing else None
        self._sink: Sink = announced.sink or self.landing or self._buffer
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

    def finish(self, chunks: int) -> bytes:
        """The bytes, after the trailer; empty if they went to a sink, or landed."""
        self._take()
        if chunks != self._next_index:
            raise self._corrupt("chunks", expected=chunks, received=self._next_index)
        if self._received != self._announced.size_bytes:
            raise self._corrupt("bytes", expected=self._announced.size_bytes, received=self._received)
        if self._digest.digest() != self._announced.sha256:
            raise self._corrupt(
                "sha256", expected=self._announced.sha256.hex(), received=self._digest.hexdigest()
            )
        # BytesIO returns its own buffer here: no second copy.
        return self._buffer.getvalue()

    def _take(self) -> None:
        if not self._open:
            raise MessageInvalid("bytes came after the end of what was announced", facts={"field": "chunk"})
        self._open = False

    def _corrupt(self, what: str, *, expected: int | str, received: int | str) -> ChunkCorrupt:
        self._buffer = io.BytesIO()
        return ChunkCorrupt(
            f"{what}: {expected} expected, {received} received",
            facts={"what": what, "expected": expected, "received": received},
        )

    def _invalid(self, detail: str, size: int) -> MessageInvalid:
        self._buffer = io.BytesIO()
        return MessageInvalid(
            detail, facts={"field": "chunk", "bytes": size, "min_bytes": MIN_CHUNK, "max_bytes": MAX_CHUNK}
        )


@dataclass(frozen=True, slots=True)
class Whole:
    """One completely received object.

    Attributes:
        kind: The oneof field that its header came in.
        header: The header.
        data: Its bytes, of the announced size and digest; empty when they went to a sink or landed.
        landed: Its bytes in one buffer, read-only, where the opener asked for it.
    """

    kind: str
    header: Any
    data: bytes
    landed: memoryview | None = None


Opener = Callable[[Any], Announced]
"""Checks a header and says what follows; it raises for a header that is refused."""


class Assembler:
    """Assembles the objects of a stream of {header, chunk..., trailer}, one at a time.

    Args:
        openers: For each oneof field that can be a header, the function that checks it. Any field but these,
            ``chunk`` and ``trailer`` is refused: it is not for the assembler.
    """

    def __init__(self, openers: Mapping[str, Opener]) -> None:
        self._openers = dict(openers)
        self._current: tuple[str, Any, Joiner] | None = None
        self.completed = 0

    def feed(self, message: Message) -> Whole | None:
        """Take the next message of the stream; the complete object after its trailer, otherwise None.

        Args:
            message: One with a oneof named ``message``.

        Raises:
            MessageInvalid: A header where a chunk or trailer is due, the reverse, or an empty message.
            ChunkCorrupt: Order, size, count or digest are not as announced.
            DdibError: Whatever an opener refuses a header with.
        """
        kind = message.WhichOneof("message")
        if kind == "chunk":
            chunk = message.chunk  # type: ignore[attr-defined]
            self._joiner(kind).feed(chunk.index, chunk.data)
            return None
        if kind == "trailer":
            return self._close(message.trailer.chunks)  # type: ignore[attr-defined]
        self._begin(kind, message)
        return None

    def end(self) -> None:
        """Record the end of the stream.

        Raises:
            ChunkCorrupt: Inside an object.
        """
        if self._current is not None:
            received = self._current[2].received_bytes
            raise ChunkCorrupt(
                f"the stream ended {received} bytes into a {self._current[0]}",
                facts={"what": "stream", "received": received},
            )

    def _begin(self, kind: str | None, message: Message) -> None:
        if kind is None or kind not in self._openers:
            raise MessageInvalid(
                f"{kind or 'nothing'} is not expected here", facts={"field": kind or "message"}
            )
        if self._current is not None:
            raise MessageInvalid(f"a {kind} before the trailer of the last", facts={"field": kind})
        header = getattr(message, kind)
        self._current = (kind, header, Joiner(self._openers[kind](header)))

    def _joiner(self, kind: str) -> Joiner:
        if self._current is None:
            raise MessageInvalid(f"a {kind} without a header", facts={"field": kind})
        return self._current[2]

    def _close(self, chunks: int) -> Whole:
        data = self._joiner("trailer").finish(chunks)
        assert self._current is not None
        kind, header, joiner = self._current
        self._current = None
        self.completed += 1
        return Whole(kind, header, data, None if joiner.landing is None else joiner.landing.whole())


def assemble(messages: Iterable[Message], openers: Mapping[str, Opener]) -> Iterator[Whole]:
    """Every object of a stream that contains nothing else.

    Args:
        messages: The stream, from after its own header where it has one.
        openers: As for `Assembler`.

    Raises:
        MessageInvalid: As `Assembler.feed`.
        ChunkCorrupt: As `Assembler.feed`, or the stream ended inside an object.
        DdibError: Whatever an opener refuses a header with.
    """
    assembler = Assembler(openers)
    for message in messages:
        whole = assembler.feed(message)
        if whole is not None:
            yield whole
    assembler.end()


def stream_file(
    message: Callable[..., M], kind: str, header: Message, file: BinaryIO, size_bytes: int
) -> Iterator[M]:
    """As `stream`, from a file that is read chunk by chunk.

    It is never asked for more than is left: Python sets aside as much memory as a read asks for.

    Args:
        message: The stream's message class.
        kind: The oneof field that the header goes into.
        header: The header, with the size and digest of the file's content.
        file: Open for reading, at its start.
        size_bytes: Of its content; a shorter file ends the stream early, which its reader finds.
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
    """Check the header of a file.

    Args:
        header: As received.
        max_bytes: The receiver's limit for one file.
        accepted: Media types that the receiver accepts.

    Raises:
        MessageInvalid: Another media type, or a malformed digest.
        PointsTooMany, ImageTooLarge: More bytes than the limit.
    """
    if header.media_type not in accepted:
        raise MessageInvalid(
            f"media type {header.media_type} is not taken here", facts={"field": "media_type"}
        )
    too_large = PointsTooMany if header.media_type == common_pb2.MEDIA_TYPE_NPY else ImageTooLarge
    return Announced(header.size_bytes, header.sha256, max_bytes, too_large)
