"""`ddib audit`: what the audit log says, for people, for scripts and for whoever checks it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shlex
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.options import group, option
from ddib_fed.errors import AlreadyExists, ChunkCorrupt, FileMissing, UsageError
from ddib_fed.files import write_file
from ddib_fed.terminal import emit, is_aside, outcome, print_json, say, say_document

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.security.audit_reading import AuditLine, LineFilter, Verified
    from ddib_fed.security.identity import Identity


@group()
def audit() -> None:
    """Read, follow, export and verify the node's audit log."""


def _node(config_path: Path) -> tuple[NodeConfig, Identity, Path]:
    """The node's configuration, its identity, and its log, which is there."""
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.security.identity import Identity

    config = NodeConfig.load(config_path)
    path = config.paths.store
    if not path.exists():
        raise FileMissing(f"there is no {path}", hint="a node writes it when it serves")
    return config, Identity(config.node.institution, "node", config.node.name), path


@audit.command(
    epilog="\b\nExamples:\n  ddib audit show --since 24h\n  ddib audit show -f --limit 10 --peer south.example\n"
    "  ddib audit show --since 2026-11-01 --out november.csv\n"
    "  ddib audit show --peer south.example --anchors --out for-south.json"
)
@options.CONFIG
@option("--job ID", "Only this job, or request; its first characters are enough.", default="")
@option("--peer INSTITUTION", "Only what concerns this institution.", default="")
@option("--since WHEN", "Not before: 30m, 2h or 7d ago, or a date and time (UTC) as 2026-11-26T14:00.")
@option("--limit N", "Only the last N of them.", click.IntRange(min=0))
@option("follows --follow -f", "Then each line as it is written, until Ctrl-C.")
@option(
    "--out FILE",
    "Verify the log, and write the lines to this file: CSV if its name ends in .csv, else one JSON object a line; the "
    "head of the chain to FILE.head.json.",
)
@option(
    "--anchors",
    "Instead what this node noted of the log of --peer, so that the peer can verify its log with it.",
)
@options.OUTCOME
def show(
    config_path: Path,
    job: str,
    peer: str,
    since: str | None,
    limit: int | None,
    follows: bool,
    out: Path | None,
    anchors: bool,
) -> None:
    """Show lines of the audit log: number, time, act, and what it names; as JSON one object a line.

    Without --out the chain is not checked: `ddib audit verify` does that. If the log is cut or replaced while it is
    followed, the command ends with 10. In a file each line has the digest of the log's line in `sha256`, and in CSV a
    text that a spreadsheet would take for a formula begins with an apostrophe. A log that is broken is not written.

    With each latent and each translation two nodes tell each other the ends of their logs; --anchors shows what was
    noted of a peer's: numbers of lines, digests and times. Ends that contradict each other show that it was rewritten.
    """
    from ddib_fed.security.audit_reading import LineFilter, entries, follow, parse_since

    config, own, path = _node(config_path)
    if anchors:
        idle = ("job", "since", "limit", "follows")
        options.refuse_idle(idle, "does not go with --anchors", hint="leave it out")
        _show_anchors(config, own, path, peer, out)
        return
    wanted = LineFilter(job, peer, None if since is None else parse_since(since))
    if out is not None:
        options.refuse_idle(("limit", "follows"), "does not go with --out", hint="leave it out")
        _write_lines(own, path, wanted, out)
        return
    read, kept = 0, deque["AuditLine"](maxlen=limit)
    for entry in entries(path):
        read = entry.line
        if entry in wanted:
            kept.append(entry)
    for entry in kept:
        _write(entry)
    for entry in follow(path, read) if follows else ():
        if entry in wanted:
            _write(entry)


def _write(entry: AuditLine) -> None:
    """One line for scripts, or for people: a value that could be taken for several is quoted."""
    if is_aside():
        say_document(json.dumps({**entry.record, "line": entry.line, "sha256": entry.sha256}))
        return
    if not entry.record:
        say(f"{entry.line:>6}  (not a line of the log: ddib audit verify)")
        return
    when = str(entry.record.get("time", ""))[:19].replace("T", " ")
    values = "  ".join(
        f"{key}={_value(value)}" for key, value in entry.values.items() if value not in ("", None)
    )
    say(f"{entry.line:>6}  {when}  {entry.record.get('act')!s:<18}  {values}".rstrip())


def _value(value: object) -> str:
    text = str(value)
    quoted = isinstance(value, list) or not text or any(c.isspace() or c == '"' for c in text)
    return json.dumps(value if isinstance(value, list) else text) if quoted else text


