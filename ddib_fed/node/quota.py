"""What peers and clients may use of a node in a day, counted on the disk.

A day begins with the first charge of who is charged, and everything is free again a day later. What is on the disk is
ahead of what was spent by up to a ten-thousandth of the limit: a charge is on the disk before the work that it is for
begins, most charges write nothing, and a kill gives nothing back. An orderly stop writes the exact numbers.
"""

from __future__ import annotations

import json
import logging
import shlex
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ddib_fed.errors import ConfigError, NotReady, QuotaSpent
from ddib_fed.files import check_private_file, write_file
from ddib_fed.guidance import UNGUIDED, Guidance

log = logging.getLogger(__name__)

DAY_S: Final = 24 * 3600.0
AHEAD: Final = 10_000
"""Parts of a limit of which one may be on the disk and not be spent: at most so many writes of an account a day."""
REPEATS: Final = 10
"""One of so many parts of a limit is free for work that is asked for again."""
MAX_KNOWN: Final = 10_000
"""Pieces of work that are remembered of each account, about 250 bytes each; beyond it the oldest is forgotten."""
RETRY_S: Final = 30.0
FORMAT: Final = 1


def evaluations_of(
    samples: int,
    sample_shape: Sequence[int],
    evaluations: int,
    guidance: Guidance = UNGUIDED,
    *,
    round_trip: bool = False,
) -> int:
    """What a leg of some samples costs: network evaluations of points, or of pixels."""
    positions = samples
    for side in sample_shape[1:]:
        positions *= side
    back = guidance.predictions if guidance.encoding else 1
    return positions * evaluations * (guidance.predictions + (back if round_trip else 0))


@dataclass(frozen=True, slots=True)
class Charge:
    """An amount against one quota."""

    quota: str
    who: str
    amount: int
    limit: int


@dataclass(frozen=True, slots=True)
class Work:
    """A piece of work and what is charged for it."""

    charges: Sequence[Charge]
    name: Hashable = None


class _Record(BaseModel):
    """An account in the file."""

    model_config = ConfigDict(extra="forbid")

    quota: str
    who: str
    since: float
    spent: int = Field(ge=0)


class _File(BaseModel):
    """The file."""

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT
    accounts: list[_Record] = []


@dataclass(slots=True)
class _Account:
    """A day of one quota of somebody."""

    since: float
    spent: int = 0
    written: int = 0
    repeated: int = 0
    paid: OrderedDict[Hashable, int] = field(default_factory=OrderedDict)

    def repeats(self, charge: Charge, work: Hashable) -> bool:
        """Whether this was charged before, and may be had again."""
        if work is None or charge.amount > self.paid.get(work, -1):
            return False
        return self.repeated + charge.amount <= charge.limit // REPEATS

    def remember(self, work: Hashable, amount: int) -> None:
        if work is None:
            return
        self.paid[work] = amount
        if len(self.paid) > MAX_KNOWN:
            self.paid.popitem(last=False)


@dataclass(frozen=True, slots=True)
class _Booking:
    """A piece of work in the accounts."""

    work: Hashable
    due: Sequence[tuple[Charge, _Account]]
    repeated: Sequence[tuple[Charge, _Account]]

    def count(self, sign: int = 1) -> None:
        for charge, account in self.due:
            account.spent += sign * charge.amount
        for charge, account in self.repeated:
            account.repeated += sign * charge.amount

    def undo(self) -> None:
        self.count(-1)

    def remember(self) -> None:
        for charge, account in self.due:
            account.remember(self.work, charge.amount)


