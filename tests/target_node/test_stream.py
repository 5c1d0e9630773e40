"""A Decode call's inside: groups of what has arrived, in order, bounded, and over when its caller is."""

import itertools
import threading
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from ddib_fed.engine.local_party import ServingParty
from ddib_fed.engine.party import Control
from ddib_fed.errors import LatentNotGaussian
from ddib_fed.latent import Latent
from ddib_fed.node.server import Pace
from ddib_fed.protocol.calls import ReadAhead
from ddib_fed.protocol.contract import agree
from ddib_fed.protocol.streams import MAX_CHUNK, MIN_CHUNK
from ddib_fed.v1 import decoding_pb2
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.v1.common_pb2 import SolverSettings
from target_node import stream
from tests.e2e.harness import wait_until
from tests.node.tiny_nodes import gaussian, tiny_bundle
from tests.protocol.examples import limits_of
from tests.target_node.conftest import sent, side

LIMITS = limits_of(100, 10_000, 80_000, 10_000)
CONTRACT = agree(side("north.example"), side("south.example"), LIMITS)


def latents(*sizes: int):
    for number, size in enumerate(sizes):
        yield number, Latent.from_array(gaussian(size, number))


def one_by_one(items):
    for number, latent in items:
        yield [stream.Arrived(number, latent)]


def open_stream(
    engine, items, *, control=None, on_items=len, evaluations=8, round_trip=False, **more
) -> stream.DecodeStream:
    header = decoding_pb2.DecodeHeader(solver=SolverSettings(evaluations=evaluations), round_trip=round_trip)
    return stream.DecodeStream(
        engine, header, CONTRACT, one_by_one(items), control or Control(), on_items, **more
    )


def translated(events) -> list[stream.DecodedFile]:
    return [event for event in events if isinstance(event, stream.DecodedFile)]


def test_a_refusal_does_not_wait_for_the_peers_next_latent(engine) -> None:
    """The peer has sent what it may and waits for answers: neither side would move again."""
    answered, in_time = threading.Event(), []

    def items():
        for number in range(12):
            points = np.full((3, 2), 30, np.float32) if number == 1 else gaussian(3, number)
            yield number, Latent.from_array(points)
        in_time.append(answered.wait(60))

    with pytest.raises(LatentNotGaussian) as refused:
        list(open_stream(engine, items(), end_input=answered.set).run())
    assert all(in_time), "the refusal waited for the next latent"
    assert refused.value.facts["item"] == "1"


@pytest.mark.slow
def test_only_so_many_items_are_in_memory_whatever_the_peer_sends() -> None:
    """Two calls' rows are in flight, one file is on the wire, one waits and one is made: then no latent is taken."""
    engine = ServingParty(tiny_bundle(), device="cpu", threads=1, merge_rows=6)
    delivered, most = 0, 0

    def counted():
        nonlocal most
        for number, latent in latents(*[3] * 50):
            most = max(most, number + 1 - delivered)
            yield number, latent

    for event in open_stream(engine, counted()).run():
        delivered += isinstance(event, stream.DecodedFile)
    engine.close()
    assert delivered == 50
    assert most <= 2 * 6 // 3 + 1 + stream.READY + 2


def test_something_is_said_while_nothing_happens(engine, monkeypatch) -> None:
    monkeypatch.setattr(stream, "SIGN_OF_LIFE_S", 0.01)
    go_on = threading.Event()

    def late():
        go_on.wait(20)
        yield from latents(3)

    events = open_stream(engine, late()).run()
    assert next(events) == decoding_pb2.DecodeProgress()
    go_on.set()
    assert len(translated(events)) == 1


@pytest.mark.slow
def test_a_call_that_is_dropped_costs_no_further_step(fresh_engine) -> None:
    """Its sender is closed, as gRPC does when the caller is gone: nobody has cancelled, and the engine stops."""
    events = open_stream(fresh_engine, latents(*[500] * 8), evaluations=5_000).run()
    next(events)
    events.close()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("decode")])
    assert fresh_engine.executor.counters["calls"] < 5_000


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
    return ReadAhead(iter(peer), stream.AHEAD_BYTES, "upload", weigh=stream.weight_of)


def groups_of(
    read: ReadAhead[pb.DecodeRequest], messages: Iterator[pb.DecodeRequest], most_rows: int = 16
) -> Iterator[list[stream.Arrived]]:
    return stream.latents_of(
        messages, CONTRACT, 1_000, Pace(10, between_s=10), ready=lambda: read.ready, most_rows=most_rows
    )


def test_no_latent_waits_for_one_that_is_half_here() -> None:
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
        (pb.DecodeRequest(data=bytes(MAX_CHUNK)), 1 + stream.AHEAD_BYTES // MAX_CHUNK),
        (pb.DecodeRequest(data=bytes(4_000_000)), 3),
        (pb.DecodeRequest(), 1 + stream.AHEAD_BYTES // stream.LEAST_WEIGHT),
    ],
    ids=["large pieces", "the largest messages", "empty messages"],
)
def test_only_so_many_bytes_are_read_before_they_are_asked_for(message, most) -> None:
    peer = Peer(itertools.repeat(message))
    with reading(peer) as read:
        taken = read.each()
        wait_until(lambda: peer.taken == most)
        threading.Event().wait(0.02)
        assert peer.taken == most
        del taken
