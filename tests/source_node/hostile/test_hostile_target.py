"""A target over real mTLS whose answers hold what the protocol does not know or does not allow."""

from __future__ import annotations

import pytest

from ddib_fed.data.points import to_npy
from ddib_fed.engine.party import Control
from ddib_fed.errors import DdibError, PeerFault
from ddib_fed.latent import Latent
from ddib_fed.security import tls
from ddib_fed.v1 import decoding_pb2 as pb
from source_node.remote import Remotes
from tests.node.tiny_nodes import gaussian
from tests.source_node.scripted_target import instead, side
from tests.source_node.test_remote import Call

OWN = side("north.example", "moons")
# Field 127, three bytes: no message of the protocol has it.
STRANGE = b"\xfa\x07\x03pix"
FILE = to_npy(gaussian(40))


@pytest.fixture
def remotes(institutions, target):
    north, _ = institutions
    made = Remotes(tls.PeerChannels(north.pki, north.store), max_file_bytes=1 << 20, silence_s=5.0)
    yield made
    made.close()


def reach(message, path: str):
    for name in filter(None, path.split(".")):
        message = message[int(name)] if name.isdigit() else getattr(message, name)
    return message


def refused(call) -> DdibError:
    with pytest.raises(DdibError) as caught:
        call()
    assert isinstance(caught.value, PeerFault)
    assert (caught.value.hop, caught.value.facts["peer"]) == ("target south.example", "south.example")
    return caught.value


@pytest.mark.parametrize("path", ["", "side", "limits"])
def test_a_description_with_a_field_that_nobody_knows_is_refused(remotes, target, path) -> None:
    """At any depth: what is not understood could be anything."""
    target.forge = lambda answer: reach(answer, path).MergeFromString(STRANGE)
    assert refused(remotes.get("south.example").describe).facts["answer"] == "UNKNOWN_FIELDS"


@pytest.mark.parametrize("path", ["", "result", "result.file", "latent", "latent.tensor", "progress"])
def test_a_decoded_item_with_a_field_that_nobody_knows_is_refused(remotes, target, path) -> None:
    """In every message of the stream, and in every message inside it."""
    top = path.split(".")[0]

    def strange(target, item, latent):
        messages = [
            pb.DecodeResponse(progress=pb.DecodeProgress()),
            *target.result(item, FILE),
            *target.latent(item, Latent.from_array(gaussian(40))),
        ]
        for sent in messages:
            message = pb.DecodeResponse.FromString(sent.SerializeToString())
            if top in {"", message.WhichOneof("message")}:
                reach(message, path).MergeFromString(STRANGE)
            yield message

    target.decodes = [instead(1, strange)]
    assert refused(Call(remotes, round_trip=True).run).facts["answer"] == "UNKNOWN_FIELDS"


def test_a_field_out_of_range_is_refused_with_the_hop(remotes, target) -> None:
    """In a contract too, where only differences named the peer."""
    target.forge = lambda answer: setattr(reach(answer, "contract.target"), "terminal_lambda", float("nan"))
    remote = remotes.get("south.example")
    error = refused(lambda: remote.negotiate(OWN, "checkerboards", Control()))
    assert "terminal_lambda" in error.facts["found"]


def test_a_message_over_the_limit_is_not_asked_for_again(source, target) -> None:
    """RESOURCE_EXHAUSTED of gRPC's own limit would come each time: the job fails at its first try, and says so."""

    def oversized(target, header, items, context):
        next(items)
        yield pb.DecodeResponse(data=bytes(5 << 20))

    target.decodes = [oversized, oversized, oversized]
    job = source.start().ended(source.submit())
    assert (str(job.state), job.error.reason, len(target.seen)) == ("FAILED", "PEER_FAULT", 1)
