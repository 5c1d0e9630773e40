"""Who calls, and may they: against a real server over real mutual TLS."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from ddib_fed.errors import (
    PeerUnknown,
    PolicyDenied,
    Unauthenticated,
)
from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.security import pki
from ddib_fed.security.admission import presented_certificate
from ddib_fed.v1 import decoding_pb2 as pb
from tests.node.institutions import Institution
from tests.node.listening import ASK, DESCRIBE, HOP, Listening, Requests, failure


def test_a_method_that_is_not_the_callers_is_refused_before_its_message_is_parsed(
    node: Listening, north: Institution, tmp_path: Path
) -> None:
    """Garbage from somebody who may not call is refused for who sends it, not for what it is."""
    pki.issue_client(north.pki, tmp_path / "alice", "alice")
    with node.channel(north, pki_folder=tmp_path / "alice") as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(DESCRIBE)(b"\xff\xff\xff", timeout=5)
    assert type(from_rpc_error(error.value, HOP)) is PolicyDenied


def test_a_caller_who_may_not_call_need_not_send_anything_to_be_refused(
    node: Listening, north: Institution, tmp_path: Path
) -> None:
    """No thread waits for the message of a stranger."""
    pki.issue_client(north.pki, tmp_path / "alice", "alice")
    silent = Requests()
    with node.channel(north, pki_folder=tmp_path / "alice") as channel, pytest.raises(grpc.RpcError) as error:
        channel.stream_unary(DESCRIBE)(silent, timeout=5)
    assert type(from_rpc_error(error.value, HOP)) is PolicyDenied
    silent.close()


def test_a_certificate_that_expires_ends_the_admission(node: Listening, north: Institution) -> None:
    """On the connection that was made while it was good, although it was verified before."""
    with node.stub(north) as stub:
        stub.DescribeDomain(ASK, timeout=5)
        node.now = lambda: datetime.now(UTC) + timedelta(hours=25)
        with pytest.raises(grpc.RpcError) as error:
            stub.DescribeDomain(ASK, timeout=5)
    assert type(from_rpc_error(error.value, HOP)) is Unauthenticated


def test_a_removed_peers_stream_ends_with_its_next_message(node: Listening, north: Institution) -> None:
    """In the middle of a stream that is both ways; the message does not reach the servicer."""
    requests = Requests()
    with node.stub(north) as stub:
        call = stub.Decode(requests, timeout=10)
        requests.send(pb.DecodeRequest())
        assert next(call).progress.item == 0
        node.south.store.remove("north.example")
        requests.send(pb.DecodeRequest())
        with pytest.raises(grpc.RpcError) as error:
            next(call)
    assert type(from_rpc_error(error.value, HOP)) is PeerUnknown
    assert node.echo.ended.wait(10)
    assert node.echo.taken == 1
    requests.close()


def test_a_removed_peer_gets_no_further_answer(node: Listening, north: Institution) -> None:
    """Although it sends nothing itself: it is removed between two answers to one message."""
    requests = Requests()
    node.echo.much = b"latent"
    node.echo.before_much = lambda: node.south.store.remove("north.example")
    with node.stub(north) as stub:
        call = stub.Decode(requests, timeout=10)
        requests.send(pb.DecodeRequest())
        assert next(call).progress.item == 0
        with pytest.raises(grpc.RpcError) as error:
            next(call)
    assert type(from_rpc_error(error.value, HOP)) is PeerUnknown
    assert node.echo.ended.wait(10)
    requests.close()


def test_a_removed_peers_idle_stream_is_swept(node: Listening, north: Institution) -> None:
    """Nothing is sent in either direction; a look at what runs ends it."""
    requests = Requests()
    with node.stub(north) as stub:
        call = stub.Decode(requests, timeout=10)
        requests.send(pb.DecodeRequest())
        next(call)
        assert node.calls.sweep() == 0
        node.south.store.remove("north.example")
        assert node.calls.sweep() == 1
        with pytest.raises(grpc.RpcError) as error:
            next(call)
    assert error.value.code() is grpc.StatusCode.CANCELLED
    assert node.echo.ended.wait(10)
    requests.close()


def test_a_change_that_is_not_the_peers_leaves_its_stream_alone(
    node: Listening, north: Institution, tmp_path: Path
) -> None:
    """Another peer comes while north's stream runs."""
    requests = Requests()
    with node.stub(north) as stub:
        call = stub.Decode(requests, timeout=10)
        for number in range(2):
            requests.send(pb.DecodeRequest())
            assert next(call).progress.item == number
            if number == 0:
                node.south.admit(Institution("west.example", tmp_path / "west"))
        requests.close()
        assert list(call) == []


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"transport_security_type": [b"local"]},
        {"transport_security_type": [b"ssl"]},
        {"transport_security_type": [b"ssl"], "ssl_tls_version": [b"TLSv1.2"], "x509_pem_cert": [b"x"]},
        {"transport_security_type": [b"ssl"], "x509_pem_cert": [b"x"]},
        {"transport_security_type": [b"ssl"], "ssl_tls_version": [b"TLSv1.3"], "x509_pem_cert": [b"x", b"y"]},
    ],
)
def test_a_call_without_one_certificate_over_tls_13_is_refused(context: dict[str, list[bytes]]) -> None:
    """Should the transport ever let it through."""
    with pytest.raises(Unauthenticated):
        presented_certificate(context)


def test_refusals_are_recorded_once_in_a_while(node: Listening, north: Institution, tmp_path: Path) -> None:
    """Who knocks a hundred times does not fill the disk."""
    pki.issue_to_folder(north.authority, tmp_path / "two", "node", "node-2")
    for _ in range(3):
        failure(node, north, pki_folder=tmp_path / "two")
    ((act, values),) = node.audit
    assert act == "refused"
    assert values["reason"] == "PEER_UNKNOWN"
    assert "node-2" in values["detail"]
