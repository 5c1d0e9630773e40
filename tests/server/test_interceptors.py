"""Who calls, may they, and what they read when something fails: against a real server over real mutual TLS."""

from __future__ import annotations

import logging
import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import SimpleQueue

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ddib_fed.errors import (
    ContractMismatch,
    DdibError,
    Difference,
    InternalError,
    MessageInvalid,
    PeerUnknown,
    PolicyDenied,
    QueueFull,
    TooManyStreams,
    Unauthenticated,
    UnknownFields,
)
from ddib_fed.rpc.error_details import DETAIL_KEY, from_rpc_error
from ddib_fed.server.interceptors import MAX_WAITING, caller
from ddib_fed.trust import pki
from ddib_fed.trust.peers.admission import presented_certificate
from ddib_fed.v1 import common_pb2, decoding_pb2_grpc
from ddib_fed.v1 import decoding_pb2 as pb
from ddib_fed.wire.fields import has_unknown_fields
from ddib_fed.wire.version import versions_to_pb
from tests.node.institutions import Institution
from tests.server.listening import Listening, Requests

ASK = pb.DescribeDomainRequest(versions=versions_to_pb())
DESCRIBE = "/ddib_fed.v1.DecodingService/DescribeDomain"
HOP = "target south.example"


@pytest.fixture
def north(tmp_path: Path) -> Institution:
    return Institution("north.example", tmp_path / "north")


@pytest.fixture
def node(tmp_path: Path, north: Institution):
    south = Institution("south.example", tmp_path / "south")
    south.admit(north)
    listening = Listening(south)
    yield listening
    listening.close()


def failure(node: Listening, who: Institution, **overrides) -> DdibError:
    """What `who` reads when asking."""
    with node.stub(who, **overrides) as stub, pytest.raises(grpc.RpcError) as error:
        stub.DescribeDomain(ASK, timeout=5)
    return from_rpc_error(error.value, HOP)


# Who is calling.


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

    from ddib_fed.trust.certificates import issue_leaf, new_key
    from ddib_fed.trust.peers.file import Peer

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
    """In the middle of a stream that is both ways."""
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
    requests.close()


def test_a_removed_peers_idle_stream_is_swept(node: Listening, north: Institution) -> None:
    """Nothing is sent in either direction; a look at what runs ends it."""
    requests = Requests()
    with node.stub(north) as stub:
        call = stub.Decode(requests, timeout=10)
        requests.send(pb.DecodeRequest())
        next(call)
        assert node.auth.sweep() == 0
        node.south.store.remove("north.example")
        assert node.auth.sweep() == 1
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
    later = health_pb2.HealthCheckRequest().SerializeToString() + b"\x98\x06\x01"
    with node.channel(north, pki_folder=tmp_path / "alice") as channel:
        answer = channel.unary_unary("/grpc.health.v1.Health/Check")(later, timeout=5)
        assert (
            health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING
        )
        first = next(
            iter(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=5))
        )
        assert first.status == health_pb2.HealthCheckResponse.SERVING


def test_refusals_are_recorded_once_in_a_while(node: Listening, north: Institution, tmp_path: Path) -> None:
    """Who knocks a hundred times does not fill the disk."""
    pki.issue_to_folder(north.authority, tmp_path / "two", "node", "node-2")
    for _ in range(3):
        failure(node, north, pki_folder=tmp_path / "two")
    ((act, values),) = node.audit
    assert act == "refused"
    assert values["reason"] == "PEER_UNKNOWN"
    assert "node-2" in values["detail"]


# What is sent.


def test_unknown_fields_are_refused_at_any_depth(node: Listening, north: Institution) -> None:
    """At the top, in a nested message, in a repeated one, and in a stream."""
    unknown = b"\x98\x06\x01"  # field 99, a number
    nested = pb.DescribeDomainRequest(versions=[common_pb2.ProtocolVersion(major=1)]).SerializeToString()
    inner = b"\x0a" + bytes([2 + len(unknown)]) + b"\x08\x01" + unknown
    for data in (nested + unknown, inner):
        with node.channel(north) as channel, pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(DESCRIBE)(data, timeout=5)
        assert type(from_rpc_error(error.value, HOP)) is UnknownFields
    with node.channel(north) as channel, pytest.raises(grpc.RpcError) as error:
        list(channel.stream_stream("/ddib_fed.v1.DecodingService/Decode")(iter([unknown]), timeout=5))
    assert type(from_rpc_error(error.value, HOP)) is UnknownFields


