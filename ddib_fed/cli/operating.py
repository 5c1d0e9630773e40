"""`ddib status`, `reload` and `drain` through the node's Unix socket; `ddib audit`: what the audit log says."""

from __future__ import annotations

import dataclasses
import json
import re
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.job import when
from ddib_fed.cli.options import group, open_config, option, with_config
from ddib_fed.errors import AlreadyExists, ChunkCorrupt, FileMissing, UsageError
from ddib_fed.protocol.messages import values_of
from ddib_fed.security import audit as log
from ddib_fed.security.identity import Identity
from ddib_fed.security.pki import root_warning
from ddib_fed.terminal import emit, is_aside, outcome, plain, print_json, say, say_document

if TYPE_CHECKING:
    from ddib_fed.node.admin import AdminClient
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.v1 import admin_pb2


def _client(config_path: Path) -> AdminClient:
    from ddib_fed.node.admin import AdminClient

    return AdminClient(open_config(config_path))


@click.command()
@options.CONFIG
@options.OUTCOME
@option(
    "--leaving [FILE]",
    "Write a page instead (leaving.html): what leaves to whom, under which settings, and the measured leak.",
    click.Path(dir_okay=False, path_type=Path),
    is_flag=False,
    flag_value="leaving.html",
)
def status(config_path: Path, leaving: Path | None) -> None:
    """Show the state of the node on this machine.

    State, model, workers, peers, calibrations, jobs, and the certificate's expiry. The page of --leaving is made from
    node.toml and the node's files, whether the node runs or not; it holds no secret.
    """
    if leaving is not None:
        from ddib_fed.node.leaving import write_leaving

        if leaving.exists():
            raise AlreadyExists(f"{leaving} exists and is not overwritten", hint="another name for --leaving")
        problems = write_leaving(open_config(config_path), leaving)
        say(f"wrote {leaving}")
        for problem in problems:
            say(f"warning: {problem}", err=True)
        outcome(written=leaving, problems=problems)
        return
    answer = _client(config_path).status()
    emit(values_of(answer), lambda: _show_status(answer, with_config(config_path)))


def _show_status(answer: admin_pb2.StatusResponse, more: str) -> None:
    """Print it; `more` is what the commands that are named need to be about this node."""
    say(
        f"node         {answer.name}.{answer.institution}  {answer.state}",
        f"roles        {', '.join(answer.roles)}   version {answer.version}   up {answer.uptime_s:.0f} s",
        f"listens on   {answer.listen}, called {answer.address}; {answer.active_streams} streams open",
        f"certificate  until {when(answer.certificate_expires)}, its root until {when(answer.root_expires)}",
    )
    ends = datetime.fromtimestamp(answer.root_expires, UTC)
    if answer.root_expires and (warning := root_warning(answer.institution, ends, datetime.now(UTC))):
        say(f"             warning: {warning}")
    if answer.HasField("model"):
        model = answer.model
        shape = "x".join(map(str, model.sample_shape))
        say(
            f"model        {model.domain}: {model.kind} {shape}, {model.parameters:,} parameters, {model.device}, "
            f"{model.sha256[:12]}"
        )
    workers = answer.workers
    if workers.executor == "inline":
        say("workers      inline: the node computes in its own process")
    else:
        ready = f"{len(workers.ready)} of {workers.wanted} ready, {workers.replaced} replaced"
        say(f"workers      {workers.executor}: {ready}", *(f"             {line}" for line in workers.ready))
    if workers.problem:
        say(f"             problem: {workers.problem}")
    jobs = ", ".join(f"{count} {state}" for state, count in sorted(answer.jobs.items()) if count) or "none"
    say(f"jobs         {jobs}")
    for peer in answer.peers:
        paused = f", suspended {peer.suspended}" if peer.suspended else ""
        say(f"peer         {peer.institution}: {peer.identity} at {peer.address}{paused}")
        if peer.problem:
            tried = f"ddib peer test {peer.institution}{more}"
            say(f"             failed {when(peer.failed)}: {peer.problem}; {tried}")
    if not answer.peers:
        say(f"peers        none: ddib peer add FILE{more}")
    for each in answer.calibrations:
        about = f": {each.warning}" if each.warning else ""
        say(
            f"calibration  {each.sha256[:12]} {each.kind}, {each.source} to {each.target}, {each.dial}, "
            f"until {when(each.expires)}, {each.state}{about}"
        )


@click.command()
@options.CONFIG
@options.OUTCOME
def reload(config_path: Path) -> None:
    """Make the node re-read its peers, withdrawals and certificates.

    It does so by itself at the next call; this ends calls of removed peers at once. node.toml, with its policy, is read
    only at a start: restart the node to apply a change.
    """
    changes = list(_client(config_path).reload())
    say(*changes, "node.toml is not read again: restart the node to apply a change in it, also in [policy]")
    outcome(changes=changes)


