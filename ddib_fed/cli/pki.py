"""`ddib pki`: the institution's root, and the certificates of its nodes and clients."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.options import group, option, say_next, with_config
from ddib_fed.errors import Cancelled, InputError, PolicyDenied
from ddib_fed.files import read_small, write_file
from ddib_fed.terminal import emit, outcome, say

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.security.identity import Identity

OF_CLIENT = option("profile_path --profile FILE", "A client's certificate instead: that of this client.toml.")
OUT = option("--out FILE", "What to write.")


def _config(path: Path) -> NodeConfig:
    from ddib_fed.node.config import NodeConfig

    return NodeConfig.load(path)


def _place(config_path: Path, profile_path: Path | None) -> tuple[Path, Identity]:
    """The folder of certificates of the node, or of a client, and whose they are."""
    from ddib_fed.security.identity import Identity

    if profile_path is not None:
        from ddib_fed.client.profile import Profile

        profile = Profile.load(profile_path)
        return profile.pki_folder, Identity(profile.institution, "client", profile.name)
    config = _config(config_path)
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
    from ddib_fed.security import pki as keys
    from ddib_fed.security.peers import begin_node

    config = _config(config_path)
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
    from ddib_fed.security.pki import make_request

    place, owner = _place(config_path, profile_path)
    path = out or Path(f"{owner.name}.csr")
    write_file(path, make_request(place, owner), overwrite=False)
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
    from ddib_fed.security import pki as keys
    from ddib_fed.security.audit import note

    config = _config(config_path)
    authority = keys.load_authority(config.paths.pki)
    asked = keys.read_request(read_small(request_file, pipe=True))
    identity, uri = asked.identity, asked.identity.uri
    peer_store(config).snapshot().refuse_withdrawn(identity)
    if not yes and not confirm(f"sign for {identity}? Whoever has this request's key gets this identity"):
        raise Cancelled("not confirmed; nothing was signed", hint="the same command again")
    roots = keys.parse_certificates(read_small(config.paths.pki / "roots.pem"), "roots.pem")
    signed = keys.sign_request(authority, asked, roots, lifetime=config.identity.life(identity.kind))
    leaf = keys.parse_certificates(signed, "what was signed")[0]
    until, path = leaf.not_valid_after_utc, out or Path(f"{identity.name}.pem")
    certificate = keys.fingerprint(leaf)
    note(
        config.paths.store,
        "certificate_issued",
        identity=uri,
        certificate=certificate,
        until=until.isoformat(),
    )
    write_file(path, signed, overwrite=False)
    say(f"wrote {path}, the certificate of {identity}")
    say_next(
        [(f"ddib pki install {shlex.quote(path.name)}", f"where the request was made; take {path} there")]
    )
    outcome(written=path, identity=uri, valid_until=until)


@pki.command(epilog="\b\nExample:\n  ddib pki install node-2.pem --config node.toml")
@options.CONFIG
@OF_CLIENT
@options.OUTCOME
@click.argument("certificate", type=click.Path(dir_okay=False, path_type=Path))
def install(config_path: Path, profile_path: Path | None, certificate: Path) -> None:
    """Install a signed certificate after checking its key, name and root."""
    from ddib_fed.security import pki as keys
    from ddib_fed.security.audit import note

    place, owner = _place(config_path, profile_path)
    signed = read_small(certificate, pipe=True)
    if profile_path is None:
        leaf = keys.parse_certificates(signed, "the signed certificate", hint="ddib pki issue writes one")[0]
        note(_config(config_path).paths.store, "certificate_given", certificate=keys.fingerprint(leaf))
    identity = keys.install(place, signed, expected=owner)
    say(f"installed the certificate of {identity} in {place}")
    outcome(installed=identity.uri, folder=place)


@pki.command()
@options.CONFIG
@OF_CLIENT
@options.OUTCOME
def show(config_path: Path, profile_path: Path | None) -> None:
    """Show the certificate's identity and expiry, the trusted roots of its institution, and who is withdrawn."""
    from ddib_fed.node.admitting import peer_store
    from ddib_fed.security import pki as keys

    place, _owner = _place(config_path, profile_path)
    own, issuer = keys.load_identity(place), keys.has_authority(place)
    withdrawn = {} if profile_path is not None else peer_store(_config(config_path)).snapshot().withdrawn
    expired = own.not_after <= datetime.now(UTC)
    roots = [(keys.fingerprint(root), root.not_valid_after_utc) for root in own.roots]
    until = "%Y-%m-%d %H:%M UTC"
    text = (
        f"identity     {own.identity.uri}",
        f"role         {own.identity.kind}",
        f"DNS name     {own.identity.dns_name}",
        f"valid until  {own.not_after:{until}}{'  EXPIRED' if expired else ''}",
        *(f"root         {fingerprint}  until {ends:{until}}" for fingerprint, ends in roots),
        f"issues       {'yes: the root key is in this folder' if issuer else 'no'}",
        *(f"withdrawn    {each.uri}  {reason}" for each, reason in withdrawn.items()),
    )
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
    emit(values, lambda: say(*text))


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
    from ddib_fed.node.admin import AdminClient
    from ddib_fed.node.admitting import peer_store
    from ddib_fed.security.audit import note

    config = _config(config_path)
    named, log, store = _of_institution(config, identity), config.paths.store, peer_store(config)
    if undo:
        options.refuse_idle(("reason",), "is for a withdrawal", hint="leave it out")
        changed = store.reinstate(named, before=lambda: note(log, "identity_reinstated", identity=named.uri))
        said = "is reinstated" if changed else "was not withdrawn"
    else:
        changed = store.withdraw(
            named,
            comment=reason,
            before=lambda: note(log, "identity_withdrawn", identity=named.uri, comment=reason),
        )
        said = "is withdrawn" if changed else "was withdrawn already"
    lines = AdminClient(config).reload_if_running()
    if refused := [line for line in lines or () if line.startswith("not read:") and store.file.name in line]:
        raise InputError(
            f"the list is written, and the running node does not obey it: {refused[0]}",
            hint="run this as the node's own user, and let the file belong to that user",
        )
    say(f"{named} {said}, in {store.file}")
    if changed or not undo:
        say(
            "no node runs on this state now; it obeys the list from its start"
            if lines is None
            else f"the running node {'lets it in again' if undo else 'refuses it from now on, renewals too'}",
            f"do the same on each other node of {named.institution}: each has a list of its own",
        )
    if named.kind == "node" and not undo:
        say(f"and tell the peers that admitted it: ddib peer remove {named.institution}, there")
    outcome(
        identity=named.uri,
        withdrawn=not undo,
        changed=changed,
        file=store.file,
        node_running=lines is not None,
    )


def _of_institution(config: NodeConfig, text: str) -> Identity:
    """The identity, if this node's list can refuse it."""
    from ddib_fed.security.identity import Identity

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
