"""Bytes to chunks and back; every way in which a stream can be torn, reordered or lie; frames are protobuf's bytes."""

import hashlib
import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddib_fed.errors import ChunkCorrupt, MessageInvalid, PointsTooMany
from ddib_fed.protocol.streams import (
    CHUNK,
    MAX_CHUNK,
    MIN_CHUNK,
    Announced,
    Assembler,
    ChunkFrame,
    assemble,
    chunk_field,
    file_header,
    frame_deserialiser,
    open_file,
    pieces,
    stream,
    stream_file,
)
from ddib_fed.v1 import common_pb2, decoding_pb2, translation_pb2

LIMIT = 4 << 20
NPY = common_pb2.MEDIA_TYPE_NPY
SIZES = st.one_of(
    st.integers(0, 3 * MAX_CHUNK),
    st.sampled_from(
        [0, 1, MIN_CHUNK - 1, MIN_CHUNK, MIN_CHUNK + 1, CHUNK, 2 * CHUNK, MAX_CHUNK, MAX_CHUNK + 1]
    ),
)
PATTERN = bytes(itertools.islice(itertools.cycle(range(251)), 3 * MAX_CHUNK))


def join(chunks, data: bytes, count: int | None = None, **changes) -> bytes:
    """The chunks, as those of one announced object."""
    fields = {"size_bytes": len(data), "sha256": hashlib.sha256(data).digest(), "max_bytes": LIMIT}
    assembler = Assembler({"item": lambda _: Announced(**{**fields, **changes})})
    chunks = list(chunks)
    assembler.feed(translation_pb2.SubmitJobRequest(item=common_pb2.FileHeader()))
    for chunk in chunks:
        assembler.feed(chunk)
    trailer = common_pb2.Trailer(chunks=len(chunks) if count is None else count)
    whole = assembler.feed(translation_pb2.SubmitJobRequest(trailer=trailer))
    return whole.data


def split(data, chunk_bytes):
    return [ChunkFrame(3, index, piece) for index, piece in enumerate(pieces(data, chunk_bytes))]


def submission(data: bytes, header: common_pb2.FileHeader | None = None, chunk_bytes: int = CHUNK) -> list:
    return list(
        stream(translation_pb2.SubmitJobRequest, "item", header or file_header(NPY, data), data, chunk_bytes)
    )


def openers(max_bytes: int = LIMIT) -> dict:
    return {"item": lambda header: open_file(header, max_bytes=max_bytes, accepted={NPY})}


@given(size=SIZES, chunk_bytes=st.integers(MIN_CHUNK, MAX_CHUNK))
def test_split_then_join_is_the_identity(size, chunk_bytes):
    """Any size comes back whole from any legal chunk size."""
    data = PATTERN[:size]
    assert join(split(data, chunk_bytes), data) == data


@given(dropped=st.integers(0, 3))
def test_a_dropped_chunk_is_refused(dropped):
    """A gap, or a missing last chunk, never yields bytes."""
    data = PATTERN[: 4 * MIN_CHUNK]
    chunks = [chunk for chunk in split(data, MIN_CHUNK) if chunk.index != dropped]
    with pytest.raises(ChunkCorrupt):
        join(chunks, data)


@given(position=st.integers(0, 2 * MIN_CHUNK), flip=st.integers(1, 255))
def test_a_changed_byte_is_refused(position, flip):
    """The digest is over every byte."""
    data = PATTERN[: 2 * MIN_CHUNK + 1]
    wrong = bytearray(data)
    wrong[position] ^= flip
    with pytest.raises(ChunkCorrupt) as caught:
        join(split(bytes(wrong), MIN_CHUNK), data)
    assert caught.value.facts["what"] == "sha256"


