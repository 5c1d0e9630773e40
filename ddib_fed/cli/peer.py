"""`ddib peer` and `ddib pair`: the peers of this node. `ddib pki`: the certificates of its institution."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.options import group, open_config, option, say_next, with_config
from ddib_fed.errors import Cancelled, InputError, PeerUnreachable, PolicyDenied, UsageError
from ddib_fed.files import read_small, write_file
from ddib_fed.security import pki as keys
from ddib_fed.security.audit import note
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import Peer, PeerStore, begin_node
from ddib_fed.terminal import emit, lines, listed, outcome, plain, print_table, say

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig

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

    config = open_config(config_path)
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

    config = open_config(config_path)
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
    config_path: Path, file: Path, *, fingerprints: tuple[str, ...], replace: bool, unconstrained_root: bool
) -> None:
    """Admit another institution's node, after comparing its root's fingerprint with the one read out."""
    from ddib_fed.node.admitting import admit

    config = open_config(config_path)
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
            [each.institution, "suspended" if each.institution in suspended else "admitted", each.address,
             each.identity.uri, each.fingerprint]
            for each in peers
        ]  # fmt: skip
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

    from ddib_fed.protocol.calls import described, failure_of_peer, status_of
    from ddib_fed.protocol.contract import PROTOCOL
    from ddib_fed.security.tls import PeerChannels
    from ddib_fed.v1 import decoding_pb2, decoding_pb2_grpc

    config, store = _open(config_path)
    peer = store.get(institution)
    channels = PeerChannels(config.paths.pki, store, proxy=config.proxy)
    decoding, said, clock = None, "none: it is a source node only", None
    try:
        finding = channels.diagnosis(peer)
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
    (config, store), running = _open(config_path), None
    if undo:
        options.refuse_idle(("reason",), "is for a suspension")
        changed = store.resume(institution)
        said = "is resumed" if changed else "was not suspended: nothing is changed"
    else:
        changed = store.suspend(institution, reason=reason)
        said = "is suspended" if changed else "was suspended already"
    say(f"{institution} {said}")
    if changed or not undo:
        running = _apply(config, store)
    outcome(institution=institution, suspended=not undo, changed=changed, node_running=running)


@peer.command()
@options.CONFIG
@INSTITUTION
@options.OUTCOME
def remove(config_path: Path, institution: str) -> None:
    """Remove a peer: it is refused from now on, and running calls with it end within a second."""
    config, store = _open(config_path)
    store.remove(institution)
    say(f"removed {institution}")
    outcome(removed=institution, node_running=_apply(config, store))


def _apply(config: NodeConfig, store: PeerStore) -> bool:
    """Apply the change in the running node, if one runs, and say so; a stopped node applies it when it starts."""
    from ddib_fed.node.admin import AdminClient

    told = AdminClient(config).reload_if_running()
    if refused := [line for line in told or () if line.startswith("not read:") and store.file.name in line]:
        raise InputError(
            f"{store.file} is written, and the running node does not obey it: {refused[0]}",
            hint="run this as the node's own user, and let the file belong to that user",
        )
    running = told is not None
    say(
        "the running node has applied it"
        if running
        else "no node runs on this state folder now; it is applied when one starts"
    )
    return running


@click.command(
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
    *,
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
    config = open_config(config_path)
    called = None if address is None or code is None else (address, code)
    paired = pair_nodes(
        config,
        called,
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


OF_CLIENT = option("profile_path --profile FILE", "A client's certificate instead: that of this client.toml.")
OUT = option("--out FILE", "What to write.")


def _place(config_path: Path, profile_path: Path | None) -> tuple[Path, Identity]:
    """The folder of certificates of the node, or of a client, and whose they are."""
    if profile_path is not None:
        from ddib_fed.client.profile import Profile

        profile = Profile.load(profile_path)
        return profile.pki_folder, Identity(profile.institution, "client", profile.name)
    config = open_config(config_path)
    return config.paths.pki, Identity(config.node.institution, "node", config.node.name)


@group()
def pki() -> None:
    """Make the institution's CA; request, issue, install, show and withdraw certificates."""


