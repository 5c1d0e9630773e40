"""A suspended peer stays admitted and is neither served nor called; a file says so, whatever is in it."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest

from ddib_fed.errors import InputError, PeerNotFound, PeerSuspended
from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.security import tls
from ddib_fed.v1 import decoding_pb2 as pb
from tests.node.institutions import Institution
from tests.node.listening import ASK, HOP, Listening, Requests


@pytest.fixture
def north(tmp_path: Path) -> Institution:
    made = Institution("north.example", tmp_path / "north")
    made.admit(Institution("south.example", tmp_path / "south"))
    return made


@pytest.fixture
def node(north: Institution, tmp_path: Path):
    south = Institution("west.example", tmp_path / "west")
    south.admit(north)
    made = Listening(south)
    yield made
    made.close()


def test_a_suspension_is_on_the_disk_and_ends_when_it_is_lifted(north: Institution) -> None:
    """Another store of the same folder, as after a restart, knows it; the peer's entry stays as it was."""
    before = north.store.list()
    assert north.store.suspend("south.example", reason="audit until Friday")
    assert not north.store.suspend("south.example")
    assert north.store.list() == before
    with pytest.raises(PeerSuspended, match="audit until Friday"):
        north.store.get("south.example")
    assert north.store.resume("south.example")
    assert not north.store.resume("south.example")
    assert north.store.get("south.example") == before[0]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b'{"since": 1}', b"x" * 100_000])
def test_a_damaged_file_suspends_too(north: Institution, content: bytes) -> None:
    """Its presence counts: nobody is let in because a disk was full."""
    (north.folder / "peers" / "south.example.suspended").write_bytes(content)
    with pytest.raises(PeerSuspended):
        north.store.get("south.example")


def test_a_peer_that_is_removed_is_not_suspended_when_it_is_admitted_again(north: Institution) -> None:
    """The operator who admits it again has just compared its fingerprint."""
    north.store.suspend("south.example")
    (peer,) = north.store.list()
    north.store.remove("south.example")
    north.store.add(peer, fingerprints=peer.fingerprints)
    assert north.store.get("south.example") == peer


def test_a_replaced_entry_stays_suspended(north: Institution) -> None:
    """A new address is no reason to talk to it again."""
    north.store.suspend("south.example")
    (peer,) = north.store.list()
    moved = type(peer)(peer.institution, peer.identity, "moved.example:1", peer.roots)
    north.store.add(moved, fingerprints=[], replace=True)
    with pytest.raises(PeerSuspended):
        north.store.get("south.example")


def test_only_a_peer_is_suspended_and_a_reason_is_one_line(north: Institution) -> None:
    """Nothing is written otherwise."""
    for act in (north.store.suspend, north.store.resume):
        with pytest.raises(PeerNotFound):
            act("nobody.example")
    for reason in ("two\nlines", "x" * 201):
        with pytest.raises(InputError, match="reason"):
            north.store.suspend("south.example", reason=reason)
    assert north.store.snapshot().suspended == {}


def test_a_suspended_caller_reads_why_and_is_served_again_later(node: Listening, north: Institution) -> None:
    """On the connection that it has; what the operator wrote stays on this node."""
    with node.stub(north) as stub:
        stub.DescribeDomain(ASK, timeout=5)
        node.south.store.suspend("north.example", reason="secret matter")
        with pytest.raises(grpc.RpcError) as error:
            stub.DescribeDomain(ASK, timeout=5)
        found = from_rpc_error(error.value, HOP)
        assert type(found) is PeerSuspended
        assert found.facts == {"peer": "north.example", "by": "west.example"}
        assert "secret" not in str(error.value.trailing_metadata()) + error.value.details()
        node.south.store.resume("north.example")
        stub.DescribeDomain(ASK, timeout=5)


def test_a_suspended_callers_idle_stream_is_swept(node: Listening, north: Institution) -> None:
    """Nothing is sent in either direction; it ends, and the refusal is in the audit log."""
    requests = Requests()
    with node.stub(north) as stub:
        call = stub.Decode(requests, timeout=10)
        requests.send(pb.DecodeRequest())
        next(call)
        node.south.store.suspend("north.example")
        assert node.auth.calls.sweep() == 1
        with pytest.raises(grpc.RpcError):
            next(call)
    assert node.echo.ended.wait(10)
    assert [(act, line["reason"]) for act, line in node.audit] == [("refused", "PEER_SUSPENDED")]
    requests.close()


def test_the_channel_to_a_suspended_peer_is_closed_at_once(node: Listening, north: Institution) -> None:
    """Streams to it end with it; resumed, there is another."""
    north.admit(node.south, node.address)
    channels = tls.PeerChannels(north.pki, north.store)
    try:
        ask = channels.get("west.example").unary_unary(
            "/ddib_fed.v1.DecodingService/DescribeDomain",
            request_serializer=pb.DescribeDomainRequest.SerializeToString,
            response_deserializer=pb.DescribeDomainResponse.FromString,
        )
        ask(ASK, timeout=5)
        north.store.suspend("west.example")
        channels.refresh()
        with pytest.raises((grpc.RpcError, ValueError)):
            ask(ASK, timeout=5)
        with pytest.raises(PeerSuspended):
            channels.get("west.example")
        north.store.resume("west.example")
        assert channels.get("west.example") is not None
    finally:
        channels.close()
