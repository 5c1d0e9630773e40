"""A peer that is away is tried by one job at a time, no sooner than it asked, and less and less often."""

from __future__ import annotations

from source_node.remote import LONGEST_PAUSE_S, Reach
from tests.source_node.jobs.job_examples import Clock


def next_try(reach: Reach, clock: Clock) -> float:
    """Seconds until a job may try it, to a hundredth."""
    begun = clock.now
    while not reach.may_try("south.example"):
        clock.now += 0.01
    return clock.now - begun


def test_no_job_asks_before_the_time_that_the_peer_named() -> None:
    """Not only the one that was told."""
    clock = Clock()
    reach = Reach(clock=clock)
    reach.failed("south.example", "NOT_READY", 3_600.0)
    clock.now += 3_599
    assert not reach.may_try("south.example")
    clock.now += 1
    assert reach.may_try("south.example")


def test_the_pauses_grow_up_to_a_longest_one() -> None:
    """And begin anew once it has answered."""
    clock = Clock()
    reach = Reach(clock=clock)
    pauses = []
    for _ in range(20):
        reach.failed("south.example", "PEER_UNREACHABLE")
        pauses.append(next_try(reach, clock))
    assert pauses[0] <= 1
    assert LONGEST_PAUSE_S / 2 - 1 < pauses[-1] < LONGEST_PAUSE_S + 1
    reach.answered("south.example")
    reach.failed("south.example", "PEER_UNREACHABLE")
    assert next_try(reach, clock) <= 1


def test_one_job_at_a_time_tries_a_peer_that_is_away() -> None:
    """The others wait for what it finds, also when it ends without a word."""
    clock = Clock()
    reach = Reach(clock=clock)
    reach.begin("south.example", "first")
    assert not reach.may_try("south.example")
    reach.end("south.example", "another")
    assert not reach.may_try("south.example")
    reach.end("south.example", "first")
    assert reach.may_try("south.example")