@pki.command(epilog="\b\nExample:\n  ddib pki init --config node.toml")
@options.CONFIG
@options.OUTCOME
def init(config_path: Path) -> None:
    """Make the institution's root on this node, and the node's certificate from it.

    The root's key is in the node's state folder: anyone who has it can pose as any identity of this institution.
    """
    config = open_config(config_path)
    authority = begin_node(config.paths.state, config.node.institution, config.node.name)
    root = keys.fingerprint(authority.certificate)
    say(
        f"made the root of {authority.institution} and this node's certificate in {config.paths.pki}",
        f"fingerprint  {root}",
    )
    outcome(institution=authority.institution, folder=config.paths.pki, fingerprint=root)


@pki.command(epilog="\b\nExample:\n  ddib pki request --config node.toml --out node-2.csr")
@options.CONFIG
@OF_CLIENT
@OUT
@options.OUTCOME
def request(config_path: Path, profile_path: Path | None, out: Path | None) -> None:
    """Write a certificate request for the institution's issuer; its key stays here."""
    place, owner = _place(config_path, profile_path)
    path = out or Path(f"{owner.name}.csr")
    write_file(path, keys.make_request(place, owner), overwrite=False)
    say(f"wrote {path}, a request for {owner}")
    client = f" --profile {shlex.quote(str(profile_path))}"
    more = with_config(config_path) if profile_path is None else client
    say_next(
        [
            (f"ddib pki issue {shlex.quote(path.name)}", f"at the node that issues; take {path} there"),
            (f"ddib pki install {owner.name}.pem{more}", "here, with what it wrote"),
        ]
    )
    outcome(written=path, identity=owner.uri)


@pki.command(epilog="\b\nExample:\n  ddib pki issue node-2.csr")
@options.CONFIG
@click.argument("request_file", type=click.Path(dir_okay=False, path_type=Path))
@OUT
@option("--yes", "Do not ask whether the request comes from the identity that it names.")
@options.OUTCOME
def issue(config_path: Path, request_file: Path, out: Path | None, yes: bool) -> None:
    """Sign the request of a node or client on another machine; run it on the node with the root's key."""
    from ddib_fed.node.admitting import confirm, peer_store

    config = open_config(config_path)
    authority = keys.load_authority(config.paths.pki)
    identity, key = keys.read_request(read_small(request_file, pipe=True))
    peer_store(config).snapshot().refuse_withdrawn(identity)
    if not yes and not confirm(f"sign for {identity}? Whoever has this request's key gets this identity"):
        raise Cancelled("not confirmed; nothing was signed", hint="the same command again")
    roots = keys.parse_certificates(read_small(config.paths.pki / "roots.pem"), "roots.pem")
    signed = keys.sign_request(authority, identity, key, roots, lifetime=config.identity.life(identity.kind))
    leaf = keys.parse_certificates(signed, "what was signed")[0]
    until, path = leaf.not_valid_after_utc, out or Path(f"{identity.name}.pem")
    certificate = {"certificate": keys.fingerprint(leaf), "until": until.isoformat()}
    note(config.paths.store, "certificate_issued", identity=identity.uri, **certificate)
    write_file(path, signed, overwrite=False)
    say(f"wrote {path}, the certificate of {identity}")
    say_next(
        [(f"ddib pki install {shlex.quote(path.name)}", f"where the request was made; take {path} there")]
    )
    outcome(written=path, identity=identity.uri, valid_until=until)


