"""`ddib audit`: what the audit log says, for people, for scripts and for whoever checks it."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import group
from ddib_fed.cli.output import outcome, print_json
from ddib_fed.errors import AlreadyExists, ChunkCorrupt, FileMissing
from ddib_fed.files import write_file
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.security.audit_reading import AuditLine, LineFilter, Verified
    from ddib_fed.security.identity import Identity

_FILE = click.Path(dir_okay=False, path_type=Path)
_selecting = options.with_options(
    (
        click.option(
            "--act",
            "acts",
            multiple=True,
            metavar="NAME",
            help="Only these acts; `*` stands for any text: 'job_*'.",
        ),
        click.option(
            "--job",
            default="",
            metavar="ID",
            help="Only this job, or request; its first characters are enough.",
        ),
        click.option(
            "--peer", default="", metavar="INSTITUTION", help="Only what concerns this institution."
        ),
        click.option(
            "--since",
            metavar="WHEN",
            help="Not before: 30m, 2h or 7d ago, or a date and time (UTC) as 2026-11-26T14:00.",
        ),
    )
)


@group()
def audit() -> None:
    """Read, follow, export and verify the node's audit log; exchange its ends with peers."""


def _node(config_path: Path) -> tuple[NodeConfig, Identity, Path]:
    """The node's configuration, its identity, and its log, which is there."""
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.security.identity import Identity

    config = NodeConfig.load(config_path)
    path = config.paths.store
    if not path.exists():
        raise FileMissing(f"there is no {path}", hint="a node writes it when it serves")
    return config, Identity(config.node.institution, "node", config.node.name), path


def _wanted(acts: tuple[str, ...], job: str, peer: str, since: str | None) -> LineFilter:
    from ddib_fed.security.audit_reading import LineFilter, parse_since

    return LineFilter(acts, job, peer, None if since is None else parse_since(since))


@audit.command(
    epilog="\b\nExamples:\n  ddib audit show --act 'job_*' --since 24h\n  ddib audit show -f --last 10 --act refused"
)
@options.CONFIG
@_selecting
@click.option("--last", type=click.IntRange(min=0), metavar="N", help="Only the last N of them.")
@click.option(
    "-f", "--follow", "follows", is_flag=True, help="Then each line as it is written, until Ctrl-C."
)
@options.FORMAT
def show(
    config_path: Path,
    acts: tuple[str, ...],
    job: str,
    peer: str,
    since: str | None,
    last: int | None,
    follows: bool,
    output_format: str,
) -> None:
    """Show lines of the audit log: number, time, act, and what it names; as JSON one object a line.

    The chain is not checked: `ddib audit verify` does that. If the log is cut or replaced while it is followed, the
    command ends with 10.
    """
    from ddib_fed.security.audit_reading import entries, follow

    wanted, (_config, _own, path) = _wanted(acts, job, peer, since), _node(config_path)
    write = _write_object if output_format == "json" else lambda entry: say(_line(entry))
    read, kept = 0, deque["AuditLine"](maxlen=last)
    for entry in entries(path):
        read = entry.line
        if entry in wanted:
            kept.append(entry)
    for entry in kept:
        write(entry)
    for entry in follow(path, read) if follows else ():
        if entry in wanted:
            write(entry)


def _write_object(entry: AuditLine) -> None:
    say(json.dumps({**entry.record, "line": entry.line, "sha256": entry.sha256}))


def _line(entry: AuditLine) -> str:
    """One line for people: a value that could be taken for several is quoted."""
    if not entry.record:
        return f"{entry.line:>6}  (not a line of the log: ddib audit verify)"
    when = str(entry.record.get("time", ""))[:19].replace("T", " ")
    values = "  ".join(
        f"{key}={_value(value)}" for key, value in entry.values.items() if value not in ("", None)
    )
    return f"{entry.line:>6}  {when}  {entry.record.get('act')!s:<18}  {values}".rstrip()


def _value(value: object) -> str:
    text = str(value)
    quoted = isinstance(value, list) or not text or any(c.isspace() or c == '"' for c in text)
    return json.dumps(value if isinstance(value, list) else text) if quoted else text


