"""`ddib peer`: who may send latents here, and where this node's latents may go."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.output import confirm, print_json, print_table
from ddib_fed.errors import AlreadyExists, DdibError, InputError, PeerUnreachable, PolicyDenied, UsageError
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.trust.peer_file import Peer
    from ddib_fed.trust.peers import PeerStore
    from ddib_fed.v1 import decoding_pb2

INSTITUTION = click.argument("institution")


def _open(config_path: Path) -> tuple[NodeConfig, PeerStore]:
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.trust.peers import PeerStore

    config = NodeConfig.load(config_path)
    paths = config.paths
    return config, PeerStore(paths.peers, own_institution=config.node.institution, pki_folder=paths.pki)


@click.group()
def peer() -> None:
    """Export this node's peer file; add, list, test and remove peers."""


@peer.command(epilog="\b\nExample:\n  ddib peer export --out north.peer")
@options.CONFIG
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Default: INSTITUTION.peer"
)
@click.option("--force", is_flag=True, help="Overwrite the file.")
def export(config_path: Path, out: Path | None, force: bool) -> None:
    """Write the file that another institution adds, and show the fingerprint to read out to them.

    It holds no secret: the root's certificate, this node's name and its address.
    """
    from ddib_fed.trust.identity import Identity
    from ddib_fed.trust.peer_file import Peer, parse_peer

    config, store = _open(config_path)
    institution = config.node.institution
    own = Peer(
        institution,
        Identity(institution, "node", config.node.name),
        config.node.address,
        store.snapshot().own_roots,
    )
    parse_peer(own.to_bytes(), f"what {config_path} says of this node")  # as the other side will
    path = out if out is not None else Path(f"{institution}.peer")
    try:
        with path.open("wb" if force else "xb") as file:
            file.write(own.to_bytes())
    except FileExistsError as error:
        raise AlreadyExists(
            f"{path} exists and is not overwritten", hint="--force, or another --out"
        ) from error
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}") from error
    say(f"wrote {path}: {own.identity} at {own.address}")
    for text in own.fingerprints:
        say(f"fingerprint  {text}")
    if config.not_dialled:
        say(f"warning: {config.not_dialled}; correct {config_path} and export again", err=True)
    say("send the file; read the fingerprint out to the other operator by another way, e.g. by telephone")


@peer.command(epilog="\b\nExample:\n  ddib peer add south.peer --fingerprint SHA256:12:34:...")
@options.CONFIG
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--fingerprint",
    "fingerprints",
    multiple=True,
    metavar="SHA256:...",
    help="What the other operator read out; without it, it is shown and asked about on a terminal.",
)
@click.option("--replace", is_flag=True, help="Replace the entry: a new root, name or address of a peer.")
@click.option("--unconstrained-root", is_flag=True, help="Accept a root without name constraints.")
def add(
    config_path: Path, file: Path, fingerprints: tuple[str, ...], replace: bool, unconstrained_root: bool
) -> None:
    """Admit another institution's node, after comparing its root's fingerprint with the one read out."""
    from ddib_fed.files import read_small
    from ddib_fed.trust.identity import has_name_constraints
    from ddib_fed.trust.peer_file import parse_peer

    _config, store = _open(config_path)
    other = parse_peer(
        read_small(file, hint="ddib peer export writes it, on the other side", pipe=True), str(file)
    )
    if not unconstrained_root and not all(has_name_constraints(root) for root in other.roots):
        raise PolicyDenied(
            f"the root of {other.institution} has no name constraints",
            hint="that is so when a general CA was taken; if you accept that, add --unconstrained-root",
        )
    confirmed = fingerprints or _ask(other)
    store.add(other, fingerprints=confirmed, replace=replace)
    say(f"admitted {other.identity} at {other.address}")
    say(f"next: ddib peer test {other.institution}")


def _ask(other: Peer) -> tuple[str, ...]:
    """Show the fingerprint and ask, on a terminal only."""
    if not sys.stdin.isatty():
        raise UsageError(
            "a peer is added with the fingerprint that the other operator read out",
            hint="--fingerprint SHA256:...; only a terminal is asked",
        )
    say(f"node         {other.identity}", f"address      {other.address}", "fingerprint:")
    say(*other.fingerprints)  # last and alone: nothing that the file says comes after it
    which = "Is this" if len(other.roots) == 1 else f"Are all {len(other.roots)} of these"
    if not confirm(f"{which} what the other operator reads out from `ddib peer export`?"):
        raise PolicyDenied("the fingerprint was not confirmed; nothing was added")
    return other.fingerprints