@click.command()
@options.CONFIG
@options.OUTCOME
def drain(config_path: Path) -> None:
    """Drain the node: accept no more work, finish running work, and exit."""
    running = _client(config_path).drain()
    say(f"draining; {running:,} {'job is' if running == 1 else 'jobs are'} still running")
    outcome(draining=True, running_jobs=running)


@group()
def audit() -> None:
    """Read and verify the node's audit log."""


def _node(config_path: Path) -> tuple[NodeConfig, Identity, Path]:
    """The node's configuration, its identity, and its log, which is there."""
    config = open_config(config_path)
    path = config.paths.store
    if not path.exists():
        raise FileMissing(f"there is no {path}", hint="a node writes it when it serves")
    return config, Identity(config.node.institution, "node", config.node.name), path


@audit.command(
    epilog="\b\nExamples:\n  ddib audit show --since 24h\n  ddib audit show --limit 10 --peer south.example\n"
    "  ddib audit show --since 2026-11-01 --format json > november.jsonl\n"
    "  ddib audit show --peer south.example --anchors > for-south.json"
)
@options.CONFIG
@option("--peer INSTITUTION", "Only what concerns this institution.", default="")
@option("--since WHEN", "Not before: 30m, 2h or 7d ago, or a date and time (UTC) as 2026-11-26T14:00.")
@option("--limit N", "Only the last N of them.", click.IntRange(min=0))
@option(
    "--anchors",
    "Instead what this node noted of the log of --peer, so that the peer can verify its log with it.",
)
@options.OUTCOME
def show(config_path: Path, peer: str, since: str | None, limit: int | None, anchors: bool) -> None:
    """Show lines of the audit log: number, time, act, and what it names; as JSON one object a line.

    The chain is not checked: `ddib audit verify` does that. As JSON each line has the digest of the log's line in
    `sha256`.

    With each latent and each translation two nodes tell each other the ends of their logs; --anchors shows what was
    noted of a peer's: numbers of lines, digests and times. Ends that contradict each other show that it was rewritten.
    """
    config, own, path = _node(config_path)
    if anchors:
        options.refuse_idle(("since", "limit"), "does not go with --anchors")
        _show_anchors(config, own, path, peer)
        return
    moment = None if since is None else log.parse_since(since)
    asked = (each for each in log.entries(path) if each.is_asked_for(peer=peer, since=moment))
    for entry in asked if limit is None else deque(asked, maxlen=limit):
        _write(entry)


def _write(entry: log.AuditLine) -> None:
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


def _show_anchors(config: NodeConfig, own: Identity, path: Path, institution: str) -> None:
    """What this node noted of a peer's log, as the document that the peer verifies its log with."""
    from ddib_fed.node.admitting import peer_store

    if not institution:
        raise UsageError("--anchors needs --peer INSTITUTION", hint="ddib peer list")
    peer = peer_store(config).get(institution)
    held, contradiction = log.held_of(path, institution)
    if not held:
        raise FileMissing(
            f"the audit log has no end of the log of {institution}",
            hint="it comes with each latent and translation",
        )
    made = log.AnchorFile(of=peer.identity.uri, noted_by=own.uri, anchors=held)
    print_json(plain(made))
    say(
        f"for {institution}: ddib audit verify --anchors FILE, with these {len(held)} ends of its log",
        err=True,
    )
    if contradiction:
        raise ChunkCorrupt(
            f"the log of {institution} was rewritten or went back: {contradiction}",
            hint="ask its operator; keep this node's log, which shows it",
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
    _config, own, path = _node(config_path)
    heads = [text for text in noted if re.fullmatch("[0-9a-f]{64}", text)]
    files = [log.read_anchors(Path(text), of=own).by_line() for text in noted if text not in heads]
    # Each by itself: two peers may have noted the same line, one of them wrongly.
    checks: list[tuple[str | None, log.Noted]] = [(head, {}) for head in heads]
    checks += [(None, held) for held in files]
    for head, held in checks or [(None, {})]:
        found = log.verify(log.lines_of(path), noted=head, anchors=held)
        if not found.ok:
            break
    text = [f"lines  {found.lines}", f"head   {found.head}"]
    if checked := sum(map(len, files)):
        text.append(
            f"anchors  {checked} lines that peers noted, {'all there' if found.ok else 'not all there'}"
        )
    emit({"path": path, "ok": found.ok, **dataclasses.asdict(found)}, lambda: say(*text))
    if not found.ok:
        where = "" if found.broken_line is None else f", line {found.broken_line}"
        raise ChunkCorrupt(
            f"{path}{where}: {found.problem}",
            hint="keep a copy of the file, and find out who could write to it",
        )