@audit.command(
    epilog="\b\nExamples:\n  ddib audit export --out audit.jsonl\n"
    "  ddib audit export --since 2026-11-01 --act 'latent_*' --out november.csv"
)
@options.CONFIG
@_selecting
@click.option(
    "--out",
    type=_FILE,
    metavar="FILE",
    required=True,
    help="What to write: CSV if the name ends in .csv, else one JSON object a line.",
)
@options.OUTCOME
def export(
    config_path: Path, acts: tuple[str, ...], job: str, peer: str, since: str | None, out: Path
) -> None:
    """Verify the audit log, and write lines of it to a file, with the head of the chain in FILE.head.json.

    Each line of the file has the digest of the log's line in `sha256`; the head is that of the log's last line. A log
    that is broken is not exported. In CSV a text that a spreadsheet would take for a formula begins with an apostrophe.
    """
    from ddib_fed.security import audit_reading

    wanted, (_config, own, path) = _wanted(acts, job, peer, since), _node(config_path)
    head_file = out.with_name(f"{out.name}.head.json")
    for place in (out, head_file):
        if place.exists():
            raise AlreadyExists(f"{place} exists and is not overwritten", hint="choose another --out")
    found = audit_reading.verify(path)
    _require_whole(path, found)
    made = audit_reading.export(
        path, wanted, lines=found.lines, head=found.head, table=out.suffix.lower() == ".csv"
    )
    head = {
        "format": "ddib-fed audit export 1",
        "of": own.uri,
        "lines": found.lines,
        "head": found.head,
        "verified": datetime.now(UTC).isoformat(timespec="seconds"),
        "exported": made.exported,
        "asked": {
            "acts": list(acts),
            "job": job,
            "peer": peer,
            "since": None if wanted.since is None else wanted.since.isoformat(),
        },
        "file": out.name,
        "file_sha256": made.sha256,
    }
    write_file(out, made.content, private=True, overwrite=False)
    write_file(head_file, (json.dumps(head, indent=2) + "\n").encode(), private=True, overwrite=False)
    say(f"wrote {out}: {made.exported} of {made.lines} lines", f"head   {made.head}, in {head_file}")
    outcome(written=out, lines=made.exported, of=made.lines, head=made.head, head_file=head_file)


def _require_whole(path: Path, found: Verified) -> None:
    if not found.ok:
        where = "" if found.broken_line is None else f", line {found.broken_line}"
        raise ChunkCorrupt(
            f"{path}{where}: {found.problem}",
            hint="keep a copy of the file, and find out who could write to it",
        )


@audit.command(
    epilog="\b\nExamples:\n"
    "  ddib audit verify --config node.toml --head 3f5a...\n"
    "  ddib audit verify --config node.toml --anchor from-south.json"
)
@options.CONFIG
@click.option(
    "--head",
    metavar="DIGEST",
    help="A head noted earlier: the log must still contain the line with this digest.",
)
@click.option(
    "--anchor",
    "files",
    multiple=True,
    type=_FILE,
    metavar="FILE",
    help="What a peer noted of this log, from `ddib audit anchors` there: the log must still contain those lines.",
)
@options.FORMAT
def verify(config_path: Path, head: str | None, files: tuple[Path, ...], output_format: str) -> None:
    """Read the whole log, follow its chain, and print its head.

    The chain detects lines that were changed, removed or inserted. It cannot detect that the end was cut off, or that
    the file was rewritten: for that, pass a head that was kept elsewhere, or the anchors that a peer holds.
    """
    from ddib_fed.security import audit_reading

    _config, own, path = _node(config_path)
    anchors = [audit_reading.read_anchors(file, of=own).by_line() for file in files]
    # Each file by itself: two peers may have noted the same line, one of them wrongly.
    for held in anchors or [{}]:
        found = audit_reading.verify(path, noted=head, anchors=held)
        if not found.ok:
            break
    if output_format == "json":
        print_json({"path": path, "ok": found.ok, **dataclasses.asdict(found)})
    else:
        say(f"lines  {found.lines}", f"head   {found.head}")
        if checked := sum(map(len, anchors)):
            say(f"anchors  {checked} lines that peers noted, {'all there' if found.ok else 'not all there'}")
    _require_whole(path, found)


@audit.command(epilog="\b\nExample:\n  ddib audit anchors --peer south.example --out for-south.json")
@options.CONFIG
@click.option("--peer", "institution", required=True, metavar="INSTITUTION", help="Whose log they are of.")
@click.option("--out", type=_FILE, metavar="FILE", help="Write them here; otherwise to stdout.")
@options.OUTCOME
def anchors(config_path: Path, institution: str, out: Path | None) -> None:
    """Write what this node noted of a peer's audit log, so that the peer can verify its log with it.

    With each latent and each translation the two nodes tell each other the ends of their logs. The file contains
    numbers of lines, digests and times. Ends that contradict each other show that the peer's log was rewritten.
    """
    from ddib_fed.node.admitting import peer_store
    from ddib_fed.security.audit_reading import AnchorFile, held_of, thinned

    config, own, path = _node(config_path)
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
        say(f"wrote {out}: {len(held)} ends noted, the last with {held[-1].lines} lines")
        say(f"send it to {institution}, for: ddib audit verify --anchor {shlex.quote(out.name)}")
        outcome(written=out, of=peer.identity.uri, ends=len(held), last_line=held[-1].lines)
    if contradiction:
        raise ChunkCorrupt(
            f"the log of {institution} was rewritten or went back: {contradiction}",
            hint="ask its operator; keep this node's log, which shows it",
        )
