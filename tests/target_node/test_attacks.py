"""What an admitted peer can take of a target: a day's quota, its share of the engine and of the streams, no more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest

from ddib_fed.errors import DeadlineExceeded, QuotaSpent, TooManyStreams
from ddib_fed.node.policy import AHEAD, DAY_S
from ddib_fed.protocol.details import from_rpc_error
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import decoding_pb2 as pb
from tests.node.tiny_nodes import gaussian
from tests.source_node.conftest import wait_until
from tests.target_node.conftest import Target
from tests.target_node.sending import header, results, sent


def asked(target: Target, contract, evaluations: int, items: int = 4, name: str = "job", **changes):
    solver = common_pb2.SolverSettings(evaluations=evaluations)
    return header(contract, solver=solver, items=items, request_id=name, **changes)


@contextmanager
def flood(target: Target, who, requests: Callable[[int], Iterator[pb.DecodeRequest]], streams: int):
    """So many streams of one institution, each begun again when it ends; the reasons for which they were refused."""
    refused: list[str] = []
    calls: list[grpc.Call] = []
    over = threading.Event()
    with target.called_by(who) as stub, ExitStack() as ends:

        def keep_on(number: int) -> None:
            while not over.is_set():
                call = stub.Decode(requests(number), timeout=60)
                calls.append(call)
                try:
                    for _ in call:
                        pass
                except grpc.RpcError as error:
                    refused.append(from_rpc_error(error, "").reason)
                    over.wait(0.05)

        threads = [threading.Thread(target=keep_on, args=(n,), daemon=True) for n in range(streams)]
        for thread in threads:
            thread.start()
            ends.callback(thread.join, 10)
        try:
            yield refused
        finally:
            over.set()
            for call in tuple(calls):
                call.cancel()


def seconds_of_a_small_job(target: Target, who) -> float:
    """Of 50 points at 48 evaluations, from the first message to the last answer."""
    contract = target.negotiate(who)
    started = time.monotonic()
    found = results(
        target.decode(
            who, asked(target, contract, 48, name=f"small {started}"), *sent(contract, gaussian(50))
        )
    )
    assert found[0].shape == (50, 2)
    return time.monotonic() - started


def test_a_small_job_is_served_while_another_peer_sends_all_it_can(open_target, institutions) -> None:
    """West has as many streams as it gets, each of items of 100,000 points at the most evaluations."""
    target = open_target(max_evaluations=2_000, evaluations_per_day=10**15)
    west, north = institutions["west"], institutions["north"]
    contract = target.negotiate(west)
    cloud = gaussian(100_000)

    def all_it_can(number: int) -> Iterator[pb.DecodeRequest]:
        yield asked(target, contract, 2_000, name=f"west {number}")
        for item in range(4):
            yield from sent(contract, cloud, item)

    with flood(target, west, all_it_can, 8) as refused:
        wait_until(lambda: target.service.jobs()["decoding"] >= 5 and "TOO_MANY_STREAMS" in refused)
        found = [seconds_of_a_small_job(target, north) for _ in range(2)]
    assert max(found) < 18


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
    with pytest.raises(QuotaSpent) as refused:
        decode("c", 2_600)
    facts = refused.value.facts
    assert (facts["quota"], facts["of"], facts["limit"]) == (
        "evaluations_per_day",
        "north.example",
        "1000000",
    )
    assert (facts["left"], facts["asked"], facts["item"]) == ("200000", "208000", "0")
    assert refused.value.retry_after_s == pytest.approx(DAY_S, abs=60)
    assert refused.value.hop == "target south.example"
    decode("d", 2_500)
    with pytest.raises(QuotaSpent) as spent:
        decode("e", 1)
    assert spent.value.facts["left"] == "0"


def test_a_node_that_was_killed_and_started_again_gives_no_quota_back(open_target, north) -> None:
    """Nothing was closed in order: another process on the same state finds what was spent."""
    target = open_target(evaluations_per_day=1_000_000)
    contract = target.negotiate(north)
    target.decode(north, asked(target, contract, 80, name="a"), *sent(contract, gaussian(10_000)))
    target.close()
    again = open_target(evaluations_per_day=1_000_000)
    contract = again.negotiate(north)
    with pytest.raises(QuotaSpent) as refused:
        again.decode(north, asked(target, contract, 80, name="b"), *sent(contract, gaussian(2_600)))
    assert 200_000 - 1_000_000 // AHEAD <= int(refused.value.facts["left"]) <= 200_000


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
        call = stub.Decode(idle(), timeout=20)
        with pytest.raises(grpc.RpcError) as ended:
            list(call)
        go.set()
    error = from_rpc_error(ended.value, "target south.example")
    assert isinstance(error, DeadlineExceeded)
    assert set(error.facts) & {"idle_s", "stall_s"}
    wait_until(lambda: target.service.jobs() == {"decoding": 0})


def test_a_stream_that_waits_for_an_answer_is_not_idle(open_target, north) -> None:
    """Decoding may take longer than a stream may be silent: the sender waits for the first item before the second."""
    target = open_target(idle_s=0.3, stall_s=0.3)
    contract = target.negotiate(north)
    answered, waited = threading.Event(), 0.0

    def one_by_one() -> Iterator[pb.DecodeRequest]:
        nonlocal waited
        yield asked(target, contract, 10_000, items=2)
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
    assert waited > 2 * 0.3


def test_one_peer_cannot_have_all_streams(tmp_path, institutions, engine) -> None:
    """As many as it opens, another finds one."""
    target = Target(tmp_path / "south", institutions["south"], engine)
    go = threading.Event()

    def idle() -> Iterator[pb.DecodeRequest]:
        yield header(contract)
        go.wait(20)

    try:
        contract = target.negotiate(institutions["west"])
        with target.called_by(institutions["west"]) as stub:
            calls = [stub.Decode(idle(), timeout=20) for _ in range(8)]
            wait_until(lambda: sum(not call.is_active() for call in calls) >= 2)
            seconds_of_a_small_job(target, institutions["north"])
            go.set()
            reasons = []
            for call in calls:
                try:
                    list(call)
                except grpc.RpcError as error:
                    reasons.append(from_rpc_error(error, "").reason)
        assert set(reasons) == {TooManyStreams.reason}
    finally:
        target.close()
