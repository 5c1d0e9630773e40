"""Refusals: one line for an identity and reason in a minute, and not more lines than the disk takes."""

import pytest

from ddib_fed.security.admission import INTERVAL_S, MAX_KEYS, OTHERS, Refusals


class Audit(list):
    """Keeps what is written, (identity, times), unless the disk is full; and the time."""

    full, now = False, 1_000.0

    def write(self, act: str, **values) -> None:
        if self.full:
            raise OSError(28, "No space left on device")
        assert (act, values["reason"]) == ("refused", "PEER_UNKNOWN")
        self.append((values["identity"], values["times"]))


@pytest.fixture
def audit() -> Audit:
    return Audit()


@pytest.fixture
def refusals(audit: Audit) -> Refusals:
    return Refusals(audit, lambda: audit.now)


def refuse(refusals: Refusals, identity: str) -> None:
    refusals.add(
        "PEER_UNKNOWN", identity=identity, address="ipv4:10.0.0.1", what="Decode", detail="for a test"
    )


def test_repeated_refusals_share_a_line_that_counts_them(refusals: Refusals, audit: Audit) -> None:
    for _ in range(100):
        refuse(refusals, "alice")
    refusals.flush()
    assert audit == [("alice", 1)]
    audit.now += INTERVAL_S
    refusals.flush()
    assert audit[1:] == [("alice", 99)]
    audit.now += INTERVAL_S
    refusals.flush()
    refusals.flush(everything=True)
    assert len(audit) == 2


def test_ten_thousand_identities_do_not_fill_the_disk(refusals: Refusals, audit: Audit) -> None:
    for number in range(10_000):
        refuse(refusals, f"client-{number}")
    audit.now += INTERVAL_S
    refusals.flush()
    assert len(audit) == MAX_KEYS + 2
    assert sum(times for _, times in audit) == 10_000
    assert audit[-1][0] == OTHERS
    audit.now += INTERVAL_S
    refusals.flush()
    refuse(refusals, "late")
    assert audit[-1] == ("late", 1), "the bound is on identities at a time"