@pytest.mark.parametrize(
    ("size", "chunks", "error", "what"),
    [
        (2 * MIN_CHUNK, [(0, 1)], MessageInvalid, "chunk"),
        (MAX_CHUNK + 1, [(0, MAX_CHUNK + 1)], MessageInvalid, "chunk"),
        (0, [(0, 0)], MessageInvalid, "chunk"),
        (MIN_CHUNK, [(0, MIN_CHUNK + 1)], ChunkCorrupt, "bytes"),
        (MIN_CHUNK, [(1, MIN_CHUNK)], ChunkCorrupt, "chunk"),
        (MIN_CHUNK + 4_464, [(0, MIN_CHUNK)], ChunkCorrupt, "bytes"),
    ],
    ids=[
        "small and not the last",
        "over the maximum",
        "empty",
        "more than announced",
        "out of order",
        "less",
    ],
)
def test_a_chunk_that_is_not_due_is_refused(size, chunks, error, what):
    """Small chunks would exhaust a receiver, and empty ones would never end."""
    data = PATTERN[:size]
    made = [ChunkFrame(3, index, memoryview(PATTERN)[:length]) for index, length in chunks]
    with pytest.raises(error) as caught:
        join(made, data)
    assert what in {caught.value.facts.get("what"), caught.value.facts.get("field")}


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_trailer_with_another_count_is_refused(count):
    """The count is of the chunks that came."""
    data = PATTERN[: 2 * MIN_CHUNK]
    with pytest.raises(ChunkCorrupt):
        join(split(data, MIN_CHUNK), data, count)


def test_an_announced_size_over_the_limit_is_refused_before_anything_is_buffered():
    """The error is raised by the announcement itself, with both sizes."""
    with pytest.raises(PointsTooMany) as caught:
        join([], b"", size_bytes=LIMIT + 1)
    assert caught.value.facts == {"size_bytes": str(LIMIT + 1), "limit_bytes": str(LIMIT)}


def test_nothing_is_taken_after_a_refusal():
    """A stream that was refused once cannot be repaired by what follows."""
    assembler = Assembler(openers())
    header, chunk, trailer = submission(b"abc")
    assembler.feed(header)
    with pytest.raises(ChunkCorrupt):
        assembler.feed(ChunkFrame(3, 1, memoryview(b"abc")))
    for late in (chunk, trailer):
        with pytest.raises(MessageInvalid):
            assembler.feed(late)


@given(sizes=st.lists(st.integers(0, 2 * MIN_CHUNK), max_size=4))
def test_a_stream_of_several_files_comes_back_in_order(sizes):
    """Header, chunks, trailer for each; nothing is mixed."""
    files = [PATTERN[:size] for size in sizes]
    messages = itertools.chain.from_iterable(submission(data, chunk_bytes=MIN_CHUNK) for data in files)
    assert [whole.data for whole in assemble(messages, openers())] == files


def test_a_file_that_became_shorter_is_noticed_by_its_reader():
    """The stream ends in order and lacks bytes."""
    header = file_header(NPY, PATTERN[: 2 * CHUNK])
    file = io.BytesIO(PATTERN[:CHUNK])
    messages = list(stream_file(translation_pb2.SubmitJobRequest, "item", header, file, 2 * CHUNK))
    with pytest.raises(ChunkCorrupt):
        list(assemble(messages, openers()))


@given(data=st.data())
def test_a_stream_cut_anywhere_is_refused(data):
    """The end of a stream in the middle of a file is an error, at its boundary it is not."""
    messages = submission(PATTERN[: 3 * MIN_CHUNK], chunk_bytes=MIN_CHUNK)
    kept = messages[: data.draw(st.integers(1, len(messages) - 1))]
    with pytest.raises(ChunkCorrupt):
        list(assemble(kept, openers()))


def test_a_header_before_the_last_trailer_is_refused():
    """One file at a time."""
    first, *_ = submission(b"abc")
    with pytest.raises(MessageInvalid):
        list(assemble([first, first], openers()))


@pytest.mark.parametrize(
    "message",
    [
        translation_pb2.SubmitJobRequest(chunk=common_pb2.Chunk(data=b"x")),
        translation_pb2.SubmitJobRequest(trailer=common_pb2.Trailer()),
        translation_pb2.SubmitJobRequest(header=translation_pb2.JobHeader()),
        translation_pb2.SubmitJobRequest(),
    ],
)
def test_what_is_not_due_is_refused(message):
    """A chunk or trailer without a header, a second job header, and a message with nothing in it."""
    with pytest.raises(MessageInvalid):
        Assembler(openers()).feed(message)


