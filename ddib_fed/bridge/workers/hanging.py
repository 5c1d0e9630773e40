"""Workers that hang: the process is there and says nothing, because it was stopped or a driver of its device waits.

A worker that has work is asked for a sign of life now and then; its thread that takes messages answers, however long a
network call takes. Who does not answer is ended, and its work is done again by another, as after a crash. A caller
whose work is cancelled or late does not wait for its worker longer than `GRACE_S`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from ddib_fed.bridge.workers.workbench import Ping

ASK_EVERY_S: Final = 10.0
SILENT_S: Final = 60.0
"""How long a worker may leave a question unanswered: loading a library holds the interpreter for seconds."""
GRACE_S: Final = 10.0
"""How long work may take to end at its worker's next step once its control is over."""


@dataclass(slots=True)
class Pulse:
    """When a worker was asked and heard; seconds of `time.monotonic`."""

    asked: float = -math.inf
    unanswered: float | None = None

    def heard(self) -> None:
        self.unanswered = None

    def due(self, now: float) -> bool:
        """Whether to ask now; notes that it is asked."""
        if now - self.asked < ASK_EVERY_S:
            return False
        self.asked = now
        if self.unanswered is None:
            self.unanswered = now
        return True

    def silent(self, now: float) -> bool:
        return self.unanswered is not None and now - self.unanswered > SILENT_S


class Asked(Protocol):
    """What `hung` needs of a worker: see `books.Member`."""

    @property
    def pulse(self) -> Pulse:
        """When it was asked and heard."""

    def send(self, message: Any, /) -> None:
        """Send it a message."""


Worker = TypeVar("Worker", bound=Asked)


def hung(busy: Iterable[Worker], now: float) -> list[Worker]:
    """Those of the workers with work that hang; the others are asked for a sign of life when it is time."""
    found = []
    for member in busy:
        if member.pulse.silent(now):
            found.append(member)
        elif member.pulse.due(now):
            member.send(Ping())
    return found
