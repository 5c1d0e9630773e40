"""The latents of a Decode call come in groups of what has arrived, and a peer cannot fill the memory with messages."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator

import pytest

from ddib_fed.node.server import Pace
from ddib_fed.protocol.calls import ReadAhead
from ddib_fed.protocol.contract import agree
from ddib_fed.protocol.streams import MAX_CHUNK, MIN_CHUNK
from ddib_fed.v1 import decoding_pb2 as pb
from target_node.stream import AHEAD_BYTES, LEAST_WEIGHT, Arrived, latents_of, weight_of
from tests.node.tiny_nodes import gaussian
from tests.protocol.examples import limits_of
from tests.source_node.conftest import wait_until
from tests.target_node.conftest import side
from tests.target_node.sending import sent

LIMITS = limits_of(1_000, 10_000, 80_000, 10_000)
CONTRACT = agree(side("north.example"), side("south.example"), LIMITS)


def latent(number: int, points: int = 1) -> list[pb.DecodeRequest]:
    return sent(CONTRACT, gaussian(points, number), number)


class Peer:
    """Sends these messages, and notes how many were taken and whether all were."""

    def __init__(self, messages: Iterable[pb.DecodeRequest]) -> None:
        self._messages = messages
        self.taken = 0
        self.done = threading.Event()

    def __iter__(self) -> Iterator[pb.DecodeRequest]:
        for self.taken, message in enumerate(self._messages, 1):  # noqa: B020 - counted where others look
            yield message
        self.done.set()


def reading(peer: Peer) -> ReadAhead[pb.DecodeRequest]:
    return ReadAhead(iter(peer), AHEAD_BYTES, "upload", weigh=weight_of)


def groups_of(
    read: ReadAhead[pb.DecodeRequest], messages: Iterator[pb.DecodeRequest], most_rows: int = 16
) -> Iterator[list[Arrived]]:
    return latents_of(
        messages, CONTRACT, 1_000, Pace(10, between_s=10), ready=lambda: read.ready, most_rows=most_rows
    )


def test_no_latent_waits_for_one_that_is_half_here() -> None:
    """The beginning of the second one has come, and its peer is silent."""
    more = threading.Event()

    def messages() -> Iterator[pb.DecodeRequest]:
        second = sent(CONTRACT, gaussian(10_000, 1), 1)[0]
        first, second.data = second.data[:MIN_CHUNK], second.data[MIN_CHUNK:]
        yield from (*latent(0), pb.DecodeRequest(latent=second.latent, data=first))
        more.wait(5)
        yield pb.DecodeRequest(data=second.data)

    with reading(Peer(messages())) as read:
        taken = read.each()
        groups = groups_of(read, taken)
        assert [each.item for each in next(groups)] == [0]
        more.set()
        assert [[each.item for each in group] for group in groups] == [[1]]


@pytest.mark.parametrize(
    ("message", "most"),
    [
        (pb.DecodeRequest(data=bytes(MAX_CHUNK)), 1 + AHEAD_BYTES // MAX_CHUNK),
        (pb.DecodeRequest(data=bytes(4_000_000)), 3),
        (pb.DecodeRequest(), 1 + AHEAD_BYTES // LEAST_WEIGHT),
    ],
    ids=["large pieces", "the largest messages", "empty messages"],
)
def test_only_so_many_bytes_are_read_before_they_are_asked_for(message, most) -> None:
    """Whatever the peer says of them, and however small they are."""
    peer = Peer(itertools.repeat(message))
    with reading(peer) as read:
        taken = read.each()
        wait_until(lambda: peer.taken == most)
        threading.Event().wait(0.02)
        assert peer.taken == most
        del taken