class Ledger:
    """Accounts of a node; safe to use from any thread. Close it."""

    def __init__(self, path: Path | None, *, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: dict[tuple[str, str], _Account] = {}
        for record in [] if path is None else self.check(path):
            self._accounts[record.quota, record.who] = _Account(record.since, record.spent, record.spent)

    @staticmethod
    def check(path: Path) -> list[_Record]:
        """What a ledger would find there; changes nothing."""
        check_private_file(path)
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            return []
        try:
            if (version := json.loads(text)["format_version"]) > FORMAT:
                raise ConfigError(
                    f"{path} is of format {version}, of a newer release; this one knows {FORMAT}",
                    hint="upgrade ddib-fed",
                )
            return _File.model_validate_json(text).accounts
        except (ValidationError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path}, which counts what peers and clients have used, is damaged",
                hint="restore it from a backup, or remove it, and all quotas of the day start from zero: "
                f"rm {shlex.quote(str(path))}",
            ) from error

    def charge(self, charges: Sequence[Charge], work: Hashable = None) -> None:
        self.charge_each([Work(charges, work)])

    def charge_each(self, works: Sequence[Work]) -> int:
        """Book pieces of work in their order, as many as fit, with at most one write."""
        booked: list[_Booking] = []
        with self._lock:
            for work in works:
                try:
                    booked.append(self._book(work))
                except QuotaSpent:
                    if not booked:
                        raise
                    break
            try:
                self._write_ahead([each for booking in booked for each in booking.due])
            except OSError as error:
                for booking in booked:
                    booking.undo()
                log.exception("what was used of quotas cannot be written to %s", self._path)
                raise NotReady("the use of quotas cannot be recorded", retry_after_s=RETRY_S) from error
            for booking in booked:
                booking.remember()
        return len(booked)

    def _book(self, work: Work) -> _Booking:
        """Count a piece of work."""
        all_ = [(charge, self._of(charge)) for charge in work.charges if charge.limit > 0]
        due = [(charge, account) for charge, account in all_ if not account.repeats(charge, work.name)]
        for charge, account in due:
            self._require(charge, account)
        booking = _Booking(work.name, due, [each for each in all_ if each not in due])
        booking.count()
        return booking

    def refund(self, charges: Sequence[Charge]) -> None:
        """Take a charge back whose work was never begun; on the disk it stays until more is spent."""
        with self._lock:
            for charge in charges:
                if charge.limit > 0 and (account := self._accounts.get((charge.quota, charge.who))):
                    account.spent = max(0, account.spent - charge.amount)

    def require(self, charges: Sequence[Charge]) -> None:
        """Return if these amounts would fit now; nothing is booked."""
        with self._lock:
            for charge in charges:
                if charge.limit > 0:
                    self._require(charge, self._of(charge))

    def close(self) -> None:
        """Write what was spent exactly; logged where it cannot be written."""
        with self._lock:
            for account in self._accounts.values():
                account.written = account.spent
            with suppress(OSError):
                self._write()

    def _of(self, charge: Charge) -> _Account:
        """The account, of today."""
        key, now = (charge.quota, charge.who), self._clock()
        account = self._accounts.get(key)
        if account is None or now - account.since >= DAY_S:
            account = self._accounts[key] = _Account(now)
        account.since = min(account.since, now)  # the clock was set back: no day is longer than a day
        return account

    def _require(self, charge: Charge, account: _Account) -> None:
        left = max(0, charge.limit - account.spent)
        if charge.amount <= left:
            return
        renews = account.since + DAY_S
        when = datetime.fromtimestamp(renews, UTC).isoformat(timespec="seconds")
        asked = f"{charge.who} asks for {charge.amount:,} of {charge.quota}"
        facts: dict[str, str | int] = {
            "quota": charge.quota, "of": charge.who, "limit": charge.limit, "left": left, "asked": charge.amount,
        }  # fmt: skip
        if charge.amount > charge.limit:  # it fits on no day
            raise QuotaSpent(f"{asked}, and {charge.limit:,} is all of a day", facts=facts)
        raise QuotaSpent(
            f"{asked}, and {left:,} of {charge.limit:,} are left until {when}",
            facts={**facts, "renews": when},
            retry_after_s=max(1.0, renews - self._clock()),
        )

    def _write_ahead(self, due: Sequence[tuple[Charge, _Account]]) -> None:
        """Write when one of them has spent more than is on the disk; then all have a part of their limit in advance."""
        if all(account.spent <= account.written for _, account in due):
            return
        before = [(account, account.written) for _, account in due]
        for charge, account in due:
            account.written = max(account.written, account.spent + charge.limit // AHEAD)
        try:
            self._write()
        except OSError:
            for account, written in before:
                account.written = written
            raise

    def _write(self) -> None:
        if self._path is None:
            return
        today = self._clock() - DAY_S
        self._accounts = {key: each for key, each in self._accounts.items() if each.since > today}
        records = [
            _Record(quota=quota, who=who, since=each.since, spent=each.written)
            for (quota, who), each in self._accounts.items()
        ]
        text = _File(accounts=records).model_dump_json(indent=1)
        write_file(self._path, text.encode(), private=True)