def test_a_refused_header_opens_nothing():
    """What follows a refused header has no header."""
    assembler = Assembler(openers(max_bytes=2))
    header, chunk, _ = submission(b"abc")
    with pytest.raises(PointsTooMany):
        assembler.feed(header)
    with pytest.raises(MessageInvalid):
        assembler.feed(chunk)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"size_bytes": 2}, ChunkCorrupt),
        ({"size_bytes": 4}, MessageInvalid),
        ({"size_bytes": 2**64 - 1}, PointsTooMany),
        ({"sha256": bytes(32)}, ChunkCorrupt),
        ({"sha256": b"short"}, MessageInvalid),
        ({"media_type": common_pb2.MEDIA_TYPE_UNSPECIFIED}, MessageInvalid),
        ({"media_type": common_pb2.MEDIA_TYPE_PNG}, MessageInvalid),
    ],
)
def test_a_lying_file_header_is_refused(changes, error):
    """In size, digest or type."""
    header = file_header(NPY, b"abc")
    for field, value in changes.items():
        setattr(header, field, value)
    with pytest.raises(error):
        list(assemble(submission(b"abc", header), openers()))


# Frames

STREAMS = [
    decoding_pb2.DecodeRequest,
    decoding_pb2.DecodeResponse,
    translation_pb2.SubmitJobRequest,
    translation_pb2.FetchResultsResponse,
]
INDICES = st.one_of(st.integers(0, 300), st.integers(0, 2**21 - 1))


@pytest.mark.parametrize("kind", STREAMS)
@given(index=INDICES, data=st.binary(max_size=300))
def test_a_frame_is_written_as_protobuf_writes_it(kind, index, data):
    """And protobuf reads the same chunk."""
    written = ChunkFrame(chunk_field(kind), index, memoryview(data)).SerializeToString()
    chunk = kind.FromString(written).chunk
    assert (chunk.index, chunk.data) == (index, data)
    if data:
        assert written == kind(chunk=common_pb2.Chunk(index=index, data=data)).SerializeToString()


@pytest.mark.parametrize("kind", STREAMS)
@given(index=INDICES, data=st.binary(min_size=1, max_size=300))
def test_what_protobuf_writes_is_read_as_a_frame(kind, index, data):
    """Without a copy of the data."""
    read = frame_deserialiser(kind.FromString)(
        kind(chunk=common_pb2.Chunk(index=index, data=data)).SerializeToString()
    )
    assert isinstance(read, ChunkFrame)
    assert (read.WhichOneof("message"), read.chunk.index, read.chunk.data) == ("chunk", index, data)


@given(st.binary(max_size=40), st.integers(0, 40), st.integers(0, 255))
def test_damaged_bytes_are_read_as_protobuf_reads_them(data, place, byte):
    """One changed byte anywhere: the same chunk, another message, or protobuf's error; never something of our own."""
    written = bytearray(
        decoding_pb2.DecodeRequest(chunk=common_pb2.Chunk(index=5, data=data)).SerializeToString()
    )
    written[place % len(written)] = byte
    read = frame_deserialiser(decoding_pb2.DecodeRequest.FromString)
    try:
        expected = decoding_pb2.DecodeRequest.FromString(bytes(written))
    except Exception as error:  # noqa: BLE001 - protobuf's own kinds
        with pytest.raises(type(error)):
            read(bytes(written))
        return
    found = read(bytes(written))
    assert found.WhichOneof("message") == expected.WhichOneof("message")
    if expected.WhichOneof("message") == "chunk":
        assert (found.chunk.index, found.chunk.data) == (expected.chunk.index, expected.chunk.data)


@pytest.mark.parametrize(
    "more", [b"\x18\x01", b"\x22\x02\x08\x01"], ids=["an unknown field", "another field"]
)
def test_a_message_with_more_than_a_chunk_is_left_to_protobuf(more):
    """So that its checks see what is beside or inside the chunk: it could hold a picture."""
    read = frame_deserialiser(decoding_pb2.DecodeRequest.FromString)
    chunk = common_pb2.Chunk(index=1, data=b"x")
    assert not isinstance(
        read(decoding_pb2.DecodeRequest(chunk=chunk).SerializeToString() + more), ChunkFrame
    )
    inner = chunk.SerializeToString() + b"\x1a\x01y"
    assert not isinstance(read(bytes([0x1A, len(inner)]) + inner), ChunkFrame)
