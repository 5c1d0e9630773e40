"""Writes the peer file of this node, and admits the node of another institution's peer file."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from ddib_fed.errors import AlreadyExists, InputError, PolicyDenied, UsageError
from ddib_fed.files import read_small
from ddib_fed.names import readable
from ddib_fed.node.config import NodeConfig
from ddib_fed.terminal import escape, say
from ddib_fed.trust.audit.log import note
from ddib_fed.trust.identity import Identity, has_name_constraints
from ddib_fed.trust.peers import Peer, PeerStore, parse_peer


def peer_store(config: NodeConfig) -> PeerStore:
    paths = config.paths
    return PeerStore(paths.peers, own_institution=config.node.institution, pki_folder=paths.pki)


def own_peer(config: NodeConfig) -> Peer:
    """This node, as others admit it."""
    node = config.node
    identity = Identity(node.institution, "node", node.name)
    own = Peer(node.institution, identity, node.address, peer_store(config).snapshot().own_roots)
    return parse_peer(own.to_bytes(), f"what {config.path} says of this node")  # as the other side will


def export_peer(config: NodeConfig, path: Path, *, force: bool = False) -> Peer:
    """Write the file that other institutions add; it holds no secret."""
    own = own_peer(config)
    try:
        with path.open("wb" if force else "xb") as file:
            file.write(own.to_bytes())
    except FileExistsError as error:
        raise AlreadyExists(
            f"{path} exists and is not overwritten", hint="--force, or another --out"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
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
    other = parse_peer(
        read_small(file, hint="ddib peer export writes it, on the other side", pipe=True), str(file)
    )
    if not unconstrained_root:
        require_name_constraints(other)
    warn_of_letters(other)
    if not fingerprints and peer_store(config).snapshot().peers.get(other.institution) != other:
        fingerprints = _ask(
            other,
            shlex.join(["ddib", "peer", "add", str(file), "--config", str(config.path)])
            + " --fingerprint SHA256:...",
        )
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
    if not all(has_name_constraints(root) for root in other.roots):
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
            config.paths.audit,
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
