"""What crossed and what was refused in the last day, hour by hour; the audit log is read on from where it ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from ddib_fed.trust.audit.log import RECEIPT, parsed

HOURS: Final = 24


@dataclass(slots=True)
class Hour:
    """What one hour had."""

    start: datetime
    sent_items: int = 0
    sent_bytes: int = 0
    received_items: int = 0
    received_bytes: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a line of the log."""
        if record.get("act") == RECEIPT:
            for name in ("sent_items", "sent_bytes", "received_items", "received_bytes"):
                setattr(self, name, getattr(self, name) + _count(record.get(name)))
        elif record.get("act") == "refused":
            self.refused[str(record.get("reason"))] += _count(record.get("times", 1))


class Recent:
    """The last day of an audit log; for one thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._hours: dict[datetime, Hour] = {}

    def hours(self, now: datetime) -> tuple[Hour, ...]:
        """The last 24 hours, the oldest first, the running one last; lines that cannot be read are skipped."""
        self._read_on()
        this = now.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
        starts = [this - timedelta(hours=back) for back in reversed(range(HOURS))]
        self._hours = {start: hour for start, hour in self._hours.items() if start >= starts[0]}
        return tuple(self._hours.get(start) or Hour(start) for start in starts)

    def _read_on(self) -> None:
        """Count the lines that were written since; a log that became shorter is read anew."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            if file.seek(0, 2) < self._read:
                self._read, self._hours = 0, {}
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):  # being written
                    break
                self._read += len(line)
                record = parsed(line)
                if record is not None and (start := _hour(record.get("time"))) is not None:
                    self._hours.setdefault(start, Hour(start)).add(record)


def _hour(time: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(str(time))
    except ValueError:
        return None
    return found.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
