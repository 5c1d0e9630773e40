"""Places for concurrent work: bounded in all and for each, and nobody can have all of them."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from ddib_fed.errors import TooManyStreams
from ddib_fed.node.interceptors import Slots


def taken(slots: Slots, who: str, ends: ExitStack) -> int:
    """How many places somebody gets."""
    count = 0
    while True:
        try:
            ends.enter_context(slots.taken(who))
        except TooManyStreams:
            return count
        count += 1


def test_a_few_that_take_what_they_can_leave_something_for_those_who_have_nothing() -> None:
    """Alone one has five eighths; each that comes later has less, and the last few places are for newcomers."""
    slots = Slots(per_identity=64, total=64)
    with ExitStack() as ends:
        found = [taken(slots, f"peer {n}", ends) for n in range(8)]
        assert found == sorted(found, reverse=True)
        assert found[0] == 40
        assert all(found)
    assert slots.active == 0


@pytest.mark.parametrize("total", [1, 2, 3])
def test_a_few_places_are_used(total) -> None:
    """One of one, both of two, two of three."""
    with ExitStack() as ends:
        assert taken(Slots(8, total), "a", ends) == min(total, 2)
