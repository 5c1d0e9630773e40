"""Writes the peer file of this node, and admits the node of another institution: by its file, or by a code."""

from __future__ import annotations

import shlex
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click

from ddib_fed.errors import AlreadyExists, ConfigError, PolicyDenied, UsageError
from ddib_fed.files import read_small, write_file
from ddib_fed.names import readable
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.server import check_bindable
from ddib_fed.protocol.addresses import bracketed, is_loopback, split_address
from ddib_fed.security.identity import Identity, name_constraints
from ddib_fed.security.pairing import CODE_LIFE_S, PairedPeer, PairingNode, dial, listen, new_code, parse_code
from ddib_fed.security.peers import Peer, PeerStore, parse_peer
from ddib_fed.terminal import escape, say


def peer_store(config: NodeConfig) -> PeerStore:
    return PeerStore(config.paths.state, config.node.institution, config.paths.store)


def own_peer(config: NodeConfig) -> Peer:
    node = config.node
    identity = Identity(node.institution, "node", node.name)
    own = Peer(node.institution, identity, node.address, peer_store(config).snapshot().own_roots)
    return parse_peer(own.to_bytes(), f"what {config.path} says of this node")  # as the other side will


def export_peer(config: NodeConfig, path: Path, *, force: bool = False) -> Peer:
    """Write the file that other institutions add; it holds no secret."""
    own = own_peer(config)
    try:
        write_file(path, own.to_bytes(), overwrite=force)
    except AlreadyExists as error:
        error.hint = "choose another file, or replace it with ddib peer export --force"
        raise
    return own


def admit(
    config: NodeConfig,
    file: Path,
    fingerprints: Sequence[str] = (),
    *,
    replace: bool = False,
    unconstrained_root: bool = False,
) -> Peer:
    """Admit another institution's node after its root's fingerprint was compared; the audit log has it first."""
    content = read_small(file, hint="ddib peer export writes it, on the other side", pipe=True)
    other = parse_peer(content, str(file))
    _require_name_constraints(other, unconstrained_root=unconstrained_root)
    _warn_of_letters(other)
    if not fingerprints and peer_store(config).snapshot().peers.get(other.institution) != other:
        command = shlex.join(["ddib", "peer", "add", str(file), "--config", str(config.path)])
        fingerprints = _ask(other, f"{command} --fingerprint SHA256:...")
    peer_store(config).add(other, fingerprints=fingerprints, replace=replace)
    return other


def _warn_of_letters(other: Peer) -> None:
    """Show a name with letters beyond ASCII as it is read."""
    if (read := readable(other.institution)) != other.institution:
        say(
            f"warning: {other.institution} reads as {read}, whose letters may look like others: "
            "compare every one with what the other operator spells out",
            err=True,
        )


def _require_name_constraints(other: Peer, *, unconstrained_root: bool) -> None:
    if not (unconstrained_root or all(name_constraints(root) for root in other.roots)):
        raise PolicyDenied(
            f"the root of {other.institution} has no name constraints",
            hint="this is so for a general CA; to accept it, add --unconstrained-root",
        )


def _ask(other: Peer, otherwise: str) -> tuple[str, ...]:
    """Show the fingerprint and ask, on a terminal only."""
    if not sys.stdin.isatty():
        raise UsageError(
            "a peer is added with the fingerprint that the other operator read out",
            hint=f"{otherwise}; the question is asked only on a terminal",
        )
    say(f"node         {other.identity}", f"address      {other.address}", "fingerprint:")
    say(*other.fingerprints)  # last and alone: no text of the file comes after it
    which = "Is this" if len(other.roots) == 1 else f"Are all {len(other.roots)} of these"
    if not confirm(f"{which} what the other operator reads out?"):
        raise PolicyDenied(
            "the fingerprint was not confirmed; nothing was added",
            hint="compare it with the output of `ddib peer export` there; if it differs, stop",
        )
    return other.fingerprints


def confirm(question: str) -> bool:
    return bool(click.confirm(escape(question), default=False))


# By a code, which stands in for the comparison of fingerprints


def pair(
    config: NodeConfig,
    dialled: tuple[str, str] | None = None,
    *,
    at: str | None = None,
    fingerprints: Sequence[str] = (),
    replace: bool = False,
    unconstrained_root: bool = False,
) -> PairedPeer:
    """Admit the node at an address with the code that it shows; or show a code, wait for a node, and admit that."""
    if dialled is not None:
        address, code = dialled[0], parse_code(dialled[1])
        try:
            split_address(address)
        except ValueError as error:
            hint = "ddib pair HOST:PORT CODE, as the other side shows both"
            raise UsageError(str(error), hint=hint) from error
    own, store = own_peer(config), peer_store(config)

    def judge(other: Peer) -> None:
        _require_name_constraints(other, unconstrained_root=unconstrained_root)
        store.judge(other, fingerprints=fingerprints or other.fingerprints, replace=replace)

    def admit_paired(other: Peer) -> None:
        store.add(other, fingerprints=other.fingerprints, replace=replace)

    node = PairingNode(own.to_bytes(), judge, admit_paired)
    paired = _listen(config, node, at) if dialled is None else dial(address, code, node, proxy=config.proxy)
    _show(config, own, paired)
    return paired


def _listen(config: NodeConfig, node: PairingNode, at: str | None) -> PairedPeer:
    code, shown = new_code(), config.node.address
    with _bound(config, at) as listener:
        port = listener.getsockname()[1]
        if at is not None or split_address(config.node.listen, bound=True)[1] != port:
            shown = f"{bracketed(split_address(config.node.address)[0])}:{port}"
        say(
            f"{config.node.institution} waits for one try in the next {CODE_LIFE_S / 60:.0f} minutes. "
            "Read this code out by telephone:",
            "",
            f"    {code}",
            "",
            f"there:       ddib pair {shown} {code}",
        )

        def on_stranger(whence: str, why: str) -> None:
            say(f"a connection from {whence} had no code: {why}", err=True)

        return listen(listener, code, node, on_stranger=on_stranger)


def _bound(config: NodeConfig, at: str | None) -> socket.socket:
    where = at or config.node.listen
    host, port = split_address(where, bound=True)
    try:
        check_bindable(where, "node.listen" if at is None else "--listen")
    except ConfigError as error:
        if at is None:
            again = f"ddib pair --listen {bracketed(host)}:PORT --config {shlex.quote(str(config.path))}"
            error.hint = f"the node runs? then another port that the other side reaches: {again}"
        raise
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=8)


def _show(config: NodeConfig, own: Peer, paired: PairedPeer) -> None:
    """Whom this node admitted, and the two fingerprints, for whoever wants to compare them all the same."""
    other = paired.other
    say(f"admitted     {other.identity} at {other.address}")
    _warn_of_letters(other)
    say(*(f"theirs       {text}" for text in other.fingerprints))
    say(*(f"ours         {text}" for text in own.fingerprints))
    if not paired.mutual:
        say(
            f"warning: whether {other.institution} admitted this node is not known, the connection ended; "
            f"ddib peer test {other.institution} --config {shlex.quote(str(config.path))} says",
            err=True,
        )
    whence = paired.where
    with suppress(ValueError):
        whence = split_address(whence)[0]
    if is_loopback(split_address(other.address)[0]) and not is_loopback(whence):
        say(
            f"warning: {other.address} is an address of that machine alone, and this node cannot dial it; "
            "correct node.address there, and pair again with --force here",
            err=True,
        )
