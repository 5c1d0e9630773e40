"""Who calls, and may they: against a real server over real mutual TLS."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from ddib_fed.errors import (
    PeerUnknown,
    PolicyDenied,
    Unauthenticated,
)
from ddib_fed.node.interceptors import caller
from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.security import pki
from ddib_fed.security.admission import presented_certificate
from ddib_fed.v1 import decoding_pb2 as pb
from tests.node.institutions import Institution
from tests.server.listening import ASK, DESCRIBE, HOP, Listening, Requests, failure


def test_a_handler_knows_its_caller(node: Listening, north: Institution) -> None:
    """In a call with one answer, and while a stream is read and written."""
    with node.stub(north) as stub:
        assert stub.DescribeDomain(ASK, timeout=5).side.institution == str(north.identity)
        answers = list(stub.Decode(iter([pb.DecodeRequest()] * 3), timeout=5))
    assert [(a.progress.item, a.progress.stage) for a in answers] == [
        (n, str(north.identity)) for n in range(3)
    ]


def test_there_is_no_caller_outside_a_call() -> None:
    """Rather an error than somebody else's name."""
    with pytest.raises(LookupError):
        caller()


def test_another_node_under_the_right_root_is_refused(
    node: Listening, north: Institution, tmp_path: Path
) -> None:
    """TLS lets it in; the call does not."""
    pki.issue_to_folder(north.authority, tmp_path / "two", "node", "node-2")
    assert type(failure(node, north, pki_folder=tmp_path / "two")) is PeerUnknown


def test_a_peers_client_is_refused(node: Listening, north: Institution, tmp_path: Path) -> None:
    """Its business is with its own node."""
    pki.issue_client(north.pki, tmp_path / "alice", "alice")
    assert type(failure(node, north, pki_folder=tmp_path / "alice")) is PolicyDenied


def test_a_cross_minted_name_is_refused_by_the_call(
    node: Listening, north: Institution, tmp_path: Path
) -> None:
    """West is admitted with a root that has no constraints, and mints north's name: TLS cannot see that."""
    west = Institution("west.example", tmp_path / "west")
    root, forged = loose_root_and_leaf(tmp_path, west)
    node.south.store.add(root, fingerprints=root.fingerprints)
    assert type(failure(node, north, pki_folder=forged)) is Unauthenticated


def loose_root_and_leaf(tmp_path: Path, west: Institution):
    """West's peer file with an unconstrained root, and north's name minted by that root, in a folder."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes

    from ddib_fed.security.peers import Peer
    from ddib_fed.security.pki import issue_leaf, new_key

    key, name = new_key(), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loose")])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    root = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(
        key, hashes.SHA256()
    )
    forger, leaf_key = pki.Authority("north.example", root, key), new_key()
    leaf = issue_leaf(forger, "node", "node-1", public_key=leaf_key.public_key())
    pki.write_identity(tmp_path / "forged", certificate=leaf, key=leaf_key, roots=(root,))
    return Peer("west.example", west.identity, "127.0.0.1:1", (root,)), tmp_path / "forged"


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


def test_a_removed_peer_is_refused_on_its_next_call(node: Listening, north: Institution) -> None:
    """On the connection that it has; admitted again, it is served again."""
    with node.stub(north) as stub:
        stub.DescribeDomain(ASK, timeout=5)
        node.south.store.remove("north.example")
        with pytest.raises(grpc.RpcError) as error:
            stub.DescribeDomain(ASK, timeout=5)
        assert type(from_rpc_error(error.value, HOP)) is PeerUnknown
        node.south.admit(north)
        stub.DescribeDomain(ASK, timeout=5)


def test_a_withdrawn_identity_is_refused_although_its_certificate_is_good(
    node: Listening, north: Institution
) -> None:
    """The answer to a lost key, before its certificate ends."""
    with node.stub(north) as stub:
        stub.DescribeDomain(ASK, timeout=5)
        (node.south.pki / "withdrawn.txt").write_text(f"{north.identity}\n")
        with pytest.raises(grpc.RpcError) as error:
            stub.DescribeDomain(ASK, timeout=5)
    assert type(from_rpc_error(error.value, HOP)) is PeerUnknown


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
        assert node.auth.calls.sweep() == 0
        node.south.store.remove("north.example")
        assert node.auth.calls.sweep() == 1
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


def test_the_oldest_grpc_that_may_be_installed_tells_the_version_of_tls() -> None:
    """1.84 does not: a node with it refused every call, for want of that word."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    needs = [*project["dependencies"], *project["optional-dependencies"]["node"]]
    floors = dict(need.split(">=") for need in needs if need.startswith("grpcio"))
    assert {tuple(map(int, floor.split("."))) >= (1, 85) for floor in floors.values()} == {True}


def test_health_answers_every_verified_identity(node: Listening, north: Institution, tmp_path: Path) -> None:
    """A peer's client, too, and with fields of a later version; but not a stranger."""
    pki.issue_client(north.pki, tmp_path / "alice", "alice")
    later = HealthCheckRequest().SerializeToString() + b"\x98\x06\x01"
    with node.channel(north, pki_folder=tmp_path / "alice") as channel:
        answer = channel.unary_unary("/grpc.health.v1.Health/Check")(later, timeout=5)
    assert HealthCheckResponse.FromString(answer).status == HealthCheckResponse.SERVING


def test_refusals_are_recorded_once_in_a_while(node: Listening, north: Institution, tmp_path: Path) -> None:
    """Who knocks a hundred times does not fill the disk."""
    pki.issue_to_folder(north.authority, tmp_path / "two", "node", "node-2")
    for _ in range(3):
        failure(node, north, pki_folder=tmp_path / "two")
    ((act, values),) = node.audit
    assert act == "refused"
    assert values["reason"] == "PEER_UNKNOWN"
    assert "node-2" in values["detail"]
