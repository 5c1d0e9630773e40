"""Writes the peer file of this node, and admits the node of another institution: by its file, or by a code."""

from __future__ import annotations

import shlex
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import click

from ddib_fed.errors import AlreadyExists, ConfigError, FileMissing, PolicyDenied, UsageError
from ddib_fed.files import read_small, write_file
from ddib_fed.names import readable
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.server import check_bindable
from ddib_fed.protocol.addresses import is_loopback, split_address
from ddib_fed.security.audit import note
from ddib_fed.security.identity import Identity, name_constraints
from ddib_fed.security.pairing import CODE_LIFE_S, PairedPeer, dial, listen, new_code, parse_code
from ddib_fed.security.peers import Peer, PeerStore, parse_peer
from ddib_fed.terminal import escape, say


def peer_store(config: NodeConfig) -> PeerStore:
    return PeerStore(config.paths.state, config.node.institution)


def own_peer(config: NodeConfig) -> Peer:
    """This node, as others admit it."""
    node = config.node
    identity = Identity(node.institution, "node", node.name)
    own = Peer(node.institution, identity, node.address, peer_store(config).snapshot().own_roots)
    return parse_peer(own.to_bytes(), f"what {config.path} says of this node")  # as the other side will


def export_peer(config: NodeConfig, path: Path, *, force: bool = False) -> Peer:
    """Write the file that other institutions add; it holds no secret."""
    own = own_peer(config)
    if not path.parent.is_dir():
        raise FileMissing(
            f"no such folder: {path.parent}", hint=shlex.join(["mkdir", "-p", str(path.parent)])
        )
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
    if not unconstrained_root:
        require_name_constraints(other)
    warn_of_letters(other)
    if not fingerprints and peer_store(config).snapshot().peers.get(other.institution) != other:
        command = shlex.join(["ddib", "peer", "add", str(file), "--config", str(config.path)])
        fingerprints = _ask(other, f"{command} --fingerprint SHA256:...")
    admit_peer(config, other, fingerprints, replace=replace)
    return other


def warn_of_letters(other: Peer) -> None:
    """Show a name with letters beyond ASCII as it is read."""
    if (read := readable(other.institution)) != other.institution:
        say(
            f"warning: {other.institution} reads as {read}, whose letters may look like others: "
            "compare every one with what the other operator spells out",
            err=True,
        )


def require_name_constraints(other: Peer) -> None:
    """Refuse a peer whose root may issue certificates of any name."""
    if not all(name_constraints(root) for root in other.roots):
        raise PolicyDenied(
            f"the root of {other.institution} has no name constraints",
            hint="this is so for a general CA; to accept it, add --unconstrained-root",
        )


def admit_peer(
    config: NodeConfig, other: Peer, fingerprints: Sequence[str], *, replace: bool = False
) -> None:
    """Admit a node whose fingerprints were compared; the audit log has it first."""
    store = peer_store(config)
    replaced = other.institution in store.snapshot().peers
    store.add(
        other,
        fingerprints=fingerprints,
        replace=replace,
        before=lambda: note(
            config.paths.store,
            "peer_replaced" if replaced else "peer_added",
            peer=other.institution,
            identity=other.identity.uri,
            address=other.address,
            roots=list(other.fingerprints),
        ),
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


@dataclass(frozen=True, slots=True)
class PairOptions:
    """Whom the operator is ready to admit."""

    fingerprints: tuple[str, ...] = ()
    replace: bool = False
    unconstrained_root: bool = False


class _Here:
    """This node as a party of the exchange."""

    def __init__(self, config: NodeConfig, options: PairOptions) -> None:
        self._config, self._options = config, options
        self.peer = own_peer(config)
        self.own = self.peer.to_bytes()

    def judge(self, other: Peer) -> None:
        options = self._options
        if not options.unconstrained_root:
            require_name_constraints(other)
        peer_store(self._config).judge(
            other, fingerprints=options.fingerprints or other.fingerprints, replace=options.replace
        )

    def admit(self, other: Peer) -> None:
        admit_peer(self._config, other, other.fingerprints, replace=self._options.replace)


def pair_listening(
    config: NodeConfig, *, at: str | None = None, options: PairOptions = PairOptions()
) -> PairedPeer:
    """Show a code, wait for the other side to come with it, and admit that side."""
    here, code = _Here(config, options), new_code()
    with _bound(config, at) as listener:
        port = listener.getsockname()[1]
        shown = f"{_in_address(split_address(config.node.address)[0])}:{port}"
        if at is None and split_address(config.node.listen, bound=True)[1] == port:
            shown = config.node.address
        say(
            f"{config.node.institution} waits for one try in the next {CODE_LIFE_S / 60:.0f} minutes. "
            "Read this code out by telephone:",
            "",
            f"    {code}",
            "",
            f"there:       ddib pair {shown} {code}",
        )
        paired = listen(
            listener,
            code,
            here,
            on_stranger=lambda whence, why: say(f"a connection from {whence} had no code: {why}", err=True),
        )
    _show(config, here.peer, paired)
    return paired


def pair_dialling(
    config: NodeConfig, address: str, code: str, *, options: PairOptions = PairOptions()
) -> PairedPeer:
    """Connect to the side that waits, prove the code, and admit that side."""
    try:
        split_address(address)
    except ValueError as error:
        raise UsageError(str(error), hint="ddib pair HOST:PORT CODE, as the other side shows both") from error
    checked = parse_code(code)
    here = _Here(config, options)
    paired = dial(address, checked, here, proxy=config.proxy)
    _show(config, here.peer, paired)
    return paired


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _bound(config: NodeConfig, at: str | None) -> socket.socket:
    where = at or config.node.listen
    try:
        check_bindable(where, "node.listen" if at is None else "--listen")
    except ConfigError as error:
        if at is None:
            host = split_address(config.node.listen, bound=True)[0]
            again = f"ddib pair --listen {_in_address(host)}:PORT --config {shlex.quote(str(config.path))}"
            error.hint = f"the node runs? then another port that the other side reaches: {again}"
        raise
    host, port = split_address(where, bound=True)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=8)


def _show(config: NodeConfig, own: Peer, paired: PairedPeer) -> None:
    """Whom this node admitted, and the two fingerprints, for whoever wants to compare them all the same."""
    other = paired.other
    say(f"admitted     {other.identity} at {other.address}")
    warn_of_letters(other)
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
