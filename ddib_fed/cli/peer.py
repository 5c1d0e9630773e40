"""`ddib peer` and `ddib pair`: the peers of this node. `ddib pki`: the certificates of its institution."""

from __future__ import annotations

import functools
import shlex
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

import ddib_fed
from ddib_fed.cli import options
from ddib_fed.cli.options import confirm, group, note, option, say_next, with_config
from ddib_fed.errors import Cancelled, UsageError
from ddib_fed.terminal import emit, lines, listed, outcome, plain, print_table, say

INSTITUTION = click.argument("institution")
FINGERPRINT = option(
    "fingerprints --fingerprint SHA256:...",
    "The root's fingerprint as the other operator read it out; `peer add` at a terminal shows it and asks without.",
    multiple=True,
)
REPLACE = option("replace --force", "Replace the entry: a new root, name or address of a peer.")
UNCONSTRAINED = option("--unconstrained-root", "Accept a root without name constraints.")


@group()
def peer() -> None:
    """Export this node's peer file; add, list, test, suspend and remove peers."""


@peer.command(epilog="\b\nExample:\n  ddib peer export --out north.peer")
@options.for_node
@option("--out FILE", "Default: INSTITUTION.peer")
@option("--force", "Overwrite the file.")
def export(node: ddib_fed.Node, out: Path | None, force: bool) -> None:
    """Write the file that another institution adds, and show the fingerprint to read out to it.

    It contains no secret: the root's certificate, this node's name and its address.
    """
    path, warning = out or Path(f"{node.config.node.institution}.peer"), node.config.not_dialled
    entry = node.peers.export(path, replace=force)
    say(
        f"wrote {path}: {entry.identity} at {entry.address}",
        *(f"fingerprint  {text}" for text in entry.fingerprints),
    )
    if warning:
        say(f"warning: {warning}; correct {node.config.path} and export again", err=True)
    say("send the file; read the fingerprint out to the other operator by another way, e.g. by telephone")
    outcome(written=path, warning=warning or None, **_entry(entry))


def _entry(other: Any) -> dict[str, object]:
    return {
        "institution": other.institution,
        "identity": other.identity.uri,
        "address": other.address,
        "fingerprints": other.fingerprints,
    }


@peer.command(epilog="\b\nExample:\n  ddib peer add south.peer --fingerprint SHA256:12:34:...")
@options.for_node
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@FINGERPRINT
@REPLACE
@UNCONSTRAINED
def add(node: ddib_fed.Node, file: Path, *, fingerprints: tuple[str, ...], **how: bool) -> None:
    """Admit another institution's node, after comparing its root's fingerprint with the one read out."""

    def ask(other: Any) -> bool:
        """Show the fingerprints and ask, on a terminal only."""
        note(*other.warnings)
        if not sys.stdin.isatty():
            command = shlex.join(["ddib", "peer", "add", str(file), "--config", str(node.config.path)])
            raise UsageError(
                "a peer is added with the fingerprint that the other operator read out",
                hint=f"{command} --fingerprint SHA256:...; the question is asked only on a terminal",
            )
        say(f"node         {other.identity}", f"address      {other.address}", "fingerprint:")
        say(*other.fingerprints)  # last and alone: no text of the file comes after it
        which = "Is this" if len(other.roots) == 1 else f"Are all {len(other.roots)} of these"
        return confirm(f"{which} what the other operator reads out?")

    other = node.peers.add(file, fingerprints=fingerprints, ask=ask, **how)
    if fingerprints:
        note(*other.warnings)
    say(
        f"admitted {other.identity} at {other.address}",
        f"next: ddib peer test {other.institution}{with_config()}",
    )
    outcome(admitted=other.institution, **_entry(other))


@peer.command(name="list")
@options.for_node
def list_(node: ddib_fed.Node) -> None:
    """List the peers that are admitted here."""
    peers, suspended = node.peers.list(), node.peers.suspended

    def text() -> None:
        if not peers:
            say("no peers yet: ddib peer add FILE")
            return
        rows = [
            [each.institution, "suspended" if each.institution in suspended else "admitted", each.address,
             each.identity.uri, each.fingerprint]
            for each in peers
        ]  # fmt: skip
        print_table("", ["peer", "state", "address", "identity", "root"], rows)
        for name, why in sorted(suspended.items()):
            say(f"{name} is suspended {why}")

    emit([{**_entry(each), "suspended": suspended.get(each.institution, "")} for each in peers], text)