def _write_lines(own: Identity, path: Path, wanted: LineFilter, out: Path) -> None:
    """Write the lines that are asked for out of a verified log, and the head of its chain beside them."""
    from ddib_fed.security import audit_reading

    head_file = out.with_name(f"{out.name}.head.json")
    for place in (out, head_file):
        if place.exists():
            raise AlreadyExists(f"{place} exists and is not overwritten", hint="choose another --out")
    lines = list(audit_reading.lines_of(path))
    found = audit_reading.verify_lines(lines, None, {})
    _require_whole(path, found)
    content, exported = audit_reading.export(lines, wanted, table=out.suffix.lower() == ".csv")
    head = {
        "format": "ddib-fed audit export 1",
        "of": own.uri,
        "lines": found.lines,
        "head": found.head,
        "verified": datetime.now(UTC).isoformat(timespec="seconds"),
        "exported": exported,
        "asked": {
            "job": wanted.job,
            "peer": wanted.peer,
            "since": None if wanted.since is None else wanted.since.isoformat(),
        },
        "file": out.name,
        "file_sha256": hashlib.sha256(content).hexdigest(),
    }
    write_file(out, content, private=True, overwrite=False)
    write_file(head_file, (json.dumps(head, indent=2) + "\n").encode(), private=True, overwrite=False)
    say(f"wrote {out}: {exported} of {found.lines} lines", f"head   {found.head}, in {head_file}")
    outcome(written=out, lines=exported, of=found.lines, head=found.head, head_file=head_file)


def _show_anchors(config: NodeConfig, own: Identity, path: Path, institution: str, out: Path | None) -> None:
    """What this node noted of a peer's log: to stdout or into a file for that peer."""
    from ddib_fed.node.admitting import peer_store
    from ddib_fed.security.audit_reading import AnchorFile, held_of, thinned

    if not institution:
        raise UsageError("--anchors needs --peer INSTITUTION", hint="ddib peer list")
    peer = peer_store(config).get(institution)
    held, contradiction = held_of(path, institution)
    if not held:
        raise FileMissing(
            f"the audit log has no end of the log of {institution}",
            hint="it comes with each latent and translation",
        )
    made = AnchorFile(of=peer.identity.uri, noted_by=own.uri, anchors=thinned(held))
    if out is None:
        print_json(made.model_dump(mode="json"))
    else:
        write_file(out, made.to_bytes(), overwrite=False)
        say(
            f"wrote {out}: {len(held)} ends noted, the last with {held[-1].lines} lines",
            f"send it to {institution}, for: ddib audit verify --anchors {shlex.quote(out.name)}",
        )
        outcome(written=out, of=peer.identity.uri, ends=len(held), last_line=held[-1].lines)
    if contradiction:
        raise ChunkCorrupt(
            f"the log of {institution} was rewritten or went back: {contradiction}",
            hint="ask its operator; keep this node's log, which shows it",
        )


def _require_whole(path: Path, found: Verified) -> None:
    if not found.ok:
        where = "" if found.broken_line is None else f", line {found.broken_line}"
        raise ChunkCorrupt(
            f"{path}{where}: {found.problem}",
            hint="keep a copy of the file, and find out who could write to it",
        )


@audit.command(
    epilog="\b\nExamples:\n"
    "  ddib audit verify --config node.toml --anchors 3f5a...\n"
    "  ddib audit verify --config node.toml --anchors from-south.json"
)
@options.CONFIG
@option(
    "noted --anchors FILE|DIGEST",
    "What was noted of this log elsewhere: a head, or what a peer noted (`ddib audit show --anchors` there). The log "
    "must still contain those lines.",
    str,
    multiple=True,
)
@options.OUTCOME
def verify(config_path: Path, noted: tuple[str, ...]) -> None:
    """Read the whole log, follow its chain, and print its head.

    The chain detects lines that were changed, removed or inserted. It cannot detect that the end was cut off, or that
    the file was rewritten: for that, pass a head that was kept elsewhere, or the anchors that a peer holds.
    """
    from ddib_fed.security import audit_reading

    _config, own, path = _node(config_path)
    heads = [text for text in noted if re.fullmatch("[0-9a-f]{64}", text)]
    files = [audit_reading.read_anchors(Path(text), of=own).by_line() for text in noted if text not in heads]
    # Each by itself: two peers may have noted the same line, one of them wrongly.
    checks: list[tuple[str | None, dict[int, tuple[str, str]]]] = [(head, {}) for head in heads] + [
        (None, held) for held in files
    ]
    for head, held in checks or [(None, {})]:
        found = audit_reading.verify(path, noted=head, anchors=held)
        if not found.ok:
            break
    text = [f"lines  {found.lines}", f"head   {found.head}"]
    if checked := sum(map(len, files)):
        text.append(
            f"anchors  {checked} lines that peers noted, {'all there' if found.ok else 'not all there'}"
        )
    emit({"path": path, "ok": found.ok, **dataclasses.asdict(found)}, lambda: say(*text))
    _require_whole(path, found)
