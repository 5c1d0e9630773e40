"""Bytes to messages and back; every way in which a stream can be torn, reordered or lie."""

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddib_fed.errors import ChunkCorrupt, MessageInvalid, PointsTooMany
from ddib_fed.protocol import streams
from ddib_fed.v1 import common_pb2
from ddib_fed.v1.translation_pb2 import JobHeader, SubmitJobRequest

LIMIT = 4 << 20
NPY = common_pb2.MEDIA_TYPE_NPY
SIZES = st.one_of(
    st.integers(0, 3 * streams.MAX_CHUNK),
    st.sampled_from(
        [0, 1, streams.MIN_CHUNK, streams.MAX_CHUNK, streams.MAX_CHUNK + 1, 2 * streams.MAX_CHUNK]
    ),
)
PATTERN = bytes(itertools.islice(itertools.cycle(range(251)), 3 * streams.MAX_CHUNK))


def submission(data: bytes) -> list[SubmitJobRequest]:
    return list(streams.stream(SubmitJobRequest, "item", streams.file_header(NPY, data), data))


def pieces(data: bytes, *sizes: int) -> list[SubmitJobRequest]:
    """Announces `data`, and sends pieces of these sizes."""
    ends = list(itertools.accumulate(sizes))
    made = [
        SubmitJobRequest(data=(data + PATTERN)[end - size : end])
        for size, end in zip(sizes, ends, strict=True)
    ]
    made[0].item.CopyFrom(streams.file_header(NPY, data))
    return made


def openers(max_bytes: int = LIMIT) -> dict:
    return {"item": lambda header: streams.open_file(header, max_bytes=max_bytes, accepted={NPY})}


def joined(messages) -> list[bytes]:
    return [bytes(whole.data) for whole in streams.assemble(messages, openers())]


@given(sizes=st.lists(SIZES, max_size=3))
def test_files_of_any_size_come_back_in_order(sizes):
    """The first piece of each lies beside its header; nothing is mixed."""
    files = [PATTERN[:size] for size in sizes]
    sent = [message for data in files for message in submission(data)]
    assert len(sent) == sum(max(1, -(-size // streams.MAX_CHUNK)) for size in sizes)
    assert joined(sent) == files


@given(dropped=st.integers(0, 2), position=st.integers(0, 2 * streams.MAX_CHUNK), flip=st.integers(1, 255))
def test_a_dropped_piece_and_a_changed_byte_are_refused(dropped, position, flip):
    data = PATTERN[: 2 * streams.MAX_CHUNK + 1]
    messages = submission(data)
    with pytest.raises((ChunkCorrupt, MessageInvalid)):
        joined(messages[:dropped] + messages[dropped + 1 :])
    wrong = bytearray(data)
    wrong[position] ^= flip
    changed = list(streams.stream(SubmitJobRequest, "item", streams.file_header(NPY, data), bytes(wrong)))
    with pytest.raises(ChunkCorrupt) as caught:
        joined(changed)
    assert caught.value.facts["what"] == "sha256"


@pytest.mark.parametrize(
    ("size", "sizes", "error"),
    [
        (2 * streams.MIN_CHUNK, [1], MessageInvalid),
        (2 * streams.MIN_CHUNK, [streams.MIN_CHUNK, streams.MIN_CHUNK - 1], MessageInvalid),
        (2 * streams.MIN_CHUNK, [0], MessageInvalid),
        (2 * streams.MAX_CHUNK, [streams.MAX_CHUNK + 1], MessageInvalid),
        (streams.MIN_CHUNK, [streams.MIN_CHUNK + 1], ChunkCorrupt),
        (streams.MIN_CHUNK + 4_464, [streams.MIN_CHUNK], ChunkCorrupt),
    ],
    ids=["small", "a small one later", "empty", "over the maximum", "more than announced", "less"],
)
def test_a_piece_that_is_not_due_is_refused(size, sizes, error):
    """Small pieces would exhaust a receiver, and empty ones would never end."""
    with pytest.raises(error):
        joined(pieces(PATTERN[:size], *sizes))


def test_an_announced_size_over_the_limit_is_refused_before_anything_is_buffered():
    with pytest.raises(PointsTooMany) as caught:
        streams.open_file(streams.file_header(NPY, bytes(9)), max_bytes=8, accepted={NPY})
    assert caught.value.facts == {"size_bytes": "9", "limit_bytes": "8"}


def test_nothing_is_taken_after_a_refusal():
    header, more, _ = submission(PATTERN[: 2 * streams.MAX_CHUNK + 1])
    assembler = streams.Assembler(openers())
    assembler.feed(header)
    with pytest.raises(MessageInvalid):
        assembler.feed(SubmitJobRequest(data=b"x"))
    with pytest.raises(MessageInvalid):
        assembler.feed(more)
    small = streams.Assembler(openers(max_bytes=2))
    with pytest.raises(PointsTooMany):
        small.feed(header)
    with pytest.raises(MessageInvalid):
        small.feed(more)


def test_what_is_not_due_is_refused():
    """A piece without a header, a header inside an object, a second job header, and a message with nothing in it."""
    first = submission(PATTERN)[0]
    for messages in (
        [SubmitJobRequest(data=b"x")],
        [first, first],
        [SubmitJobRequest(header=JobHeader())],
        [SubmitJobRequest()],
    ):
        with pytest.raises(MessageInvalid):
            joined(messages)


def test_a_call_begins_with_its_header_alone():
    header = SubmitJobRequest(header=JobHeader(items=3))
    assert streams.first_header(iter([header]), "SubmitJob").items == 3
    header.data = b"pixels"
    for wrong in ([header], submission(b"abc"), []):
        with pytest.raises(MessageInvalid):
            streams.first_header(iter(wrong), "SubmitJob")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"size_bytes": 2}, ChunkCorrupt),
        ({"size_bytes": 4}, MessageInvalid),
        ({"size_bytes": 2**64 - 1}, PointsTooMany),
        ({"sha256": bytes(32)}, ChunkCorrupt),
        ({"sha256": b"short"}, MessageInvalid),
        ({"media_type": common_pb2.MEDIA_TYPE_PNG}, MessageInvalid),
    ],
)
def test_a_lying_file_header_is_refused(changes, error):
    header = common_pb2.FileHeader(media_type=NPY, size_bytes=3, sha256=hashlib.sha256(b"abc").digest())
    for field, value in changes.items():
        setattr(header, field, value)
    with pytest.raises(error):
        joined(streams.stream(SubmitJobRequest, "item", header, b"abc"))
