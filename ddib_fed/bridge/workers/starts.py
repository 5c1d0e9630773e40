"""How starting a pool's workers goes: when the next is tried, what the operator should know, when work is given up."""

from __future__ import annotations

import logging
import time
from typing import Final

from ddib_fed.errors import NotReady

log = logging.getLogger(__name__)

FIRST_PAUSE_S: Final = 0.5
LONGEST_PAUSE_S: Final = 30.0
"""Between tries to replace a worker that does not start."""
PATIENCE_S: Final = 20.0
"""How long accepted work waits while no worker can be started; then it fails with `NotReady`, to be tried again."""
STARTING_S: Final = 300.0
"""The same while one is being started, as far as is known."""


class Starts:
    """What became of the starts so far; every call is made with the pool's lock."""

    def __init__(self, what: str, remedy: str) -> None:
        self._what, self._remedy = what, remedy
        self.problem: str | None = None
        self.refusal: Exception | None = None
        self._proven = False
        self._pause_s, self._not_before = FIRST_PAUSE_S, 0.0
        self._worker_since = time.monotonic()
        """When there last was a worker that could take work."""

    def succeeded(self) -> None:
        self._proven = True
        self._pause_s, self.problem = FIRST_PAUSE_S, None

    def failed(self, error: Exception) -> None:
        """One could not be started: the next is tried after a pause, which doubles each time."""
        self.refusal = self.refusal or error
        self.problem = f"a {self._what} cannot be started: {error}"
        if self._proven:
            log.error("%s; tried again in %.1f s", self.problem, self._pause_s)
        self._not_before = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def due(self, there: int, wanted: int) -> bool:
        return there < (wanted if self._proven else 1) and time.monotonic() >= self._not_before

    def worker_there(self) -> None:
        self._worker_since = time.monotonic()

    def deserted(self) -> bool:
        patience_s = STARTING_S if self.problem is None else PATIENCE_S
        return time.monotonic() - self._worker_since > patience_s

    def nobody(self) -> NotReady:
        """The error of work that is given up."""
        return NotReady(
            f"no {self._what} is there: {self.problem or 'they are being started'}",
            hint=self._remedy,
            retry_after_s=5.0,
        )
