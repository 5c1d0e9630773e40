"""How long a sender may say nothing: while its receiver works not at all counted, and afterwards a whole time."""

from __future__ import annotations

import pytest

from ddib_fed.errors import DeadlineExceeded
from ddib_fed.node.interceptors import Pace


def test_a_sender_has_the_whole_time_after_the_receiver_worked() -> None:
    """Work that ended shortly before the time was over leaves the sender a new one, and only one."""
    busy = True
    pace = Pace(1.0, between_s=5.0, busy=lambda: busy)
    assert pace.wait_s() == 5.0
    busy = False
    pace.late()
    assert pace.wait_s() == 5.0
    with pytest.raises(DeadlineExceeded, match="sent nothing"):
        pace.late()


def test_a_receiver_that_works_is_waited_for() -> None:
    """However long that takes; a stall inside an object is none of it."""
    pace = Pace(1.0, between_s=5.0, busy=lambda: True)
    for _ in range(3):
        assert pace.wait_s() == 5.0
        pace.late()
    pace.begin(0)
    with pytest.raises(DeadlineExceeded, match="stalled"):
        pace.late()
