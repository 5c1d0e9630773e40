"""Which peers answer: jobs for one that does not wait together, and one at a time tries it."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0


@dataclass(slots=True)
class _Peer:
    """What is known of one."""

    answers: bool = False
    trying: str = ""
    not_before: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    reason: str = ""


class Reach:
    """What a source knows of its peers; safe to use from any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._peers: dict[str, _Peer] = {}

    def may_try(self, institution: str) -> bool:
        """Whether a job for it may be taken up: it answers, or nobody tries and the pause is over."""
        with self._lock:
            peer = self._peers.get(institution)
            if peer is None or peer.answers:
                return True
            return not peer.trying and self._clock() >= peer.not_before

    def begin(self, institution: str, job_id: str) -> None:
        """A job was taken up; where nothing is known, it is the one that tries."""
        with self._lock:
            peer = self._peers.setdefault(institution, _Peer())
            if not peer.answers and not peer.trying:
                peer.trying = job_id

    def answered(self, institution: str) -> bool:
        """It did; whether that is news."""
        with self._lock:
            peer = self._peers.setdefault(institution, _Peer())
            news = not peer.answers
            self._peers[institution] = _Peer(answers=True)
            return news

    def failed(self, institution: str, reason: str, at_least_s: float = 0.0) -> bool:
        """It did not; whether that is news. The next try is after a pause that grows."""
        with self._lock:
            peer = self._peers.setdefault(institution, _Peer())
            news = not peer.reason
            pause = max(at_least_s, peer.pause_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter, no secret
            peer.answers, peer.trying, peer.reason = False, "", reason
            peer.not_before = self._clock() + pause
            peer.pause_s = min(2 * peer.pause_s, LONGEST_PAUSE_S)
            return news

    def end(self, institution: str, job_id: str) -> None:
        """A job is over, whatever it met; if it was the one that tried, another may."""
        with self._lock:
            peer = self._peers.get(institution)
            if peer is not None and peer.trying == job_id:
                peer.trying = ""

    def reason(self, institution: str) -> str:
        """Why it is away; empty when it is not, as far as is known."""
        with self._lock:
            peer = self._peers.get(institution)
            return "" if peer is None else peer.reason

    @property
    def away(self) -> Collection[str]:
        with self._lock:
            return {name for name, peer in self._peers.items() if peer.reason}