def test_known_fields_of_every_kind_are_not_unknown() -> None:
    """Maps, repeated messages and a oneof."""
    detail = common_pb2.ErrorDetail(facts={"a": "b"}, differences=[common_pb2.FieldDifference(field="x")])
    assert not has_unknown_fields(detail)
    strange = common_pb2.FieldDifference.FromString(b"\x98\x06\x01")
    assert has_unknown_fields(common_pb2.ErrorDetail(differences=[strange]))


def test_garbage_is_a_message_that_breaks_the_protocol(node: Listening, north: Institution) -> None:
    """From somebody who may call."""
    with node.channel(north) as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary(DESCRIBE)(b"\xff\xff\xff", timeout=5)
    assert type(from_rpc_error(error.value, HOP)) is MessageInvalid


def test_a_call_that_ends_without_its_message_is_refused(node: Listening, north: Institution) -> None:
    """Half-closed at once."""
    with node.channel(north) as channel, pytest.raises(grpc.RpcError) as error:
        channel.stream_unary(DESCRIBE)(iter(()), timeout=5)
    assert type(from_rpc_error(error.value, HOP)) is MessageInvalid


# What is answered when something fails.


SECRET = "/srv/node/state/pki/leaf.key of patient 4711"


@pytest.mark.parametrize(
    "error",
    [
        ValueError(SECRET),
        KeyError(SECRET),
        OSError(2, SECRET),
        InternalError(SECRET),
        QueueFull(SECRET, hint=SECRET),
        Exception(SECRET),
        grpc.RpcError(SECRET),
    ],
    ids=lambda e: type(e).__name__,
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_text_of_an_exception_never_leaves(
    node: Listening, north: Institution, error: Exception, stream: bool
) -> None:
    """Neither in the status nor in any metadata; ours or not."""
    node.echo.failure = error
    with node.stub(north) as stub, pytest.raises(grpc.RpcError) as raised:
        list(stub.Decode(iter([pb.DecodeRequest()]), timeout=5)) if stream else stub.DescribeDomain(
            ASK, timeout=5
        )
    call = raised.value
    seen = (
        f"{call.details()} {call.trailing_metadata()} {call.initial_metadata()} {call.debug_error_string()}"
    )
    assert "patient" not in seen
    assert "leaf.key" not in seen


def test_a_bug_is_logged_with_the_incident_that_the_caller_reads(
    node: Listening, north: Institution, caplog: pytest.LogCaptureFixture
) -> None:
    """Twelve hexadecimal digits tie the two together; the log has the traceback."""
    node.echo.failure = ZeroDivisionError("in the depths")
    with caplog.at_level(logging.ERROR):
        found = failure(node, north)
    assert isinstance(found, InternalError)
    assert len(found.incident) == 12
    assert int(found.incident, 16) >= 0
    assert found.incident in caplog.text
    assert "ZeroDivisionError: in the depths" in caplog.text


def test_the_sentence_of_an_internal_error_names_the_incident(node: Listening, north: Institution) -> None:
    """Also for a client that cannot read the detail."""
    node.echo.failure = ZeroDivisionError()
    with node.stub(north) as stub, pytest.raises(grpc.RpcError) as error:
        stub.DescribeDomain(ASK, timeout=5)
    incident = from_rpc_error(error.value, HOP).incident
    assert error.value.details() == f"internal error, incident {incident}"


def test_a_known_error_arrives_with_its_facts(node: Listening, north: Institution) -> None:
    """Status, sentence, facts, differences, when to come again."""
    difference = Difference("dtype", "float32", "float64", "convert it")
    node.echo.failure = ContractMismatch("x", facts={"asked": 1}, differences=(difference,), retry_after_s=2)
    found = failure(node, north)
    assert isinstance(found, ContractMismatch)
    assert (found.facts, found.differences, found.retry_after_s) == ({"asked": "1"}, (difference,), 2.0)


def test_an_error_of_another_node_keeps_its_incident_and_its_place(
    node: Listening, north: Institution
) -> None:
    """What a source passes on from its target."""
    node.echo.failure = QueueFull("x", hop="target west.example", incident="feed00")
    found = failure(node, north)
    assert (found.incident, found.hop) == ("feed00", "target south.example -> west.example")


def test_abort_still_works(node: Listening, north: Institution) -> None:
    """A servicer may end a call in gRPC's own way, with its metadata."""
    with node.stub(north) as stub, pytest.raises(grpc.RpcError) as error:
        stub.NegotiateContract(
            pb.NegotiateContractRequest(versions=versions_to_pb(), source=pb.ContractSide()), timeout=5
        )
    assert (error.value.code(), error.value.details()) == (grpc.StatusCode.NOT_FOUND, "said by abort")
    assert dict(error.value.trailing_metadata()) == {"kept": "yes"}
    node.outcomes.wait_for(1)
    assert node.outcomes == [("NegotiateContract", "NOT_FOUND")]


def test_an_unknown_method_is_unimplemented(node: Listening, north: Institution) -> None:
    """gRPC's own answer, without detail."""
    with node.channel(north) as channel, pytest.raises(grpc.RpcError) as error:
        channel.unary_unary("/ddib_fed.v1.DecodingService/Nothing")(b"", timeout=5)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert DETAIL_KEY not in dict(error.value.trailing_metadata())


def test_each_call_has_one_outcome(node: Listening, north: Institution) -> None:
    """For the metrics: good, refused, failed, and left by the caller."""
    with node.stub(north) as stub:
        stub.DescribeDomain(ASK, timeout=5)
        node.echo.failure = QueueFull("x")
        with pytest.raises(grpc.RpcError):
            stub.DescribeDomain(ASK, timeout=5)
        node.outcomes.wait_for(2)
        requests = Requests()
        call = stub.Decode(requests, timeout=10)
        node.echo.failure = None
        requests.send(pb.DecodeRequest())
        next(call)
        call.cancel()
        node.outcomes.wait_for(3)
        requests.close()
    assert node.outcomes[:2] == [("DescribeDomain", "OK"), ("DescribeDomain", "RESOURCE_EXHAUSTED")]
    # gRPC may show the servicer the end of the stream before it shows that the caller has gone.
    assert node.outcomes[2] in {("Decode", "CANCELLED"), ("Decode", "OK")}


# How many at once.


def open_streams(stub: decoding_pb2_grpc.DecodingServiceStub, count: int) -> list:
    """Streams that have been answered once, and stay open."""
    streams = []
    for _ in range(count):
        requests = Requests()
        call = stub.Decode(requests, timeout=20)
        requests.send(pb.DecodeRequest())
        next(call)
        streams.append((call, requests))
    return streams


def close_streams(streams: list) -> None:
    for _call, requests in streams:
        requests.close()


def too_many(stub: decoding_pb2_grpc.DecodingServiceStub) -> DdibError:
    with pytest.raises(grpc.RpcError) as error:
        list(stub.Decode(iter([pb.DecodeRequest()]), timeout=5))
    return from_rpc_error(error.value, HOP)


def test_streams_of_one_identity_are_capped_and_unary_calls_go_on(
    node: Listening, north: Institution
) -> None:
    """The excess is refused at once; when one ends there is room again."""
    with node.stub(north) as stub:
        streams = open_streams(stub, 2)
        assert node.limiter.active == 2
        found = too_many(stub)
        assert (type(found), found.facts, found.retry_after_s) == (TooManyStreams, {"limit": "2"}, 1.0)
        stub.DescribeDomain(ASK, timeout=5)
        close_streams(streams)
        assert [list(call) for call, _requests in streams] == [[], []]
        list(stub.Decode(iter([pb.DecodeRequest()]), timeout=5))


def test_streams_are_capped_in_all(north: Institution, tmp_path: Path) -> None:
    """Two peers share the total."""
    south, west = (
        Institution("south.example", tmp_path / "south"),
        Institution("west.example", tmp_path / "west"),
    )
    south.admit(north)
    south.admit(west)
    node = Listening(south, streams=(3, 2))
    with node.stub(north) as one, node.stub(west) as other:
        streams = [*open_streams(one, 2), *open_streams(other, 1)]
        assert too_many(other).facts == {"limit": "3"}
        one.DescribeDomain(ASK, timeout=5)
        close_streams(streams)
    node.close()


def test_a_cancelled_stream_gives_its_place_back(node: Listening, north: Institution) -> None:
    """When its handler has ended, not before."""
    with node.stub(north) as stub:
        for turn in range(3):
            streams = open_streams(stub, 2)
            for call, _requests in streams:
                call.cancel()
            close_streams(streams)
            node.outcomes.wait_for(2 * (turn + 1))
        assert node.limiter.active == 0


def test_unary_calls_whose_message_does_not_come_are_capped(node: Listening, north: Institution) -> None:
    """They would otherwise hold every thread of the reserve, and Health with it."""
    silent = [Requests() for _ in range(MAX_WAITING + 1)]
    ended: SimpleQueue[grpc.Future] = SimpleQueue()
    with node.channel(north) as channel:
        ask = channel.stream_unary(DESCRIBE)
        calls = [ask.future(requests, timeout=20) for requests in silent]
        for call in calls:
            call.add_done_callback(ended.put)
        refused = ended.get(timeout=10)
        assert type(from_rpc_error(refused.exception(), HOP)) is TooManyStreams
        for requests in silent:
            requests.send(ASK.SerializeToString())
            requests.close()
        for call in calls:
            assert call is refused or call.result(timeout=10)
        channel.unary_unary(DESCRIBE)(ASK.SerializeToString(), timeout=5)
