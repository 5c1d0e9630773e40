"""Refusals: one line for an identity and reason in a minute, and not more lines than the disk takes."""

from __future__ import annotations

import pytest

from ddib_fed.security.admission import INTERVAL_S, MAX_KEYS, OTHERS, Refusals


class Audit(list):
    """Keeps what is written, (identity, reason, times)."""

    def write(self, act: str, **values) -> None:
        assert act == "refused"
        self.append((values["identity"], values["reason"], values["times"]))


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def refuse(
    refusals: Refusals, identity: str, reason: str = "PEER_UNKNOWN", address: str = "ipv4:10.0.0.1"
) -> None:
    refusals.add(reason, identity=identity, address=address, what="Decode", detail="for a test")


@pytest.fixture
def audit() -> Audit:
    return Audit()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refusals(audit: Audit, clock: Clock) -> Refusals:
    return Refusals(audit, clock)


def test_repeated_refusals_share_a_line_that_counts_them(
    refusals: Refusals, audit: Audit, clock: Clock
) -> None:
    """The first is written at once, the others when the minute is over, also if none follows."""
    for _ in range(100):
        refuse(refusals, "alice")
    refusals.flush()
    assert audit == [("alice", "PEER_UNKNOWN", 1)]
    clock.now += INTERVAL_S
    refusals.flush()
    assert audit[1:] == [("alice", "PEER_UNKNOWN", 99)]
    clock.now += INTERVAL_S
    refusals.flush()
    refusals.flush(everything=True)
    assert len(audit) == 2


def test_ten_thousand_identities_do_not_fill_the_disk(refusals: Refusals, audit: Audit, clock: Clock) -> None:
    """Those beyond the bound share one line for each reason; every refusal is counted."""
    for number in range(10_000):
        refuse(refusals, f"client-{number}")
    clock.now += INTERVAL_S
    refusals.flush()
    assert len(audit) == MAX_KEYS + 2
    assert sum(times for _, _, times in audit) == 10_000
    assert audit[-1][0] == OTHERS
    clock.now += INTERVAL_S
    refusals.flush()
    refuse(refusals, "late")
    assert audit[-1] == ("late", "PEER_UNKNOWN", 1), "the bound is on identities at a time"


def test_what_could_not_be_written_is_written_later(clock: Clock) -> None:

    class Full(Audit):
        full = True

        def write(self, act: str, **values) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            super().write(act, **values)

    audit = Full()
    refusals = Refusals(audit, clock)
    refuse(refusals, "alice")
    audit.full = False
    clock.now += INTERVAL_S
    refusals.flush()
    assert audit == [("alice", "PEER_UNKNOWN", 1)]