@peer.command(name="list")
@options.CONFIG
@options.FORMAT
def list_(config_path: Path, output_format: str) -> None:
    """List the peers that are admitted here."""
    _config, store = _open(config_path)
    peers = store.list()
    if output_format == "json":
        print_json(
            [
                {
                    "institution": entry.institution,
                    "identity": entry.identity.uri,
                    "address": entry.address,
                    "fingerprints": entry.fingerprints,
                }
                for entry in peers
            ]
        )
    elif peers:
        rows = [[entry.institution, entry.address, entry.identity.uri, entry.fingerprint] for entry in peers]
        print_table("", ["peer", "address", "identity", "root"], rows)
    else:
        say("no peers yet: ddib peer add FILE")
    if store.problem:
        say(f"not admitted: {store.problem}", err=True)


@peer.command()
@options.CONFIG
@options.FORMAT
@INSTITUTION
def test(config_path: Path, output_format: str, institution: str) -> None:
    """Connect to a peer, and say what is wrong when that fails."""
    from ddib_fed.client.diagnosis import diagnose
    from ddib_fed.trust.certificates import certificate_pem

    config, store = _open(config_path)
    entry = store.get(institution)
    finding = diagnose(
        entry.address,
        server_name=entry.identity.dns_name,
        pki_folder=config.paths.pki,
        roots_pem=certificate_pem(*entry.roots),
    )
    if not finding.ok:
        raise PeerUnreachable(
            f"{finding.text} [{finding.cause}]", hint=finding.remedy, hop=f"target {institution}"
        )
    side = _describe(config, store, institution)
    if output_format == "json":
        decoding = None
        if side is not None:
            decoding = {"domain": side.domain[:100], "sample_shape": list(side.sample_shape)[:5]}
        print_json({"institution": institution, "connection": finding.text, "decoding": decoding})
        return
    say(f"connection   {finding.text}")
    what = "none: it is a source node only"
    if side is not None:
        what = f"{side.domain[:100]!a}, samples of shape {list(side.sample_shape)[:5]}"
    say(f"decoding     {what}")


def _describe(config: NodeConfig, store: PeerStore, institution: str) -> decoding_pb2.ContractSide | None:
    """What the peer decodes to; a peer that is a source only has nothing to say, which is no failure."""
    import grpc

    from ddib_fed.rpc.error_details import from_rpc_error, status_of
    from ddib_fed.trust.tls import PeerChannels
    from ddib_fed.v1 import decoding_pb2, decoding_pb2_grpc
    from ddib_fed.wire.version import versions_to_pb

    channels = PeerChannels(config.paths.pki, store)
    try:
        stub = decoding_pb2_grpc.DecodingServiceStub(channels.get(institution))
        request = decoding_pb2.DescribeDomainRequest(versions=versions_to_pb())
        return stub.DescribeDomain(request, timeout=10).side
    except grpc.RpcError as error:
        if status_of(error) is grpc.StatusCode.UNIMPLEMENTED:
            return None
        raise _explained(from_rpc_error(error, f"target {institution}"), config) from error
    finally:
        channels.close()


def _explained(error: DdibError, config: NodeConfig) -> DdibError:
    if error.reason == "PEER_UNKNOWN":
        error.hint = (
            f"TLS knows our root, but that node has not admitted {config.node.name}: "
            "ddib peer export here, ddib peer add there"
        )
    elif isinstance(error, PeerUnreachable):  # whose hint is this command
        error.hint = (
            "the handshake went well and the call did not: the same command again, then that node's log"
        )
    return error


@peer.command()
@options.CONFIG
@INSTITUTION
def remove(config_path: Path, institution: str) -> None:
    """Refuse a peer from its next call on; its running calls end too."""
    _config, store = _open(config_path)
    store.remove(institution)
    say(f"removed {institution}; it is refused from now on, without a restart")