@peer.command()
@options.for_node
@INSTITUTION
def test(node: ddib_fed.Node, institution: str) -> None:
    """Connect to a peer, and name the cause if that fails."""
    answer = node.peers.test(institution)
    decoding, text = None, "none: it is a source node only"
    if answer.domain is not None:
        decoding = {"domain": answer.domain, "sample_shape": list(answer.sample_shape)}
        text = f"{answer.domain!a}, samples of shape {list(answer.sample_shape)}"

    def show() -> None:
        say(f"connection   {answer.connection}", f"decoding     {text}")
        if answer.clock:
            say(f"clock        that node's is {answer.clock}")

    values = {"institution": institution, "connection": answer.connection, "decoding": decoding}
    emit({**values, "clock_s": answer.clock_s}, show)


@peer.command()
@options.for_node
@INSTITUTION
@option("--reason TEXT", "Why, one line; shown by `ddib peer list` here.", default="")
@option("--undo", "Admit a suspended peer again, and call it again: jobs that waited for it continue.")
def suspend(node: ddib_fed.Node, institution: str, reason: str, undo: bool) -> None:
    """Refuse a peer, and send it nothing, until it is undone; running calls with it end within a second.

    It stays admitted, and stays suspended over restarts. Jobs for it that were accepted wait; new ones are refused.
    """
    if undo:
        options.refuse_idle(("reason",), "is for a suspension")
        applied = node.peers.resume(institution)
        change = "is resumed" if applied.changed else "was not suspended: nothing is changed"
    else:
        applied = node.peers.suspend(institution, reason)
        change = "is suspended" if applied.changed else "was suspended already"
    say(f"{institution} {change}")
    running = _say_applied(applied)
    outcome(institution=institution, suspended=not undo, changed=applied.changed, node_running=running)


@peer.command()
@options.for_node
@INSTITUTION
def remove(node: ddib_fed.Node, institution: str) -> None:
    """Remove a peer: it is refused from now on, and running calls with it end within a second."""
    applied = node.peers.remove(institution)
    say(f"removed {institution}")
    outcome(removed=institution, node_running=_say_applied(applied))


def _say_applied(applied: Any) -> bool | None:
    """Say whether a running node has applied a change; return what the outcome says of it."""
    running: bool | None = applied.running
    if running is not None:
        say(
            "the running node has applied it"
            if running
            else "no node runs on this state folder now; it is applied when one starts"
        )
    return running


@click.command(
    epilog="\b\nExamples:\n  ddib pair --listen\n  ddib pair west.example:7444 482-173-063   (on the other side)"
)
@options.for_node
@click.argument("address", required=False, metavar="HOST:PORT")
@click.argument("code", required=False)
@option(
    "listens --listen",
    "Show a code, and wait for the other side at HOST:PORT; default: node.listen, which must be free.",
)
@FINGERPRINT
@REPLACE
@UNCONSTRAINED
def pair(node: ddib_fed.Node, address: str | None, code: str | None, *, listens: bool, **how: Any) -> None:
    """Admit another institution's node, and be admitted there, with a code read out by telephone.

    One side runs `ddib pair --listen`, which shows an address and a code; the other `ddib pair HOST:PORT CODE`. The two
    commands exchange the peer files over a connection that the code protects. A code is valid for one try within 5
    minutes: somebody between the two sides can guess once, with a chance of one in 100 million. Both sides show whom
    they admitted, and both fingerprints. Read the code out to somebody whose voice you know; --fingerprint admits no
    other root.
    """
    if listens and code is not None:
        raise UsageError("--listen shows a code, and takes none", hint="ddib pair --listen [HOST:PORT]")
    if not listens and (address is None or code is None):
        raise UsageError(
            "give --listen, or the address and the code that the other side shows",
            hint=f"ddib pair {address or 'HOST:PORT'} CODE",
        )
    paired = node.peers.pair(address, code, on_code=say if listens else None, on_stranger=note, **how)
    say(*paired.describe())
    note(*paired.warnings)
    other, more = paired.other, with_config()
    say_next(
        [
            (f"{node.config.command} serve{more}", "unless it runs already"),
            (f"ddib peer test {other.institution}{more}", "once the other node serves too"),
        ]
    )
    outcome(admitted=other.institution, **_entry(other))


OF_CLIENT = option("profile_path --profile FILE", "A client's certificate instead: that of this client.toml.")
OUT = option("--out FILE", "What to write.")


