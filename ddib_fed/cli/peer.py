"""`ddib peer` and `ddib pair`: the peers that this node exchanges latents with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.options import command, group, option, say_next, with_config
from ddib_fed.errors import PeerUnreachable, UsageError
from ddib_fed.terminal import emit, outcome, print_table, say

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.security.peers import Peer, PeerStore

INSTITUTION = click.argument("institution")
FINGERPRINT = option(
    "fingerprints --fingerprint SHA256:...",
    "The root's fingerprint as the other operator read it out; `peer add` at a terminal shows it and asks without.",
    multiple=True,
)
REPLACE = option("replace --force", "Replace the entry: a new root, name or address of a peer.")
UNCONSTRAINED = option("--unconstrained-root", "Accept a root without name constraints.")


def _open(config_path: Path) -> tuple[NodeConfig, PeerStore]:
    from ddib_fed.node.admitting import peer_store
    from ddib_fed.node.config import NodeConfig

    config = NodeConfig.load(config_path)
    return config, peer_store(config)


@group()
def peer() -> None:
    """Export this node's peer file; add, list, test, suspend and remove peers."""


@peer.command(epilog="\b\nExample:\n  ddib peer export --out north.peer")
@options.CONFIG
@option("--out FILE", "Default: INSTITUTION.peer")
@option("--force", "Overwrite the file.")
@options.OUTCOME
def export(config_path: Path, out: Path | None, force: bool) -> None:
    """Write the file that another institution adds, and show the fingerprint to read out to it.

    It contains no secret: the root's certificate, this node's name and its address.
    """
    from ddib_fed.node.admitting import export_peer

    config, _store = _open(config_path)
    path = out or Path(f"{config.node.institution}.peer")
    own = export_peer(config, path, force=force)
    say(
        f"wrote {path}: {own.identity} at {own.address}",
        *(f"fingerprint  {text}" for text in own.fingerprints),
    )
    if config.not_dialled:
        say(f"warning: {config.not_dialled}; correct {config_path} and export again", err=True)
    say("send the file; read the fingerprint out to the other operator by another way, e.g. by telephone")
    outcome(written=path, warning=config.not_dialled or None, **_entry(own))


def _entry(other: Peer) -> dict[str, object]:
    return {
        "institution": other.institution,
        "identity": other.identity.uri,
        "address": other.address,
        "fingerprints": other.fingerprints,
    }


@peer.command(epilog="\b\nExample:\n  ddib peer add south.peer --fingerprint SHA256:12:34:...")
@options.CONFIG
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@FINGERPRINT
@REPLACE
@UNCONSTRAINED
@options.OUTCOME
def add(
    config_path: Path, file: Path, fingerprints: tuple[str, ...], replace: bool, unconstrained_root: bool
) -> None:
    """Admit another institution's node, after comparing its root's fingerprint with the one read out."""
    from ddib_fed.node.admitting import admit

    config, _store = _open(config_path)
    other = admit(config, file, fingerprints, replace=replace, unconstrained_root=unconstrained_root)
    say(
        f"admitted {other.identity} at {other.address}",
        f"next: ddib peer test {other.institution}{with_config(config_path)}",
    )
    outcome(admitted=other.institution, **_entry(other))


@peer.command(name="list")
@options.CONFIG
@options.OUTCOME
def list_(config_path: Path) -> None:
    """List the peers that are admitted here."""
    _config, store = _open(config_path)
    peers, suspended = store.list(), store.snapshot().suspended

    def text() -> None:
        if not peers:
            say("no peers yet: ddib peer add FILE")
            return
        rows = [
            [
                each.institution,
                "suspended" if each.institution in suspended else "admitted",
                each.address,
                each.identity.uri,
                each.fingerprint,
            ]
            for each in peers
        ]
        print_table("", ["peer", "state", "address", "identity", "root"], rows)
        say(*(f"{name} is suspended {why}" for name, why in sorted(suspended.items())))

    emit([{**_entry(each), "suspended": suspended.get(each.institution, "")} for each in peers], text)


@peer.command()
@options.CONFIG
@options.OUTCOME
@INSTITUTION
def test(config_path: Path, institution: str) -> None:
    """Connect to a peer, and name the cause if that fails."""
    import grpc

    from ddib_fed.protocol.contract import PROTOCOL
    from ddib_fed.protocol.details import described, failure_of_peer, status_of
    from ddib_fed.security.tls import PeerChannels
    from ddib_fed.v1 import decoding_pb2, decoding_pb2_grpc

    config, store = _open(config_path)
    store.get(institution)
    channels = PeerChannels(config.paths.pki, store, proxy=config.proxy)
    decoding, said, clock = None, "none: it is a source node only", None
    try:
        finding = channels.diagnosis(institution)
        if not finding.ok:
            raise finding.as_error(f"target {institution}")
        channel = channels.get(institution)
        request = decoding_pb2.DescribeDomainRequest(protocol=PROTOCOL)
        side = decoding_pb2_grpc.DecodingServiceStub(channel).DescribeDomain(request, timeout=10).side
        decoding = {"domain": side.domain[:100], "sample_shape": list(side.sample_shape)[:5]}
        said, clock = f"{decoding['domain']!a}, samples of shape {decoding['sample_shape']}", channel.clock_s
    except grpc.RpcError as error:
        if status_of(error) is not grpc.StatusCode.UNIMPLEMENTED:
            failure = failure_of_peer(error, f"target {institution}")
            if failure.reason == "PEER_UNKNOWN":
                name = config.node.name
                failure.hint = (
                    f"that node has not admitted {name}: ddib peer export here, ddib peer add there"
                )
            elif isinstance(failure, PeerUnreachable):  # whose hint would be this command
                failure.hint = "repeat the command, then check that node's log"
            raise failure from error
    finally:
        channels.close()
    text = [f"connection   {finding.text}", f"decoding     {said}"]
    text += [] if clock is None else [f"clock        that node's is {described(clock)}"]
    values = {
        "institution": institution, "connection": finding.text, "decoding": decoding, "clock_s": clock
    }  # fmt: skip
    emit(values, lambda: say(*text))


