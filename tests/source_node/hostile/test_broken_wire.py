"""One bit of the TLS stream turned over between two nodes costs a try and never a job."""

from __future__ import annotations

import threading

import pytest

from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb
from tests.node.flipping import BitFlipper
from tests.node.tiny_nodes import npy


@pytest.fixture
def wire(institutions, target):
    """Between north and south, whose node is the scripted target."""
    north, south = institutions
    with BitFlipper(target.port) as made:
        north.store.remove(south.name)
        north.admit(south, made.address)
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("direction", ["to_client", "to_server"])
def test_a_flipped_bit_in_a_stream_is_tried_again(source, target, wire, direction) -> None:
    """From target to source gRPC says UNKNOWN, "Stream removed", and the other way UNAVAILABLE: both are retried."""

    def flipped(target, header, items, context):
        ended = threading.Event()
        context.add_callback(ended.set)
        item, _latent = next(items)
        wire.arm(direction)
        while not wire.flipped:  # the client's window updates are what passes to the server
            yield pb.DecodeResponse(progress=pb.DecodeProgress(item=item, stage="decode", step=1, steps=2))
        ended.wait(10)

    target.decodes = [flipped]
    job = source.start().ended(source.submit(*[npy(seed=n) for n in range(3)]))
    assert (str(job.state), source.states(job)) == ("FINISHED", ["DECODED"] * 3), job.error
    assert (len(target.seen), wire.flipped) == (2, 1)


def test_a_message_over_the_limit_is_not_asked_for_again(source, target) -> None:
    """RESOURCE_EXHAUSTED of gRPC's own limit would come each time: the job fails at its first try, and says so."""

    def oversized(target, header, items, context):
        next(items)
        yield pb.DecodeResponse(chunk=common_pb2.Chunk(data=bytes(5 << 20)))

    target.decodes = [oversized, oversized, oversized]
    job = source.start().ended(source.submit())
    assert (str(job.state), job.error.reason, len(target.seen)) == ("FAILED", "PEER_FAULT", 1)
