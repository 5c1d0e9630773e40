"""Output for terminals and scripts: results on stdout, everything else on stderr."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from enum import Enum
from pathlib import Path
from typing import Any

from ddib_fed.errors import DdibError, KindMismatch, PeerFault, PictureMisfit
from ddib_fed.hints import next_step
from ddib_fed.terminal import console, is_aside, say, say_document, say_labelled


def show_error(error: DdibError) -> None:
    say_labelled("error: ", f"{error.detail}  [{error.reason}]")
    if error.hop:
        say_labelled("  at:   ", error.hop)
    # Whose facts are in the sentence and the hint.
    said = (
        isinstance(error, PictureMisfit | KindMismatch | PeerFault)
        or {"found", "last", "picture"} & error.facts.keys()
    )
    facts = "" if said else ", ".join(f"{key} {value}" for key, value in error.facts.items())
    if facts:
        say_labelled(f"  {error.says} says: " if error.says else "  more: ", facts)
    if error.incident:
        say_labelled("  incident: ", error.incident)
    if error.differences:  # of two contracts
        rows = [[each.field, each.source, each.target, each.remedy] for each in error.differences]
        print_table("", ["field", "source", "target", "what to do"], rows, err=True)
    step = next_step(error)
    if error.retry_after_s:
        step = (
            f"{step} (after {error.retry_after_s:.0f} s)"
            if step
            else f"again after {error.retry_after_s:.0f} s"
        )
    if step:
        say_labelled("  try:  ", step)


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, err: bool = False
) -> None:
    """A small table; a column is to the right with ">" before its name, and is not wrapped with "!"."""
    from rich import box
    from rich.measure import Measurement
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    for column in columns:
        table.add_column(
            column.lstrip(">!"),
            justify="right" if column.startswith(">") else "left",
            no_wrap=column.startswith("!"),
            overflow="fold",
        )
    for row in rows:
        table.add_row(*row)
    target = console(stderr=err)
    if any(column.startswith("!") for column in columns):
        anywhere = target.options.update(width=1 << 16)
        target.width = max(target.width, Measurement.get(target, anywhere, table).minimum)
    target.print(table, crop=False)


def lines(pairs: Mapping[str, str]) -> None:
    width = max(map(len, pairs))
    for name, value in pairs.items():
        say(f"{name:<{width}}  {value}")


def print_json(value: object) -> None:
    say_document(json.dumps(plain(value), indent=2, sort_keys=False))


def emit(value: object, text: Callable[[], object] | None = None) -> None:
    """The result of a command with `options.OUTCOME`: one JSON document if that is asked for, else its own lines."""
    if is_aside():
        print_json(value)
    elif text is not None:
        text()


def outcome(**values: object) -> None:
    emit(values)


def print_ids(ids: Iterable[str], output_format: str = "text") -> None:
    """Names or ids alone: one a line, or a JSON list."""
    if output_format == "json":
        print_json(list(ids))
        return
    listed = list(ids)
    emit(listed, lambda: say(*listed) if listed else None)


def moment(unix_s: float) -> str | None:
    """A time for scripts: ISO 8601 in UTC, e.g. 2026-11-26T17:40:00Z; None for 0, which means not yet or unknown."""
    try:
        return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%dT%H:%M:%SZ}" if unix_s else None
    except (OverflowError, OSError, ValueError):
        return None


def figures(value: object) -> dict[str, Any]:
    found: dict[str, Any] = plain(value)
    return found


def plain(value: object) -> Any:
    """Dataclasses, pydantic models, enums, bytes (as hex), paths and tuples as JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):  # pydantic is not imported for commands that do not need it
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, datetime):
        return moment(value.timestamp())
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def number(value: float) -> str:
    return f"{value:.3g}"


def size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
