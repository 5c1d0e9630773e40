"""Cancelling: what a piece of work asks whether it should go on."""

from __future__ import annotations

import pytest

from ddib_fed.engine.party import Control
from ddib_fed.errors import DeadlineExceeded, Draining


def test_cancelling_interrupts_who_cannot_look() -> None:
    """A callback is called once when cancelled inside, at once when cancelled before, and not after leaving."""
    calls: list[str] = []
    control = Control()
    with control.interrupting(lambda: calls.append("left")):
        pass
    with control.interrupting(lambda: calls.append("inside")):
        control.cancel()
        control.cancel()
    with control.interrupting(lambda: calls.append("late")):
        pass
    assert calls == ["inside", "late"]


def test_the_first_reason_to_cancel_stays() -> None:
    """A job that was cancelled by its client is not drained afterwards."""
    control = Control()
    control.cancel(DeadlineExceeded())
    control.cancel(Draining())
    with pytest.raises(DeadlineExceeded):
        control.check()
