"""A peer that is away is tried by one job at a time, no sooner than it asked, and less and less often."""

from __future__ import annotations

from source_node.runner import CircuitBreaker
from tests.source_node.jobs.job_examples import Clock


def test_no_job_asks_before_the_time_that_the_peer_named() -> None:
    """Not only the one that was told."""
    clock = Clock()
    reach = CircuitBreaker(clock=clock)
    reach.failed("south.example", "NOT_READY", 3_600.0)
    clock.now += 3_599
    assert not reach.may_try("south.example")
    clock.now += 1
    assert reach.may_try("south.example")


def test_one_job_at_a_time_tries_a_peer_that_is_away() -> None:
    """The others wait for what it finds, or for its end."""
    clock = Clock()
    reach = CircuitBreaker(clock=clock)
    reach.begin("south.example", "first")
    reach.begin("south.example", "second")
    reach.end("south.example", "second")
    assert not reach.may_try("south.example")
    reach.end("south.example", "first")
    assert reach.may_try("south.example")
    reach.begin("south.example", "third")
    assert not reach.may_try("south.example")
    assert reach.answered("south.example")
    assert reach.may_try("south.example")
    assert reach.failed("south.example", "NOT_READY")
    clock.now += 10
    reach.begin("south.example", "third")
    assert not reach.may_try("south.example")
    reach.end("south.example", "third")
    assert reach.may_try("south.example")
