"""`ddib status`, `reload` and `drain` through the node's Unix socket; `ddib audit`: what the audit log says."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import ddib_fed
from ddib_fed.cli import options
from ddib_fed.cli.options import group, option, with_config
from ddib_fed.errors import ChunkCorrupt, UsageError
from ddib_fed.terminal import emit, is_aside, outcome, plain, print_json, say, say_document, when


@click.command()
@options.for_node
@option(
    "--leaving [FILE]",
    "Write a page instead (leaving.html): what leaves to whom, under which settings, and the measured leak.",
    click.Path(dir_okay=False, path_type=Path),
    is_flag=False,
    flag_value="leaving.html",
)
def status(node: ddib_fed.Node, leaving: Path | None) -> None:
    """Show the state of the node on this machine.

    State, model, workers, peers, calibrations, jobs, and the certificate's expiry. The page of --leaving is made from
    node.toml and the node's files, whether the node runs or not; it holds no secret.
    """
    if leaving is not None:
        problems = node.write_leaving(leaving)
        say(f"wrote {leaving}")
        for problem in problems:
            say(f"warning: {problem}", err=True)
        outcome(written=leaving, problems=problems)
        return
    answer = node.status()
    emit(answer, lambda: _show_status(answer, with_config()))


def _show_status(answer: Any, more: str) -> None:
    """Print a node's state; `more` names its configuration in commands."""
    say(
        f"node         {answer.name}.{answer.institution}  {answer.state}",
        f"roles        {', '.join(answer.roles)}   version {answer.version}   up {answer.uptime_s:.0f} s",
        f"listens on   {answer.listen}, called {answer.address}; {answer.active_streams} streams open",
        f"certificate  until {when(answer.certificate_expires)}, its root until {when(answer.root_expires)}",
    )
    if answer.root_warning:
        say(f"             warning: {answer.root_warning}")
    if (model := answer.model) is not None:
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
@options.for_node
def reload(node: ddib_fed.Node) -> None:
    """Make the node re-read its peers, withdrawals and certificates.

    It does so by itself at the next call; this ends calls of removed peers at once. node.toml, with its policy, is read
    only at a start: restart the node to apply a change.
    """
    changes = node.reload()
    say(*changes, "node.toml is not read again: restart the node to apply a change in it, also in [policy]")
    outcome(changes=changes)


@click.command()
@options.for_node
def drain(node: ddib_fed.Node) -> None:
    """Drain the node: accept no more work, finish running work, and exit."""
    running = node.drain()
    say(f"draining; {running:,} {'job is' if running == 1 else 'jobs are'} still running")
    outcome(draining=True, running_jobs=running)


@group()
def audit() -> None:
    """Read and verify the node's audit log."""


@audit.command(
    epilog="\b\nExamples:\n  ddib audit show --since 24h\n  ddib audit show --limit 10 --peer south.example\n"
    "  ddib audit show --since 2026-11-01 --format json > november.jsonl\n"
    "  ddib audit show --peer south.example --anchors > for-south.json"
)
@options.for_node
@option("--peer INSTITUTION", "Only what concerns this institution.", default="")
@option("--since WHEN", "Not before: 30m, 2h or 7d ago, or a date and time (UTC) as 2026-11-26T14:00.")
@option("--limit N", "Only the last N of them.", click.IntRange(min=0))
@option(
    "--anchors",
    "Instead what this node noted of the log of --peer, so that the peer can verify its log with it.",
)
def show(node: ddib_fed.Node, peer: str, since: str | None, limit: int | None, anchors: bool) -> None:
    """Show lines of the audit log: number, time, act, and what it names; as JSON one object a line.

    The chain is not checked: `ddib audit verify` does that. As JSON each line has the digest of the log's line in
    `sha256`.

    With each latent and each translation two nodes tell each other the ends of their logs; --anchors shows what was
    noted of a peer's: numbers of lines, digests and times. Ends that contradict each other show that it was rewritten.
    """
    log = node.audit
    if anchors:
        options.refuse_idle(("since", "limit"), "does not go with --anchors")
        if not peer:
            raise UsageError("--anchors needs --peer INSTITUTION", hint="ddib peer list")
        held, contradiction = log.anchors(peer)
        print_json(plain(held))
        count = len(held.anchors)
        say(f"for {peer}: ddib audit verify --anchors FILE, with these {count} ends of its log", err=True)
        if contradiction:
            raise ChunkCorrupt(
                f"the log of {peer} was rewritten or went back: {contradiction}",
                hint="ask its operator; keep this node's log, which shows it",
            )
        return
    entries = log.entries(peer=peer, since=since)
    for entry in entries if limit is None else deque(entries, maxlen=limit):
        _write(entry.line, entry.sha256, entry.record, entry.values)


def _write(line: int, sha256: str, record: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Print one line for scripts, or for people, where a value that could be taken for several is quoted."""
    if is_aside():
        say_document(json.dumps({**record, "line": line, "sha256": sha256}))
        return
    if not record:
        say(f"{line:>6}  (not a line of the log: ddib audit verify)")
        return
    time = str(record.get("time", ""))[:19].replace("T", " ")
    text = "  ".join(f"{key}={_value(value)}" for key, value in values.items() if value not in ("", None))
    say(f"{line:>6}  {time}  {record.get('act')!s:<18}  {text}".rstrip())


def _value(value: object) -> str:
    text = str(value)
    quoted = isinstance(value, list) or not text or any(c.isspace() or c == '"' for c in text)
    return json.dumps(value if isinstance(value, list) else text) if quoted else text


@audit.command(
    epilog="\b\nExamples:\n"
    "  ddib audit verify --config node.toml --anchors 3f5a...\n"
    "  ddib audit verify --config node.toml --anchors from-south.json"
)
@options.for_node
@option(
    "noted --anchors FILE|DIGEST",
    "What was noted of this log elsewhere: a head, or what a peer noted (`ddib audit show --anchors` there). The log "
    "must still contain those lines.",
    str,
    multiple=True,
)
def verify(node: ddib_fed.Node, noted: tuple[str, ...]) -> None:
    """Read the whole log, follow its chain, and print its head.

    The chain detects lines that were changed, removed or inserted. It cannot detect that the end was cut off, or that
    the file was rewritten: for that, pass a head that was kept elsewhere, or the anchors that a peer holds.
    """
    path, result = node.audit.path, node.audit.verify(*noted)
    text = [f"lines  {result.lines}", f"head   {result.head}"]
    if result.anchors:
        text.append(
            f"anchors  {result.anchors} lines that peers noted, {'all there' if result.ok else 'not all there'}"
        )
    emit({"path": path, "ok": result.ok, **asdict(result)}, lambda: say(*text))
    if not result.ok:
        where = "" if result.broken_line is None else f", line {result.broken_line}"
        raise ChunkCorrupt(
            f"{path}{where}: {result.problem}",
            hint="keep a copy of the file, and find out who could write to it",
        )
