"""The target decides for itself: what it did not agree to, cannot decode or may not is refused with a reason."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from ddib_fed.diffusion import gaussianity
from ddib_fed.errors import (
    ChunkCorrupt,
    ContractUnknown,
    DeadlineExceeded,
    LatentNotGaussian,
    MessageInvalid,
    NotReady,
    PolicyDenied,
    QuotaSpent,
    SettingsInvalid,
)
from ddib_fed.latent import Latent
from ddib_fed.protocol.contract import PROTOCOL
from ddib_fed.protocol.latent import approve
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb
from target_node.service import MAX_CONTRACTS
from tests import audit_rows
from tests.node.tiny_nodes import gaussian
from tests.target_node.conftest import asking, side
from tests.target_node.sending import header, results, sent, torn


def test_latents_come_back_as_translations(target, north) -> None:
    """Each by its number; the exact tiny model leaves N(0, I) as it is."""
    contract = target.negotiate(north)
    clouds = {n: gaussian(30, n) for n in (0, 5)}
    answers = target.decode(
        north, header(contract), *sent(contract, clouds[0], 0), *sent(contract, clouds[5], 5)
    )
    for item, points in results(answers).items():
        np.testing.assert_allclose(points, clouds[item], atol=1e-5)
    assert target.service.jobs() == {"decoding": 0}


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
    """The source's side of a contract must be the caller's own."""
    request = pb.NegotiateContractRequest(protocol=PROTOCOL, source=side("west.example"))
    with target.called_by(north) as stub, pytest.raises(PolicyDenied):
        asking(stub.NegotiateContract, request)


def test_a_peer_can_push_out_only_its_own_contracts(target, north, institutions) -> None:
    """However many it agrees on, another's stays."""
    west = institutions["west"]
    of_west, first = target.negotiate(west), target.negotiate(north, "d0")
    for number in range(1, MAX_CONTRACTS + 1):
        target.negotiate(north, f"d{number}")
    target.decode(west, header(of_west), *sent(of_west, gaussian(30)))
    with pytest.raises(ContractUnknown):
        target.decode(north, header(first))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"items": 0}, MessageInvalid),
        ({"items": 5}, MessageInvalid),
        ({"request_id": ""}, MessageInvalid),
        ({"request_id": "x" * 65}, MessageInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=101)}, SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=8, solver="magic")}, SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=0)}, SettingsInvalid),
        ({"solver": None}, SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=8, depth=1.5)}, SettingsInvalid),
        ({"solver": common_pb2.SolverSettings(evaluations=8, depth=0.4)}, PolicyDenied),
        ({"round_trip": True}, PolicyDenied),
    ],
)
def test_a_header_beyond_the_limits_is_refused(open_target, north, changes, error) -> None:
    """Before any latent is read."""
    target = open_target(max_items_per_job=4, max_evaluations=100, round_trip="false", least_depth=0.5)
    with pytest.raises(error):
        target.decode(north, header(target.negotiate(north), **changes))


@pytest.mark.slow
def test_a_latent_that_stalls_half_way_is_given_up_and_a_pause_between_two_is_not(open_target, north) -> None:
    """Inside an item nothing justifies silence; between two the source may encode for as long as it likes."""
    target, go = open_target(stall_s=1.5), threading.Event()
    contract = target.negotiate(north)
    (first,), (second,) = sent(contract, gaussian(300), 0), sent(contract, gaussian(300), 1)

    def paused():
        yield from (header(contract), first)
        threading.Event().wait(2.5)
        yield second

    def stalled():
        yield from (header(contract), first, torn(contract, 1))
        go.wait(20)

    with target.called_by(north) as stub:
        came = asking(lambda requests, timeout: list(stub.Decode(requests, timeout=timeout)), paused())
        assert set(results(came)) == {0, 1}
        with pytest.raises(DeadlineExceeded):
            asking(lambda requests, timeout: list(stub.Decode(requests, timeout=timeout)), stalled())
    go.set()


def test_a_latent_that_is_no_noise_is_refused_by_its_number(target, north) -> None:
    """The items before it come back; the error says which one it was."""
    contract = target.negotiate(north)
    good, bad = gaussian(300), np.full((300, 2), 30, np.float32)
    with target.called_by(north) as stub:
        call = stub.Decode(
            iter([header(contract), *sent(contract, good, 3), *sent(contract, bad, 8)]), timeout=20
        )
        came: list[pb.DecodeResponse] = []
        with pytest.raises(LatentNotGaussian) as refused:
            asking(lambda calls, timeout: came.extend(calls), call)
    assert refused.value.facts["item"] == "8"
    assert set(results(came)) == {3}


def test_messages_out_of_order_are_refused(target, north) -> None:
    """No header, two headers, a number that falls, an end in the middle."""
    contract = target.negotiate(north)
    latent = sent(contract, gaussian(30), 1)
    for messages, error in (
        ([], MessageInvalid),
        (latent, MessageInvalid),
        ([header(contract), header(contract)], MessageInvalid),
        ([header(contract), *latent, *latent], MessageInvalid),
        ([header(contract), torn(contract)], ChunkCorrupt),
    ):
        with pytest.raises(error):
            target.decode(north, *messages)


def test_the_round_trip_brings_the_latent_of_the_translation(target, north) -> None:
    """After its result, under the same contract."""
    contract = target.negotiate(north)
    answers = target.decode(north, header(contract, round_trip=True), *sent(contract, gaussian(30)))
    kinds = [kind for a in answers if (kind := a.WhichOneof("message")) in {"result", "latent"}]
    assert kinds == ["result", "latent"]
    assert approve(
        Latent.from_array(gaussian(30)), contract,
        gaussianity.measure(torch.from_numpy(gaussian(30))), item=0,
    ).sha256  # fmt: skip


def test_a_request_beyond_the_days_samples_is_refused_with_a_time(open_target, north) -> None:
    target = open_target(samples_per_day=500)
    contract = target.negotiate(north)
    target.decode(north, header(contract), *sent(contract, gaussian(470)))
    with pytest.raises(QuotaSpent) as refused:
        target.decode(north, header(contract, request_id="other"), *sent(contract, gaussian(31)))
    assert refused.value.retry_after_s
    assert (refused.value.facts["item"], refused.value.facts["left"]) == ("0", "30")


def test_without_an_audit_log_nothing_is_decoded_and_the_peer_comes_back(target, north, monkeypatch) -> None:
    """A full disk is this node's trouble: UNAVAILABLE, which the source tries again, not an internal error."""
    contract = target.negotiate(north)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target.node.audit, "write_each", full)
    with pytest.raises(NotReady) as refused:
        target.decode(north, header(contract), *sent(contract, gaussian(30)))
    assert refused.value.retry_after_s
    with pytest.raises(NotReady):
        target.negotiate(north, "another")