@peer.command()
@options.CONFIG
@INSTITUTION
@option("--reason TEXT", "Why, one line; shown by `ddib peer list` here.", default="")
@option("--undo", "Admit a suspended peer again, and call it again: jobs that waited for it continue.")
@options.OUTCOME
def suspend(config_path: Path, institution: str, reason: str, undo: bool) -> None:
    """Refuse a peer, and send it nothing, until it is undone; running calls with it end within a second.

    It stays admitted, and stays suspended over restarts. Jobs for it that were accepted wait; new ones are refused.
    """
    from ddib_fed.security.audit import note

    config, store = _open(config_path)
    log, running = config.paths.store, None
    if undo:
        options.refuse_idle(("reason",), "is for a suspension", hint="leave it out")
        changed = store.resume(institution, before=lambda: note(log, "peer_resumed", peer=institution))
        say(
            f"{institution} is resumed" if changed else f"{institution} was not suspended: nothing is changed"
        )
    else:
        changed = store.suspend(
            institution,
            reason=reason,
            before=lambda: note(log, "peer_suspended", peer=institution, reason=reason),
        )
        say(f"{institution} is suspended" if changed else f"{institution} was suspended already")
    if changed or not undo:
        running = _apply(config)
    outcome(institution=institution, suspended=not undo, changed=changed, node_running=running)


@peer.command()
@options.CONFIG
@INSTITUTION
@options.OUTCOME
def remove(config_path: Path, institution: str) -> None:
    """Remove a peer: it is refused from now on, and running calls with it end within a second."""
    from ddib_fed.security.audit import note

    config, store = _open(config_path)
    store.remove(institution, before=lambda: note(config.paths.store, "peer_removed", peer=institution))
    say(f"removed {institution}")
    outcome(removed=institution, node_running=_apply(config))


def _apply(config: NodeConfig) -> bool:
    """Apply the change in the running node, if one runs, and say so; a stopped node applies it when it starts."""
    from ddib_fed.node.admin import AdminClient

    running = AdminClient(config).reload_if_running() is not None
    say(
        "the running node has applied it"
        if running
        else "no node runs on this state folder now; it is applied when one starts"
    )
    return running


@command(
    epilog="\b\nExamples:\n  ddib pair --listen\n  ddib pair west.example:7444 482-173-063   (on the other side)"
)
@options.CONFIG
@click.argument("address", required=False, metavar="HOST:PORT")
@click.argument("code", required=False)
@option(
    "listens --listen",
    "Show a code, and wait for the other side at HOST:PORT; default: node.listen, which must be free.",
)
@FINGERPRINT
@REPLACE
@UNCONSTRAINED
@options.OUTCOME
def pair(
    config_path: Path,
    address: str | None,
    code: str | None,
    listens: bool,
    fingerprints: tuple[str, ...],
    replace: bool,
    unconstrained_root: bool,
) -> None:
    """Admit another institution's node, and be admitted there, with a code read out by telephone.

    One side runs `ddib pair --listen`, which shows an address and a code; the other `ddib pair HOST:PORT CODE`. The two
    commands exchange the peer files over a connection that the code protects. A code is valid for one try within 5
    minutes: somebody between the two sides can guess once, with a chance of one in 100 million. Both sides show whom
    they admitted, and both fingerprints. Read the code out to somebody whose voice you know; --fingerprint admits no
    other root.
    """
    from ddib_fed.node.admitting import pair as pair_nodes

    if listens and code is not None:
        raise UsageError("--listen shows a code, and takes none", hint="ddib pair --listen [HOST:PORT]")
    if not listens and (address is None or code is None):
        raise UsageError(
            "give --listen, or the address and the code that the other side shows",
            hint=f"ddib pair {address or 'HOST:PORT'} CODE",
        )
    config, _store = _open(config_path)
    paired = pair_nodes(
        config,
        None if address is None or code is None else (address, code),
        at=address if listens else None,
        fingerprints=fingerprints,
        replace=replace,
        unconstrained_root=unconstrained_root,
    )
    other, more = paired.other, with_config(config_path)
    say_next(
        [
            (f"{config.command} serve{more}", "unless it runs already"),
            (f"ddib peer test {other.institution}{more}", "once the other node serves too"),
        ]
    )
    outcome(admitted=other.institution, **_entry(other))
