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
from ddib_fed.terminal import console, is_aside, say, say_document, say_labelled

# The default hint by reason, for errors without their own; parents of the class are tried after it.
NEXT_STEPS: Mapping[str, str] = {
    "INTERNAL": "give the incident's id, where there is one, to the node's operator, whose log has the rest",
    "INPUT_INVALID": "correct what the message names, then repeat the command",
    "CONFIG_INVALID": "tell the node's operator: its log, and its `check --config node.toml`, name the setting",
    "USAGE": "the command's --help",
    "SETTINGS_INVALID": "the command's --help says what each option takes",
    "MESSAGE_INVALID": "ddib --version on both machines: client and node may be of different releases",
    "SHAPE_MISMATCH": "`ddib domains` shows the shapes that nodes take, `ddib model show MODEL` that of a model",
    "PICTURE_MISFIT": "convert the picture to the units of the model, or use a model of its units",
    "KIND_MISMATCH": "`ddib domains` shows what nodes take, `ddib model show MODEL` what a model takes",
    "IMAGE_UNREADABLE": "open the file in a viewer and save it again, as PNG, JPEG or TIFF",
    "IMAGE_TOO_LARGE": "make the picture smaller, or cut it into several files",
    "NOT_FINITE": "replace the values that are NaN or infinite, e.g. by numpy.nan_to_num",
    "POINTS_UNREADABLE": "numpy.save(file, points) with points of shape (N, D) writes such a file",
    "POINTS_TOO_MANY": "split the file into several and translate them in one call",
    "ITEMS_TOO_MANY": "ddib translate ... --detach makes jobs as small as the node allows; the operator can raise "
    "[limits] max_items_per_job in node.toml",
    "BUNDLE_INVALID": "ddib model show DIR names the check that fails",
    "CONTRACT_MISMATCH": "send the table to both operators; ddib domains lists what can be reached now",
    "STATE_CONFLICT": "ddib job list shows the job's state",
    "REFUSED": "ask the operator of the node that refused",
    "CALIBRATION_REFUSED": "the operators of both nodes: ddib calibrate list; or ddib translate --no-calibration",
    "CALIBRATION_EXPIRED": "the operator: ddib calibrate --peer INSTITUTION/DOMAIN; or ddib translate --no-calibration",
    "CALIBRATION_KIND": "the operators: [policy] calibration in node.toml; or ddib translate --no-calibration",
    "CALIBRATION_UNITS": "the node's operator: ddib calibrate list, and ddib model show of the model that is served",
    "UNAUTHENTICATED": "`ddib doctor`, at a node `ddib pki show`, names what is wrong with the certificate",
    "PEER_UNKNOWN": "a client: its operator (ddib pki show lists it); a node: the operators exchange peer files, "
    "ddib peer export and ddib peer add",
    "PEER_SUSPENDED": "accepted jobs wait; the operator of the node that refused lifts it: ddib peer resume",
    "LATENT_NOT_GAUSSIAN": "leave it out, or train the source's model longer and with data like it",
    "NOT_FOUND": "check the name",
    "JOB_NOT_FOUND": "ddib job list",
    "ITEM_NOT_FOUND": "ddib job show JOB",
    "DOMAIN_NOT_FOUND": "ddib domains",
    "PEER_NOT_FOUND": "ddib domains, or ddib peer list at the node",
    "MODEL_NOT_FOUND": "`ddib model list` lists the models that ship, `ddib model train` makes one",
    "FILE_NOT_FOUND": "check the path",
    "REQUEST_ID_CONFLICT": "submit again: a new request id is made for each job",
    "ALREADY_EXISTS": "choose another folder, or --force",
    "EXHAUSTED": "try again later; ddib job list shows what is under way",
    "UNAVAILABLE": "run ddib doctor, then repeat the command",
    "NOT_READY": "repeat the command in a moment",
    "DRAINING": "repeat the command when the node is back",
    "PEER_UNREACHABLE": "ddib doctor",
    "CHUNK_CORRUPT": "repeat the command; the bytes were damaged in transit",
    "CANCELLED": "ddib job list",
    "DEADLINE_EXCEEDED": "translate fewer or smaller files at once",
    "JOB_FAILED": "ddib job show JOB",
    "FILES_LEFT_OUT": "repair the listed files, then the same command again",
    "PEER_FAULT": "tell the operator of that institution; ddib domains lists what can be reached now",
    "DISK_FULL": "df -h shows the disks of this machine; a node's own are its operator's",
    "OUT_OF_BOUNDS": "the report names the figure",
}


def next_step(error: DdibError) -> str:
    """What to try: the error's own hint, else the table's line for its class or the nearest parent."""
    if error.hint:
        return error.hint
    reasons = (str(getattr(kind, "reason", "")) for kind in type(error).__mro__)
    return next((NEXT_STEPS[reason] for reason in reasons if reason in NEXT_STEPS), "")


def next_steps(errors: Iterable[DdibError]) -> str:
    steps = dict.fromkeys(step for error in errors if (step := next_step(error)))
    return "\n".join([*steps][:3])


def show_error(error: DdibError) -> None:
    """Write the failure, its hop and the hint to stderr."""
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
    """Names and values below one another on stdout."""
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
    """A number of bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
