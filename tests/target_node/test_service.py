"""The target decides for itself what it decodes and for whom, within quotas and times, and its audit log says so."""

import json
import threading
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from ddib_fed import errors
from ddib_fed.latent import Latent
from ddib_fed.node.policy import DAY_S
from ddib_fed.protocol.calls import from_rpc_error
from ddib_fed.protocol.contract import PROTOCOL, Contract
from ddib_fed.security.audit import digest
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb
from target_node.service import MAX_CONTRACTS
from tests import audit_rows
from tests.e2e.harness import wait_until
from tests.node.tiny_nodes import gaussian
from tests.target_node.conftest import Target, asking, header, results, sent, side, torn


def test_nothing_of_a_latent_or_a_translation_stays(target, north) -> None:
    """After a call the node's folder has an audit log with digests, what was charged, and no new file else."""
    contract = target.negotiate(north)
    points = gaussian(30)
    before = {path for path in target.config.folder.rglob("*") if path.is_file()}
    target.decode(north, header(contract), *sent(contract, points))
    after = {path for path in target.config.folder.rglob("*") if path.is_file()}
    assert after == before
    assert not any(points.tobytes()[:32] in path.read_bytes() for path in after)
    assert Latent.from_array(points).sha256.hex() in str(audit_rows.lines(target.config.paths.store))


def test_nobody_agrees_for_another(target, north) -> None:
    request = pb.NegotiateContractRequest(protocol=PROTOCOL, source=side("west.example"))
    with target.called_by(north) as stub, pytest.raises(errors.PolicyDenied):
        asking(stub.NegotiateContract, request)


@pytest.mark.parametrize("policy", [{}, {"shared_noise": "true"}])
def test_a_target_says_in_the_contract_whether_its_operator_allows_shared_noise(open_target, north, policy):
    """Not unless its policy says so, whatever the source allows."""
    request = pb.NegotiateContractRequest(protocol=PROTOCOL, source=side("north.example"))
    request.source.shared_noise = True
    with open_target(**policy).called_by(north) as stub:
        contract = Contract(asking(stub.NegotiateContract, request).contract)
    assert contract.shared_noise == bool(policy)


def test_a_peer_can_push_out_only_its_own_contracts(target, north, institutions) -> None:
    west = institutions["west"]
    of_west, first = target.negotiate(west), target.negotiate(north, "d0")
    for number in range(1, MAX_CONTRACTS + 1):
        target.negotiate(north, f"d{number}")
    target.decode(west, header(of_west), *sent(of_west, gaussian(30)))
    with pytest.raises(errors.ContractUnknown):
        target.decode(north, header(first))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"items": 5}, errors.MessageInvalid),
        ({"request_id": ""}, errors.MessageInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=101)}, errors.SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=8, solver="magic")}, errors.SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=8, depth=0.4)}, errors.PolicyDenied),
        ({"round_trip": True}, errors.PolicyDenied),
    ],
)
def test_a_header_beyond_the_limits_is_refused(open_target, north, changes, error) -> None:
    target = open_target(max_items_per_job=4, max_evaluations=100, round_trip="false", least_depth=0.5)
    with pytest.raises(error):
        target.decode(north, header(target.negotiate(north), **changes))


@pytest.mark.slow
def test_a_latent_that_stalls_half_way_is_given_up_and_a_pause_between_two_is_not(open_target, north) -> None:
    """Inside an item nothing justifies silence; between two the source may encode for as long as it likes."""
    target, go = open_target(stall_s=0.5), threading.Event()
    contract = target.negotiate(north)
    (first,), (second,) = sent(contract, gaussian(300), 0), sent(contract, gaussian(300), 1)

    def paused():
        yield from (header(contract), first)
        threading.Event().wait(0.9)
        yield second

    def stalled():
        yield from (header(contract), first, torn(contract, 1))
        go.wait(20)

    with target.called_by(north) as stub:
        came = asking(lambda requests, timeout: list(stub.Decode(requests, timeout=timeout)), paused())
        assert set(results(came)) == {0, 1}
        with pytest.raises(errors.DeadlineExceeded):
            asking(lambda requests, timeout: list(stub.Decode(requests, timeout=timeout)), stalled())
    go.set()


def test_a_latent_that_is_no_noise_is_refused_by_its_number(target, north) -> None:
    contract = target.negotiate(north)
    good, bad = gaussian(300), np.full((300, 2), 30, np.float32)
    with target.called_by(north) as stub:
        call = stub.Decode(
            iter([header(contract), *sent(contract, good, 3), *sent(contract, bad, 8)]), timeout=20
        )
        came: list[pb.DecodeResponse] = []
        with pytest.raises(errors.LatentNotGaussian) as refused:
            asking(lambda calls, timeout: came.extend(calls), call)
    assert refused.value.facts["item"] == "8"
    assert set(results(came)) == {3}


