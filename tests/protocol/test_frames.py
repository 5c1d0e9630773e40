"""Frames are, byte for byte, what protobuf writes and reads; anything else goes to protobuf."""

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from ddib_fed.protocol.streams import ChunkFrame, chunk_field, frame_deserialiser
from ddib_fed.v1 import common_pb2, decoding_pb2, translation_pb2

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
    "more",
    [b"\x18\x01", b"\x22\x02\x08\x01", b"\x00"],
    ids=["an unknown field in the message", "another field", "an invalid tag"],
)
def test_a_message_with_more_than_a_chunk_is_left_to_protobuf(more):
    """So that its checks see what is beside or inside the chunk."""
    written = decoding_pb2.DecodeRequest(chunk=common_pb2.Chunk(index=1, data=b"x")).SerializeToString()
    try:
        read = frame_deserialiser(decoding_pb2.DecodeRequest.FromString)(written + more)
    except Exception:  # noqa: BLE001 - protobuf refuses it
        return
    assert not isinstance(read, ChunkFrame)


def test_a_chunk_longer_than_its_message_is_left_to_protobuf():
    """Which refuses it: the data would begin inside the chunk and end outside."""
    with pytest.raises(DecodeError):
        frame_deserialiser(decoding_pb2.DecodeRequest.FromString)(bytes([0x1A, 3, 0x12, 5]) + b"abcde")


def test_an_unknown_field_inside_a_chunk_is_left_to_protobuf():
    """It could hold a picture."""
    inner = common_pb2.Chunk(data=b"x").SerializeToString() + b"\x1a\x01y"
    written = bytes([0x1A, len(inner)]) + inner
    assert not isinstance(frame_deserialiser(decoding_pb2.DecodeRequest.FromString)(written), ChunkFrame)
