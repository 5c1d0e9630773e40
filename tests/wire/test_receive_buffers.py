"""One buffer for what was announced."""

import numpy as np
import pytest

from ddib_fed.protocol.streams import Buffers, ReceiveBuffer


@pytest.mark.parametrize("size", [0, 1, 1_000, 5 << 20])
def test_what_is_written_is_there_and_cannot_be_changed(size):
    """In small pages and in huge ones."""
    buffer, piece = ReceiveBuffer(size), bytes(range(250))
    written = b""
    while len(written) < min(size, 5_000):
        buffer.write(memoryview(piece)[: size - len(written)])
        written += piece[: size - len(written)]
    assert buffer.whole() == written
    assert buffer.whole().readonly


def test_more_than_announced_is_refused():
    """The joiner has refused it before."""
    buffer = ReceiveBuffer(3)
    buffer.write(b"abc")
    with pytest.raises(ValueError, match="assignment"):
        buffer.write(b"d")


def test_a_large_buffer_is_used_again_once_its_last_view_is_gone():
    """A view of a view counts too, and an array on it."""
    buffers = Buffers()
    first = buffers.take(5 << 20)
    address = np.frombuffer(first, np.uint8).ctypes.data
    view = np.frombuffer(first[100:200].toreadonly(), np.uint8)
    del first
    other = buffers.take(5 << 20)
    assert np.frombuffer(other, np.uint8).ctypes.data != address
    del view
    again = buffers.take(4 << 20)
    assert len(again) == 4 << 20
    assert np.frombuffer(again, np.uint8).ctypes.data == address


def test_buffers_of_another_size_are_not_taken():
    """Neither one that is too small nor one of which most would lie idle."""
    buffers = Buffers()
    seen = set()
    for size in (8 << 20, 9 << 20, 3 << 20):
        taken = buffers.take(size)
        seen.add(np.frombuffer(taken, np.uint8).ctypes.data)
        keep = taken if size == 3 << 20 else None
        del taken
    assert keep is not None
    assert len(seen) == 3


def test_no_more_is_kept_than_allowed():
    """What is beyond goes back to the system."""
    buffers = Buffers(most_bytes=10 << 20)
    taken = [buffers.take(4 << 20) for _ in range(4)]
    taken.clear()
    assert buffers.kept_bytes == 8 << 20
    buffers.take(20 << 20)
    assert buffers.kept_bytes == 8 << 20


def test_what_an_earlier_object_left_is_never_read():
    """Only what was written is given out."""
    full = ReceiveBuffer(5 << 20)
    full.write(b"x" * (5 << 20))
    del full
    short = ReceiveBuffer(5 << 20)
    short.write(b"ab")
    assert bytes(short.whole()) == b"ab"
