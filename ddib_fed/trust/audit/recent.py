"""The last lines of an audit log, as objects: what a node looks at when it starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from ddib_fed.trust.audit.lines import parsed

MAX_RECENT: Final = 8 << 20
"""Bytes: some 30,000 lines."""


@dataclass(frozen=True, slots=True)
class Recent:
    """The end of a log.

    Attributes:
        lines: Oldest first; broken ones are left out, `verify` finds them.
        whole: Whether these are all lines of the log.
        since: Unix time in seconds of the first; infinity without lines.
    """

    lines: tuple[Mapping[str, Any], ...]
    whole: bool
    since: float


def recent(path: Path, max_bytes: int = MAX_RECENT) -> Recent:
    """Read the end of a log; a log that is not there is an empty one.

    Args:
        path: The log.
        max_bytes: How much of it.

    Raises:
        OSError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - max_bytes))
            data = file.read(max_bytes)
    except FileNotFoundError:
        return Recent((), whole=True, since=float("inf"))
    whole = size <= max_bytes
    if not whole:
        data = data.partition(b"\n")[2]  # the rest of a line
    lines = tuple(line for raw in data.splitlines() if (line := parsed(raw)) is not None)
    return Recent(lines, whole, min(map(_time, lines), default=float("inf")))


def _time(line: Mapping[str, Any]) -> float:
    try:
        return datetime.fromisoformat(line["time"]).timestamp()
    except (KeyError, TypeError, ValueError):
        return float("inf")
