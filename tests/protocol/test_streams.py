"""Bytes to chunks and back; every way in which a stream can be torn, reordered or lie."""

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
    Joiner,
    assemble,
    file_header,
    open_file,
    pieces,
    stream,
    stream_file,
)
from ddib_fed.v1 import common_pb2, translation_pb2

LIMIT = 4 << 20
NPY = common_pb2.MEDIA_TYPE_NPY
SIZES = st.one_of(
    st.integers(0, 3 * MAX_CHUNK),
    st.sampled_from(
        [0, 1, MIN_CHUNK - 1, MIN_CHUNK, MIN_CHUNK + 1, CHUNK, 2 * CHUNK, MAX_CHUNK, MAX_CHUNK + 1]
    ),
)
PATTERN = bytes(itertools.islice(itertools.cycle(range(251)), 3 * MAX_CHUNK))


def announced(data: bytes, **changes) -> Announced:
    fields = {"size_bytes": len(data), "sha256": hashlib.sha256(data).digest(), "max_bytes": LIMIT}
    return Announced(**{**fields, **changes})


def split(data, chunk_bytes):
    return (ChunkFrame(3, index, piece) for index, piece in enumerate(pieces(data, chunk_bytes)))


def join(chunks, data: bytes, count: int | None = None) -> bytes:
    joiner = Joiner(announced(data))
    chunks = list(chunks)
    for chunk in chunks:
        joiner.feed(chunk.index, chunk.data)
    return joiner.finish(len(chunks) if count is None else count)


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


def test_bytes_fed_one_by_one_are_refused():
    """Small chunks would exhaust a receiver; only the last may be small."""
    data = PATTERN[: 2 * MIN_CHUNK]
    with pytest.raises(MessageInvalid):
        Joiner(announced(data)).feed(0, data[:1])


def test_a_chunk_over_the_maximum_is_refused():
    """Whatever was announced."""
    data = PATTERN[: MAX_CHUNK + 1]
    with pytest.raises(MessageInvalid):
        Joiner(announced(data)).feed(0, data)


def test_an_empty_chunk_is_refused():
    """A stream of them would never end."""
    with pytest.raises(MessageInvalid):
        Joiner(announced(b"")).feed(0, b"")


def test_more_bytes_than_announced_are_refused_at_once():
    """The chunk that goes over is not kept."""
    joiner = Joiner(announced(PATTERN[:MIN_CHUNK]))
    with pytest.raises(ChunkCorrupt) as caught:
        joiner.feed(0, PATTERN[: MIN_CHUNK + 1])
    assert joiner.received_bytes == 0
    assert caught.value.facts["what"] == "bytes"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_trailer_with_another_count_is_refused(count):
    """The count is of the chunks that came."""
    data = PATTERN[: 2 * MIN_CHUNK]
    with pytest.raises(ChunkCorrupt):
        join(split(data, MIN_CHUNK), data, count)


def test_an_announced_size_over_the_limit_is_refused_before_anything_is_buffered():
    """The error is raised by the announcement itself, with both sizes."""
    with pytest.raises(PointsTooMany) as caught:
        announced(b"", size_bytes=LIMIT + 1)
    assert caught.value.facts == {"size_bytes": str(LIMIT + 1), "limit_bytes": str(LIMIT)}


def test_nothing_is_taken_after_the_end():
    """Neither a chunk nor a second trailer."""
    joiner = Joiner(announced(b"abc"))
    joiner.feed(0, b"abc")
    joiner.finish(1)
    with pytest.raises(MessageInvalid):
        joiner.feed(1, b"d")
    with pytest.raises(MessageInvalid):
        joiner.finish(1)


def test_nothing_is_taken_after_a_refusal():
    """A stream that was refused once cannot be repaired by what follows."""
    joiner = Joiner(announced(b"abc"))
    with pytest.raises(ChunkCorrupt):
        joiner.feed(1, b"abc")
    with pytest.raises(MessageInvalid):
        joiner.feed(0, b"abc")


@given(sizes=st.lists(st.integers(0, 2 * MIN_CHUNK), max_size=4))
def test_a_stream_of_several_files_comes_back_in_order(sizes):
    """Header, chunks, trailer for each; nothing is mixed."""
    files = [PATTERN[:size] for size in sizes]
    messages = itertools.chain.from_iterable(submission(data, chunk_bytes=MIN_CHUNK) for data in files)
    assert [whole.data for whole in assemble(messages, openers())] == files


class _Asked(io.BytesIO):
    """A file that notes how much it was asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.asked: list[int] = []

    def read(self, size: int | None = -1) -> bytes:
        self.asked.append(-1 if size is None else size)
        return super().read(size)


@pytest.mark.parametrize("size", [0, 448, CHUNK, CHUNK + 1])
def test_a_file_is_asked_for_what_is_left_of_it(size):
    """A read sets aside what it asks for: a megabyte for each small result would be many at once."""
    data = PATTERN[:size]
    file = _Asked(data)
    header = file_header(NPY, data)
    messages = list(stream_file(translation_pb2.SubmitJobRequest, "item", header, file, len(data)))
    assert [whole.data for whole in assemble(messages, openers())] == [data]
    assert sum(file.asked) == size


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


@given(order=st.permutations(range(5)).filter(lambda order: list(order) != [0, 1, 2, 3, 4]))
def test_no_other_order_of_a_stream_yields_the_file(order):
    """Whatever the permutation, a named error and no bytes."""
    messages = submission(PATTERN[: 3 * MIN_CHUNK], chunk_bytes=MIN_CHUNK)
    with pytest.raises((ChunkCorrupt, MessageInvalid)):
        list(assemble([messages[i] for i in order], openers()))


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


def test_a_file_shorter_than_announced_is_refused_although_its_digest_is_right():
    """Whoever announces 70,000 bytes, and sends 65,536 with their own digest, sent no whole file."""
    data = PATTERN[:MIN_CHUNK]
    joiner = Joiner(announced(data, size_bytes=len(data) + 4_464))
    joiner.feed(0, data)
    with pytest.raises(ChunkCorrupt) as caught:
        joiner.finish(1)
    assert caught.value.facts["what"] == "bytes"