def _for_node_or_client(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --config, --profile and --format to a command, and call it with the certificates of the one that is named."""

    @functools.wraps(command)
    def opened(config_path: Path, profile_path: Path | None, **further: Any) -> Any:
        if profile_path is not None:
            return command(ddib_fed.Profile.load(profile_path).certificates, **further)
        return command(ddib_fed.Node.open(config_path).pki, **further)

    return options.CONFIG(OF_CLIENT(options.OUTCOME(opened)))


@group()
def pki() -> None:
    """Make the institution's CA; request, issue, install, show and withdraw certificates."""


@pki.command(epilog="\b\nExample:\n  ddib pki init --config node.toml")
@options.for_node
def init(node: ddib_fed.Node) -> None:
    """Make the institution's root on this node, and the node's certificate from it.

    The root's key is in the node's state folder: anyone who has it can pose as any identity of this institution.
    """
    root, institution, folder = node.pki.init(), node.config.node.institution, node.config.paths.pki
    say(f"made the root of {institution} and this node's certificate in {folder}", f"fingerprint  {root}")
    outcome(institution=institution, folder=folder, fingerprint=root)


@pki.command(epilog="\b\nExample:\n  ddib pki request --config node.toml --out node-2.csr")
@_for_node_or_client
@OUT
def request(certificates: Any, out: Path | None) -> None:
    """Write a certificate request for the institution's issuer; its key stays here."""
    path, owner = certificates.request(out), certificates.owner
    say(f"wrote {path}, a request for {owner}")
    profile = click.get_current_context().params["profile_path"]
    more = with_config() if profile is None else f" --profile {shlex.quote(str(profile))}"
    say_next(
        [
            (f"ddib pki issue {shlex.quote(path.name)}", f"at the node that issues; take {path} there"),
            (f"ddib pki install {owner.name}.pem{more}", "here, with what it wrote"),
        ]
    )
    outcome(written=path, identity=owner.uri)


@pki.command(epilog="\b\nExample:\n  ddib pki issue node-2.csr")
@options.for_node
@click.argument("request_file", type=click.Path(dir_okay=False, path_type=Path))
@OUT
@option("--yes", "Do not ask whether the request comes from the identity that it names.")
def issue(node: ddib_fed.Node, request_file: Path, out: Path | None, yes: bool) -> None:
    """Sign the request of a node or client on another machine; run it on the node with the root's key."""

    def ask(identity: object) -> None:
        question = f"sign for {identity}? Whoever has this request's key gets this identity"
        if not yes and not confirm(question):
            raise Cancelled("not confirmed; nothing was signed", hint="the same command again")

    issued = node.pki.issue(request_file, out, ask=ask)
    path = issued.path
    say(f"wrote {path}, the certificate of {issued.identity}")
    say_next(
        [(f"ddib pki install {shlex.quote(path.name)}", f"where the request was made; take {path} there")]
    )
    outcome(written=path, identity=issued.identity.uri, valid_until=issued.valid_until)


@pki.command(epilog="\b\nExample:\n  ddib pki install node-2.pem --config node.toml")
@_for_node_or_client
@click.argument("certificate", type=click.Path(dir_okay=False, path_type=Path))
def install(certificates: Any, certificate: Path) -> None:
    """Install a signed certificate after checking its key, name and root."""
    identity = certificates.install(certificate)
    say(f"installed the certificate of {identity} in {certificates.folder}")
    outcome(installed=identity.uri, folder=certificates.folder)


@pki.command()
@_for_node_or_client
def show(certificates: Any) -> None:
    """Show the certificate's identity and expiry, the trusted roots of its institution, and who is withdrawn."""
    certificate = certificates.show()
    values = {
        "identity": certificate.identity.uri,
        "role": certificate.identity.kind,
        "dns_name": certificate.identity.dns_name,
        "valid_until": certificate.not_after,
        "expired": certificate.not_after <= datetime.now(UTC),
        "roots": certificates.roots,
        "issuer": certificates.issues,
        "withdrawn": [{"identity": each.uri, "reason": why} for each, why in certificates.withdrawn.items()],
    }
    emit(values, lambda: lines(listed("", plain(values))))


@pki.command(
    epilog="\b\nExample:\n  ddib pki withdraw spiffe://north.example/client/alice --reason 'laptop lost'"
)
@options.for_node
@option("--reason TEXT", "For the list; default: the date.", default="")
@option("--undo", "Accept an identity again that was withdrawn on this node.")
@click.argument("identity", metavar="IDENTITY")
def withdraw(node: ddib_fed.Node, reason: str, undo: bool, identity: str) -> None:
    """Refuse a client or node of this institution although its certificate is valid, e.g. because its key was lost.

    The node refuses its next call and renewals, and issues it no certificate. Each node of the institution has its
    own list: run this on each.
    """
    if undo:
        options.refuse_idle(("reason",), "is for a withdrawal")
        applied = node.pki.reinstate(identity)
        change = "is reinstated" if applied.changed else "was not withdrawn"
    else:
        applied = node.pki.withdraw(identity, reason)
        change = "is withdrawn" if applied.changed else "was withdrawn already"
    file, institution = node.pki.list_file, node.config.node.institution
    say(f"{identity} {change}, in {file}")
    running = _say_applied(applied)
    if applied.changed or not undo:
        say(f"do the same on each other node of {institution}: each has a list of its own")
    if "/node/" in identity and not undo:
        say(f"and tell the peers that admitted it: ddib peer remove {institution}, there")
    outcome(identity=identity, withdrawn=not undo, changed=applied.changed, file=file, node_running=running)
