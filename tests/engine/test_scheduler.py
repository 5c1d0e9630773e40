"""Whose rows run next: fair between flows by cost and weight, the oldest first, merged where nobody waits for it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.batcher import Scheduler
from ddib_fed.engine.party import Control, Leg
from ddib_fed.engine.record import Guidance
from ddib_fed.engine.stack import Member, Trajectory

SETTINGS = SolverSettings()
numbers = iter(range(1_000_000))


def running(
    rows: int, flow: str = "", weight: float = 1.0, stage: str = "decode", label=None, **leg
) -> Member:
    leg = Leg(leg.pop("settings", SETTINGS), flow=flow, weight=weight, **leg)
    return Member(Trajectory(stage, torch.zeros(rows, 2), leg, label), Control(), None, next(numbers))


def flows(*waiting: Member, rows: int = 64, overhead: float = 8.0) -> Scheduler:
    made = Scheduler(rows, lambda count: count + overhead)
    for each in waiting:
        made.add(each)
    return made


def turn(queue: Scheduler) -> list[Member]:
    chosen = queue.choose()
    queue.charge(chosen)
    return chosen


def test_a_call_has_no_more_rows_than_the_budget() -> None:
    """Nor does a flow of its own take more; guided rows count twice."""
    assert len(turn(flows(*[running(30) for _ in range(5)]))) == 2
    assert len(turn(flows(*[running(1, "job") for _ in range(100)]))) == 64
    guided = {"guidance": Guidance(scale=3.0), "label": np.zeros(1, np.int64)}
    assert len(turn(flows(*[running(1, "job", **guided) for _ in range(100)]))) == 32
    weighed = {"guidance": Guidance(scale=1.0), "label": np.zeros(1, np.int64)}
    assert len(turn(flows(*[running(1, "job", **weighed) for _ in range(100)]))) == 64


def test_a_small_flow_beside_a_large_one_waits_for_its_own_time_at_most() -> None:
    """By cost: the large one has a turn when the small one has used as much."""
    small, large = running(1, "small"), running(64, "large")
    queue = flows(small, large)
    spent = Counter()
    for _ in range(200):
        for each in turn(queue):
            spent[each.flow] += each.rows + 8
    assert spent["small"] == pytest.approx(spent["large"], abs=72)


def test_who_needs_another_network_is_not_merged() -> None:
    """Another guidance, another calibration, or classes where the first has none."""
    plain = [running(1) for _ in range(2)]
    others = [
        running(1, guidance=Guidance(scale=2.0), label=np.zeros(1, np.int64)),
        running(1, stage="encode", settings=SolverSettings(encoder="mixed")),
    ]
    assert turn(flows(plain[0], *others, plain[1])) == plain


def test_a_short_stream_is_encoded_in_calls_that_let_the_next_stage_begin_early() -> None:
    """Calls of b rows cost b + 2 here, and those of 4 and less too much a row: (n + b) (b + 2) / b decides to 2 %."""

    def rows_of_a_call(*flows_of_rows: tuple[str, int], stream: int) -> int:
        work = [
            running(1, name, stage="encode", stream_rows=stream)
            for name, rows in flows_of_rows
            for _ in range(rows)
        ]
        return len(turn(flows(*work, rows=32, overhead=2)))

    assert rows_of_a_call(("job", 64), stream=4) == 8
    assert rows_of_a_call(("job", 64), stream=128) == 16
    assert rows_of_a_call(("job", 64), stream=192) == 32  # 16 saves 1.7 % of the time: not enough
    assert rows_of_a_call(("job", 64), stream=512) == 32
    assert rows_of_a_call(("job", 64), stream=0) == 32
    # Several short streams are one longer one.
    assert rows_of_a_call(*((f"job {n}", 2) for n in range(16)), stream=8) == 16


def spent_by(queue: Scheduler, turns: int, *, overhead: float = 8.0) -> Counter[str]:
    """What each owner was given of so many turns."""
    spent: Counter[str] = Counter()
    for _ in range(turns):
        members = turn(queue)
        cost = sum(each.rows for each in members) + overhead
        for each in members:
            spent[each.owner] += cost * each.rows / sum(each.rows for each in members)
    return spent


def test_many_requests_of_one_peer_get_no_more_than_one_of_another() -> None:
    """Half of the time each, however many there are."""
    many = [running(64, f"r{n}", owner="west") for n in range(40)]
    queue = flows(*many, running(50, "job", owner="north"))
    spent = spent_by(queue, 400)
    assert spent["north"] == pytest.approx(spent["west"], rel=0.05)


def test_requests_of_one_call_each_that_follow_one_another_get_no_more_either() -> None:
    """A request that ends leaves its owner's debts: the next one begins with them."""
    queue = flows(running(50, "job", owner="north"))
    west = [running(64, f"r{n}", owner="west") for n in range(38)]
    for each in west:
        queue.add(each)
    spent: Counter[str] = Counter()
    for number in range(600):
        members = turn(queue)
        for each in members:
            spent[each.owner] += each.rows + 8
        for each in [each for each in members if each.owner == "west"]:
            queue.remove(each)
            west.remove(each)
            west.append(running(64, f"s{number}", owner="west"))
            queue.add(west[-1])
    assert spent["north"] == pytest.approx(spent["west"], rel=0.05)


def test_an_owners_requests_share_what_it_gets() -> None:
    """And a weight is of the owner: 3 beside 1 gets three quarters, with one request or with four."""
    four = [running(60, f"r{n}", weight=3.0, owner="west") for n in range(4)]
    queue = flows(*four, running(60, "job", owner="north"))
    turns = Counter(each.flow for _ in range(800) for each in turn(queue))
    assert turns.pop("job") == pytest.approx(200, abs=4)
    assert set(turns.values()) <= set(range(147, 154))


def test_a_small_flow_does_not_carry_many_rows_of_another_owners_requests() -> None:
    """A call of its own 9 units costs at most 18, whether the other has one request or forty."""
    small = running(1, "small", owner="north")
    queue = flows(small, *[running(1, f"r{n}", owner="west") for n in range(40)], rows=64)
    queue.charge([each for each in queue if each.owner == "west"][:1])
    assert len(turn(queue)) == 1 + 9


def test_short_streams_of_many_go_one_after_another_as_one_stream_of_all_would() -> None:
    """Four of sixteen are in a call of 8 rows until they end; were that long, others would have their turn."""
    work = [[running(1, f"job {n}", stage="encode", stream_rows=2) for _ in range(2)] for n in range(16)]
    queue = flows(*[each for two in work for each in two], rows=32, overhead=2)
    first = [each for two in work[:4] for each in two]
    for _ in range(48):
        assert turn(queue) == first
    for each in first:
        queue.remove(each)
    following = [each for two in work[4:8] for each in two]
    for _ in range(2_000):
        if turn(queue) != following:
            return
    raise AssertionError("the same flows had every turn")