def test_messages_out_of_order_are_refused(target, north) -> None:
    contract = target.negotiate(north)
    latent = sent(contract, gaussian(30), 1)
    for messages, error in (
        ([], errors.MessageInvalid),
        (latent, errors.MessageInvalid),
        ([header(contract), header(contract)], errors.MessageInvalid),
        ([header(contract), *latent, *latent], errors.MessageInvalid),
        ([header(contract), torn(contract)], errors.ChunkCorrupt),
    ):
        with pytest.raises(error):
            target.decode(north, *messages)


def test_without_an_audit_log_nothing_is_decoded_and_the_peer_comes_back(target, north, monkeypatch) -> None:
    """A full disk is this node's trouble: UNAVAILABLE, which the source tries again, not an internal error."""
    contract = target.negotiate(north)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target.node.audit, "write_each", full)
    with pytest.raises(errors.NotReady) as refused:
        target.decode(north, header(contract), *sent(contract, gaussian(30)))
    assert refused.value.retry_after_s
    with pytest.raises(errors.NotReady):
        target.negotiate(north, "another")


def test_a_latent_of_less_depth_is_no_noise_and_is_decoded_where_that_is_allowed(open_target, north) -> None:
    """The same numbers as a latent of the whole way are refused."""
    target = open_target(least_depth=0.5)
    contract, bad = target.negotiate(north), np.full((300, 2), 30, np.float32)
    with pytest.raises(errors.LatentNotGaussian):
        target.decode(north, header(contract), *sent(contract, bad))
    half = header(contract, solver=common_pb2.SolverSettings(evaluations=8, depth=0.5))
    assert results(target.decode(north, half, *sent(contract, bad)))[0].shape == (300, 2)


def test_a_call_for_fewer_evaluations_than_the_policy_demands_is_refused(open_target, north) -> None:
    """The contract names the floor, so that the source can hold itself to it."""
    target = open_target(least_evaluations=12)
    contract = target.negotiate(north)
    assert contract.limits.min_evaluations == 12
    with pytest.raises(errors.PolicyDenied) as refused:
        target.decode(north, header(contract, solver=common_pb2.SolverSettings(evaluations=11)))
    assert refused.value.facts == {"policy": "least_evaluations", "evaluations": "11", "least": "12"}
    enough = header(contract, solver=common_pb2.SolverSettings(evaluations=12))
    assert results(target.decode(north, enough, *sent(contract, gaussian(30))))


HEAD = common_pb2.AuditHead(lines=41, sha256=b"\x05" * 32)


def with_head(messages, head: common_pb2.AuditHead = HEAD) -> list[pb.DecodeRequest]:
    changed = list(messages)
    changed[0].latent.audit.CopyFrom(head)
    return changed


def lines(target) -> list[bytes]:
    return audit_rows.lines(target.config.paths.store)


def acts(target, act: str) -> list[dict]:
    return [record for line in lines(target) if (record := json.loads(line))["act"] == act]


def result_headers(answers) -> list[pb.DecodedHeader]:
    return [answer.result for answer in answers if answer.WhichOneof("message") == "result"]


def test_the_line_of_a_latent_has_the_end_of_the_sources_log(target, north) -> None:
    """Each latent its own, and the receipt the last; without one there is none."""
    contract = target.negotiate(north)
    later = common_pb2.AuditHead(lines=44, sha256=b"\x06" * 32)
    target.decode(
        north, header(contract), *with_head(sent(contract, gaussian(30), 0)),
        *with_head(sent(contract, gaussian(20), 1), later),
    )  # fmt: skip
    target.decode(north, header(contract, request_id="another"), *sent(contract, gaussian(30)))
    received = [(each.get("peer_lines"), each.get("peer_head")) for each in acts(target, "latent_received")]
    assert received == [(41, "05" * 32), (44, "06" * 32), (None, None)]
    first, second = acts(target, "receipt")
    assert (first["peer_lines"], first["peer_head"]) == (44, "06" * 32)
    assert "peer_head" not in second


