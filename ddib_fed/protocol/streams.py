"""Files and latents as streams of messages: made, joined and checked.

A message of a stream has a header with the first piece of the bytes that it announces, or a further piece alone. A
receiver checks an announcement before it buffers anything, and each piece before it takes it.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol, TypeVar

from google.protobuf.message import Message

from ddib_fed.errors import ChunkCorrupt, DdibError, ImageTooLarge, MessageInvalid, PointsTooMany
from ddib_fed.files import DIGEST_BYTES
from ddib_fed.v1 import common_pb2

MIN_CHUNK = 64 * 1024
"""Smallest size of every piece but the last: small pieces would exhaust the receiver."""
MAX_CHUNK = 1024 * 1024
"""This release sends pieces of the largest size, which costs both ends the least CPU."""

M = TypeVar("M", bound=Message)


def stream(message: type[M], kind: str, header: Message, data: bytes | memoryview) -> Iterator[M]:
    """Yield the messages that carry one header, in its oneof field `kind`, and its bytes."""
    view = memoryview(data).cast("B")
    pieces = (bytes(view[at : at + MAX_CHUNK]) for at in range(0, len(view), MAX_CHUNK))
    yield message(**{kind: header}, data=next(pieces, b""))
    for piece in pieces:
        yield message(data=piece)


def stream_file(message: type[M], kind: str, header: Message, file: BinaryIO, size_bytes: int) -> Iterator[M]:
    """Yield as `stream`, from a file that is read piece by piece; a shorter one ends the stream early."""
    yield message(**{kind: header}, data=file.read(min(MAX_CHUNK, size_bytes)))
    # Never more than is left: Python sets aside as much memory as a read asks for.
    for at in range(MAX_CHUNK, size_bytes, MAX_CHUNK):
        if data := file.read(min(MAX_CHUNK, size_bytes - at)):
            yield message(data=data)


class Sink(Protocol):
    def write(self, data: bytes | memoryview, /) -> object: ...


@dataclass(frozen=True, slots=True)
class Announced:
    """The announcement of a header's bytes, the receiver's limit, and the error of a size over it.

    Bytes are written to `sink` as they arrive; without one they are kept in memory (`Whole.data`).
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
        self.received = 0

    def add(self, data: bytes) -> Whole | None:
        """Take a piece; the object once it is whole."""
        end, size = self.received + len(data), self.announced.size_bytes
        if end > size:
            raise _corrupt("bytes", expected=size, received=end)
        if len(data) > MAX_CHUNK or (end < size and len(data) < MIN_CHUNK):
            raise MessageInvalid(
                f"a piece of {len(data)} bytes{' that is not the last' if end < size else ''}",
                facts={"field": "data", "bytes": len(data), "min_bytes": MIN_CHUNK, "max_bytes": MAX_CHUNK},
            )
        if self.announced.sink is None:
            self._buffer[self.received : end] = data
        else:
            self.announced.sink.write(data)
        self._digest.update(data)
        self.received = end
        if end < size:
            return None
        if self._digest.digest() != self.announced.sha256:
            raise _corrupt("sha256", expected=self.announced.sha256.hex(), received=self._digest.hexdigest())
        return Whole(self.kind, self.header, self._buffer.toreadonly())


def _corrupt(what: str, *, expected: int | str, received: int | str) -> ChunkCorrupt:
    return ChunkCorrupt(
        f"{what}: {expected} expected, {received} received",
        facts={"what": what, "expected": expected, "received": received},
    )


Opener = Callable[[Any], Announced]
"""An opener returns the announcement of a header, or raises for a refused one."""


class Assembler:
    """Assembles the objects of a stream, one at a time; `openers` check the header fields, others are refused."""

    def __init__(self, openers: Mapping[str, Opener]) -> None:
        self._openers = openers
        self._current: _Object | None = None

    def feed(self, message: Any) -> Whole | None:
        """Take the next message of the stream; return the complete object after its last piece, otherwise None.

        Raise MessageInvalid for a header or piece out of order or of a size that is not allowed, ChunkCorrupt for
        another size or digest than announced, and the error of an opener that refuses a header.
        """
        kind = message.WhichOneof("message")
        current, self._current = self._current, None  # a refused object takes nothing any more
        if kind is not None:
            if current is not None or kind not in self._openers:
                raise MessageInvalid(f"a {kind} is not expected here", facts={"field": kind})
            header = getattr(message, kind)
            current = _Object(kind, header, self._openers[kind](header))
        elif current is None:
            raise MessageInvalid("a piece without a header", facts={"field": "data"})
        if (whole := current.add(message.data)) is None:
            self._current = current
        return whole

    def end(self) -> None:
        """Raise `ChunkCorrupt` if the stream ended inside an object."""
        if self._current is not None:
            raise ChunkCorrupt(
                f"the stream ended {self._current.received} bytes into a {self._current.kind}",
                facts={"what": "stream", "received": self._current.received},
            )


def assemble(messages: Iterable[Message], openers: Mapping[str, Opener]) -> Iterator[Whole]:
    """Yield every object of a stream that contains nothing else; raise as `Assembler.feed` and `end`."""
    assembler = Assembler(openers)
    for message in messages:
        if (whole := assembler.feed(message)) is not None:
            yield whole
    assembler.end()


def file_header(media_type: int, data: bytes) -> common_pb2.FileHeader:
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


def first_header(messages: Iterator[Any], what: str) -> Any:
    """Return the header that a call begins with, in its field `header`; raise MessageInvalid if it has bytes."""
    first = next(messages, None)
    if first is None or first.WhichOneof("message") != "header" or first.data:
        raise MessageInvalid(f"the first message of {what} must be its header", facts={"field": "header"})
    return first.header
