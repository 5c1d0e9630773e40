"""The node's time at the end of each call, by which two clocks are compared.

Every call of a node ends with the trailing metadata `ddib-time`: its Unix time in seconds. Certificates, calibrations
and quotas depend on the clock, and a wrong one shows as a refusal whose text speaks of something else.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from typing import Any, Final

from ddib_fed.wire.contracts.calibration import LAST_MOMENT

TIME_KEY: Final = "ddib-time"
TOLERATED_S: Final = 60.0
"""Certificates are made to begin some minutes before they are issued: less than this refuses nothing."""


def time_entry(now: float) -> tuple[str, str]:
    return TIME_KEY, f"{now:.3f}"


def clock_difference(trailing: Iterable[Any] | None) -> float | None:
    """Seconds by which the other clock is ahead of this one, too low by the time that the answer took to arrive."""
    for key, value in trailing or ():
        if key == TIME_KEY and isinstance(value, str):
            try:
                said = float(value[:32])
            except ValueError:
                return None
            return said - time.time() if math.isfinite(said) and 0 <= said <= LAST_MOMENT else None
    return None


def described(difference_s: float) -> str:
    """A difference between two clocks, for a person, from this machine's side."""
    size = abs(difference_s)
    for unit, seconds in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if size >= 2 * seconds:
            return (
                f"{size / seconds:.0f} {unit} {'ahead of' if difference_s > 0 else 'behind'} this machine's"
            )
    return f"{size:.0f} s {'ahead of' if difference_s > 0 else 'behind'} this machine's"