def test_a_receipt_counts_the_bytes_of_both_directions(target, north) -> None:
    contract = target.negotiate(north)
    answers = target.decode(
        north, header(contract, round_trip=True), *sent(contract, gaussian(30), 0), *sent(contract, gaussian(20), 1),
    )  # fmt: skip
    went = sum(len(answer.data) for answer in answers)
    (receipt,) = acts(target, "receipt")
    assert (receipt["received_items"], receipt["received_bytes"]) == (2, 50 * 2 * 4)
    assert (receipt["sent_items"], receipt["sent_bytes"]) == (2, went)
    assert (receipt["peer"], receipt["contract"]) == (north.identity.uri, contract.digest.hex())


def test_a_call_that_breaks_off_has_its_receipt(target, north) -> None:
    contract = target.negotiate(north)
    with pytest.raises(errors.ChunkCorrupt):
        target.decode(north, header(contract), *sent(contract, gaussian(30), 0), torn(contract, 1))
    (receipt,) = acts(target, "receipt")
    assert receipt["received_bytes"] == 30 * 2 * 4


def test_an_answer_has_the_end_of_the_targets_log(target, north) -> None:
    contract = target.negotiate(north)
    (answered,) = result_headers(target.decode(north, header(contract), *sent(contract, gaussian(30))))
    line = lines(target)[answered.audit.lines - 1]
    assert digest(line) == answered.audit.sha256.hex()
    (received,) = acts(target, "latent_received")
    assert answered.audit.lines - 1 >= received["n"]


def asked(target: Target, contract, evaluations: int, items: int = 4, name: str = "job", **changes):
    solver = common_pb2.SolverSettings(evaluations=evaluations)
    return header(contract, solver=solver, items=items, request_id=name, **changes)


def test_a_quota_of_evaluations_refuses_what_is_beyond_it(open_target, north) -> None:
    """Points times evaluations, twice with a round trip; the error says what is left and when there is more."""
    target = open_target(evaluations_per_day=1_000_000)
    contract = target.negotiate(north)

    def decode(name: str, points: int, **changes) -> None:
        target.decode(
            north, asked(target, contract, 80, name=name, **changes), *sent(contract, gaussian(points))
        )

    decode("a", 5_000)
    decode("b", 2_500, round_trip=True)
    with pytest.raises(errors.QuotaSpent) as refused:
        decode("c", 2_600)
    facts = refused.value.facts
    assert (facts["quota"], facts["of"]) == ("evaluations_per_day", "north.example")
    assert (facts["left"], facts["asked"], facts["item"]) == ("200000", "208000", "0")
    assert refused.value.retry_after_s == pytest.approx(DAY_S, abs=60)
    assert refused.value.hop == "target south.example"
    decode("d", 2_500)
    with pytest.raises(errors.QuotaSpent):
        decode("e", 1)


@pytest.mark.parametrize("begins", ["with a header", "with nothing"])
def test_a_stream_that_sends_nothing_is_closed(open_target, north, begins) -> None:
    """Its thread is there for others; the peer hears why."""
    target = open_target(idle_s=0.4, stall_s=0.4)
    contract = target.negotiate(north)
    go = threading.Event()

    def idle() -> Iterator[pb.DecodeRequest]:
        if begins == "with a header":
            yield header(contract)
        go.wait(20)

    with target.called_by(north) as stub:
        call = stub.Decode(idle(), timeout=60)
        with pytest.raises(grpc.RpcError) as ended:
            list(call)
        go.set()
    error = from_rpc_error(ended.value, "target south.example")
    assert isinstance(error, errors.DeadlineExceeded)
    assert set(error.facts) & {"idle_s", "stall_s"}
    wait_until(lambda: target.service.jobs() == {"decoding": 0})


def test_a_stream_that_waits_for_an_answer_is_not_idle(open_target, engine, north, monkeypatch) -> None:
    """Decoding may take longer than a stream may be silent: the sender waits for the first item before the second."""
    target = open_target(idle_s=0.6, stall_s=0.6)
    contract = target.negotiate(north)
    decode_each, answered, waited = engine.decode_each, threading.Event(), 0.0

    def slowly(*arguments, **options):
        time.sleep(1.8)
        yield from decode_each(*arguments, **options)

    monkeypatch.setattr(engine, "decode_each", slowly)

    def one_by_one() -> Iterator[pb.DecodeRequest]:
        nonlocal waited
        yield asked(target, contract, 8, items=2)
        yield from sent(contract, gaussian(64), 0)
        began = time.monotonic()
        answered.wait(60)
        waited = time.monotonic() - began
        yield from sent(contract, gaussian(64), 1)

    with target.called_by(north) as stub:
        messages = []
        for message in stub.Decode(one_by_one(), timeout=90):
            messages.append(message)
            if message.WhichOneof("message") != "progress":
                answered.set()
    assert set(results(messages)) == {0, 1}
    assert waited > 2 * 0.6
