"""What was used of a day's quota is counted once, on the disk before the work begins; no kill gives it back."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ddib_fed.errors import NotReady, QuotaSpent
from ddib_fed.guidance import Guidance
from ddib_fed.node.policy import AHEAD, DAY_S, REPEATS, Charge, Quotas, evaluations_of
from ddib_fed.store import NodeStore


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path):
    made = NodeStore(tmp_path / "node.sqlite")
    yield made
    made.close()


def charge(amount: int, limit: int = 100, who: str = "north.example") -> list[Charge]:
    return [Charge("evaluations_per_day", who, amount, limit)]


def spend_all(quotas: Quotas, limit: int = 100) -> int:
    """Charge one after another until nothing is left; how many there were."""
    count = 0
    while True:
        try:
            quotas.charge(charge(1, limit))
        except QuotaSpent:
            return count
        count += 1


def test_what_does_not_fit_is_refused_and_says_what_is_left_and_when_it_renews(clock) -> None:
    """Nothing of it was booked: what fits is still taken."""
    quotas = Quotas(None, clock=clock)
    quotas.charge(charge(60))
    with pytest.raises(QuotaSpent) as spent:
        quotas.charge(charge(41))
    assert spent.value.retry_after_s == DAY_S
    assert spent.value.facts == {
        "quota": "evaluations_per_day", "of": "north.example", "limit": "100", "left": "40", "asked": "41",
        "renews": "2001-09-10T01:46:40+00:00",
    }  # fmt: skip
    quotas.charge(charge(40))


def test_a_day_begins_with_the_first_charge_and_each_has_its_own(clock) -> None:
    """A minute before its end nothing is free yet."""
    quotas = Quotas(None, clock=clock)
    quotas.charge(charge(100))
    clock.now += DAY_S / 2
    quotas.charge(charge(100, who="west.example"))
    clock.now += DAY_S / 2 - 60
    for who in ("north.example", "west.example"):
        with pytest.raises(QuotaSpent):
            quotas.charge(charge(1, who=who))
    clock.now += 60
    quotas.charge(charge(100))
    with pytest.raises(QuotaSpent):
        quotas.charge(charge(1, who="west.example"))


def test_either_all_quotas_are_charged_or_none(clock) -> None:
    """Evaluations are not spent on what the quota of samples refuses."""
    quotas = Quotas(None, clock=clock)
    with pytest.raises(QuotaSpent) as spent:
        quotas.charge([*charge(100), Charge("samples_per_day", "north.example", 2, 1)])
    assert spent.value.facts["quota"] == "samples_per_day"
    quotas.charge(charge(100))


def test_the_same_work_again_is_free_up_to_a_tenth_of_the_limit(clock) -> None:
    """A crash of the peer costs it nothing; sending one latent for ever costs what it costs here."""
    quotas = Quotas(None, clock=clock)
    work = "request", 0, b"digest"
    quotas.charge(charge(50, 1_000), work)
    free = 1_000 // REPEATS // 50
    for _ in range(free):
        quotas.charge(charge(50, 1_000), work)
    assert spend_all(quotas, 1_000) == 950
    with pytest.raises(QuotaSpent):
        quotas.charge(charge(50, 1_000), work)


def test_work_that_was_never_begun_is_taken_back(clock) -> None:
    quotas = Quotas(None, clock=clock)
    quotas.charge(charge(60))
    quotas.refund(charge(60))
    assert spend_all(quotas) == 100


def test_a_restart_gives_nothing_back_and_an_orderly_one_takes_nothing(store, clock) -> None:
    """The exact count is written when the node ends."""
    quotas = Quotas(store, clock=clock)
    quotas.charge(charge(123_456, 10**6))
    quotas.close()
    with pytest.raises(QuotaSpent) as spent:
        Quotas(store, clock=clock).charge(charge(10**6, 10**6))
    assert spent.value.facts["left"] == str(10**6 - 123_456)


def test_a_kill_gives_nothing_back_and_takes_at_most_a_part_of_the_limit(tmp_path) -> None:
    """Of a process that charges as fast as it can, and is killed with -9 in the middle of it."""
    path = tmp_path / "node.sqlite"
    program = f"""
from pathlib import Path
from ddib_fed.node.policy import Charge, Quotas
from ddib_fed.store import NodeStore
quotas, count = Quotas(NodeStore(Path({str(path)!r}))), 0
while True:
    quotas.charge([Charge("evaluations_per_day", "north.example", 7, 10**6)])
    count += 7
    print(count, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(300):
            last = process.stdout.readline()
        process.kill()
        last = process.stdout.read().rpartition("\n")[0].rpartition("\n")[2] or last
    store = NodeStore(path)
    (account,) = store.read("SELECT spent FROM quotas")
    store.close()
    # What was printed had been charged; one more charge may have been booked and not printed.
    assert int(last) <= account["spent"] <= int(last) + 7 + 10**6 // AHEAD + 7


def test_works_are_charged_in_their_order_as_many_as_fit_with_one_write(store, clock) -> None:
    """A small one does not pass a large one that has no room; repeats among them are free to a tenth."""
    quotas = Quotas(store, clock=clock)
    works = [(charge(amount), name) for name, amount in enumerate((8, 40, 30, 30, 1))]
    assert quotas.charge_each(works) == 3
    assert store.commits == 1
    assert quotas.charge_each([works[0], works[4]]) == 2
    with pytest.raises(QuotaSpent) as spent:
        quotas.charge_each(works[3:])
    assert spent.value.facts["left"] == "21", "8, 40, 30 and 1 were charged, and 8 again was free"
    quotas.charge(charge(21))


def test_a_full_disk_books_nothing_and_asks_to_come_back(store, clock, monkeypatch) -> None:
    """Work whose charge is not on the disk is not begun."""
    quotas = Quotas(store, clock=clock)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", full)
        with pytest.raises(NotReady) as refused:
            quotas.charge(charge(100))
        with pytest.raises(NotReady):
            quotas.charge_each([(charge(60), "a"), (charge(40), "b")])
    assert refused.value.retry_after_s
    quotas.charge(charge(100))


def test_a_clock_that_was_set_back_makes_no_day_longer_than_a_day(clock) -> None:
    """Else a clock that was wrong for a moment would lock a peer out for years."""
    quotas = Quotas(None, clock=clock)
    clock.now += 1_000 * DAY_S
    quotas.charge(charge(100))
    clock.now -= 1_000 * DAY_S
    with pytest.raises(QuotaSpent) as spent:
        quotas.charge(charge(1))
    assert spent.value.retry_after_s == DAY_S
    clock.now += DAY_S
    quotas.charge(charge(100))


def test_pictures_count_their_pixels_and_guided_legs_twice() -> None:
    """Points count one each, channels nothing; a way back counts as another leg, guided if it is."""
    assert evaluations_of(10, (2,), 48) == 480
    assert evaluations_of(2, (3, 32, 16), 10) == 2 * 512 * 10
    assert evaluations_of(1, (1, 8, 8), 10, round_trip=True) == 2 * 640
    guided = Guidance(scale=3.0)
    assert evaluations_of(1, (1, 8, 8), 10, guided) == 2 * 640
    assert evaluations_of(1, (1, 8, 8), 10, guided, round_trip=True) == 3 * 640
