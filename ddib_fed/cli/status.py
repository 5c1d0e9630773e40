"""`ddib status`, `reload` and `drain`: the operator's commands, through the node's Unix socket."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.job import values_of, when
from ddib_fed.cli.options import open_config, with_config
from ddib_fed.terminal import emit, outcome, say

if TYPE_CHECKING:
    from ddib_fed.node.admin import AdminClient
    from ddib_fed.v1 import admin_pb2


def _client(config_path: Path) -> AdminClient:
    from ddib_fed.node.admin import AdminClient

    return AdminClient(open_config(config_path))


@click.command()
@options.CONFIG
@options.OUTCOME
@options.option(
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

        problems = write_leaving(open_config(config_path), leaving)
        say(f"wrote {leaving}")
        for problem in problems:
            say(f"warning: {problem}", err=True)
        outcome(written=leaving, problems=problems)
        return
    answer = _client(config_path).status()
    emit(values_of(answer), lambda: _show(answer, with_config(config_path)))


def _show(answer: admin_pb2.StatusResponse, more: str) -> None:
    """Print it; `more` is what the commands that are named need to be about this node."""
    from ddib_fed.security.pki import root_warning

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
            f"calibration  {each.sha256[:12]} {each.kind}, {each.source} to {each.target}, until {when(each.expires)}, "
            f"{each.state}{about}"
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