@pki.command(epilog="\b\nExample:\n  ddib pki install node-2.pem --config node.toml")
@options.CONFIG
@OF_CLIENT
@options.OUTCOME
@click.argument("certificate", type=click.Path(dir_okay=False, path_type=Path))
def install(config_path: Path, profile_path: Path | None, certificate: Path) -> None:
    """Install a signed certificate after checking its key, name and root."""
    place, owner = _place(config_path, profile_path)
    signed = read_small(certificate, pipe=True)
    if profile_path is None:
        leaf = keys.parse_certificates(signed, "the signed certificate", hint="ddib pki issue writes one")[0]
        note(open_config(config_path).paths.store, "certificate_given", certificate=keys.fingerprint(leaf))
    identity = keys.install(place, signed, expected=owner)
    say(f"installed the certificate of {identity} in {place}")
    outcome(installed=identity.uri, folder=place)


@pki.command()
@options.CONFIG
@OF_CLIENT
@options.OUTCOME
def show(config_path: Path, profile_path: Path | None) -> None:
    """Show the certificate's identity and expiry, the trusted roots of its institution, and who is withdrawn."""
    place, _owner = _place(config_path, profile_path)
    own, issuer = keys.load_identity(place), keys.has_authority(place)
    withdrawn = {} if profile_path is not None else _open(config_path)[1].snapshot().withdrawn
    expired = own.not_after <= datetime.now(UTC)
    roots = [(keys.fingerprint(root), root.not_valid_after_utc) for root in own.roots]
    values = {
        "identity": own.identity.uri,
        "role": own.identity.kind,
        "dns_name": own.identity.dns_name,
        "valid_until": own.not_after,
        "expired": expired,
        "roots": [{"fingerprint": fingerprint, "valid_until": ends} for fingerprint, ends in roots],
        "issuer": issuer,
        "withdrawn": [{"identity": each.uri, "reason": reason} for each, reason in withdrawn.items()],
    }
    emit(values, lambda: lines(listed("", plain(values))))


@pki.command(
    epilog="\b\nExample:\n  ddib pki withdraw spiffe://north.example/client/alice --reason 'laptop lost'"
)
@options.CONFIG
@options.OUTCOME
@option("--reason TEXT", "For the list; default: the date.", default="")
@option("--undo", "Accept an identity again that was withdrawn on this node.")
@click.argument("identity", metavar="IDENTITY")
def withdraw(config_path: Path, reason: str, undo: bool, identity: str) -> None:
    """Refuse a client or node of this institution although its certificate is valid, e.g. because its key was lost.

    The node refuses its next call and renewals, and issues it no certificate. Each node of the institution has its
    own list: run this on each.
    """
    config, store = _open(config_path)
    named = _of_institution(config, identity)
    if undo:
        options.refuse_idle(("reason",), "is for a withdrawal")
        changed = store.reinstate(named)
        said = "is reinstated" if changed else "was not withdrawn"
    else:
        changed = store.withdraw(named, comment=reason)
        said = "is withdrawn" if changed else "was withdrawn already"
    say(f"{named} {said}, in {store.file}")
    running = _apply(config, store)
    if changed or not undo:
        say(f"do the same on each other node of {named.institution}: each has a list of its own")
    if named.kind == "node" and not undo:
        say(f"and tell the peers that admitted it: ddib peer remove {named.institution}, there")
    outcome(identity=named.uri, withdrawn=not undo, changed=changed, file=store.file, node_running=running)


def _of_institution(config: NodeConfig, text: str) -> Identity:
    """The identity, if this node's list can refuse it."""
    institution = config.node.institution
    try:
        named = Identity.parse(text)
    except InputError as error:
        raise InputError(
            f"{text!a} is no identity: {error.detail}",
            hint=f"e.g. spiffe://{institution}/client/alice; `ddib pki show` prints a certificate's own",
        ) from error
    if named.institution != institution:
        raise PolicyDenied(
            f"{named} is not of {institution}, and a node withdraws identities of its own institution",
            hint=f"to refuse another institution's node: ddib peer remove {named.institution}, or ddib peer suspend",
        )
    return named
