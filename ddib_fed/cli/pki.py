"""`ddib pki`: the institution's root, and the certificates of its nodes and clients."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import group, say_next, with_config
from ddib_fed.cli.output import outcome, print_json
from ddib_fed.errors import Cancelled, InputError, PolicyDenied, UsageError
from ddib_fed.files import read_small, write_file
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.security.identity import Identity
    from ddib_fed.security.peers import PeerStore

FOLDER = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder of certificates, instead of the node's; for clients.",
)
IDENTITY = click.argument("identity", metavar="IDENTITY")
OUT = click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="What to write."
)


def _config(path: Path) -> NodeConfig:
    from ddib_fed.node.config import NodeConfig

    return NodeConfig.load(path)


def _place(config_path: Path, folder: Path | None) -> tuple[Path, Identity | None]:
    """The folder of certificates, and its identity if a node.toml gives it."""
    from ddib_fed.security.identity import Identity

    if folder is not None:
        return folder, None
    config = _config(config_path)
    return config.paths.pki, Identity(config.node.institution, "node", config.node.name)


def _store(config_path: Path) -> PeerStore:
    from ddib_fed.node.admitting import peer_store

    return peer_store(_config(config_path))


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
    say(f"made the root of {authority.institution} and this node's certificate in {config.paths.pki}")
    say(f"fingerprint  {root}")
    outcome(institution=authority.institution, folder=config.paths.pki, fingerprint=root)


@pki.command(epilog="\b\nExample:\n  ddib pki request --config node.toml --out node-2.csr")
@options.CONFIG
@FOLDER
@click.option(
    "--identity",
    metavar="URI",
    help="With --folder: the identity to request, spiffe://INSTITUTION/client/NAME.",
)
@OUT
@options.OUTCOME
def request(config_path: Path, folder: Path | None, identity: str | None, out: Path | None) -> None:
    """Write a certificate request for the institution's issuer; its key stays here."""
    from ddib_fed.security.identity import Identity
    from ddib_fed.security.pki import make_request

    place, owner = _place(config_path, folder)
    wanted = Identity.parse(identity) if identity is not None else owner
    if wanted is None:
        raise UsageError("--folder does not say whose certificate it is: give --identity URI as well")
    path = out if out is not None else Path(f"{wanted.name}.csr")
    write_file(path, make_request(place, wanted), overwrite=False)
    say(f"wrote {path}, a request for {wanted}")
    more = with_config(config_path) if folder is None else f" --folder {shlex.quote(str(folder))}"
    say_next(
        [
            (f"ddib pki issue {shlex.quote(path.name)}", f"at the node that issues; take {path} there"),
            (f"ddib pki install {wanted.name}.pem{more}", "here, with what it wrote"),
        ]
    )
    outcome(written=path, identity=wanted.uri)


@pki.command(epilog="\b\nExample:\n  ddib pki issue node-2.csr")
@options.CONFIG
@click.argument("request_file", type=click.Path(dir_okay=False, path_type=Path))
@OUT
@click.option(
    "--yes", is_flag=True, help="Do not ask whether the request comes from the identity that it names."
)
@options.OUTCOME
def issue(config_path: Path, request_file: Path, out: Path | None, yes: bool) -> None:
    """Sign the request of a node or client on another machine; run it on the node with the root's key."""
    from ddib_fed.node.admitting import confirm, peer_store
    from ddib_fed.security import pki as keys
    from ddib_fed.security.audit import note

    config = _config(config_path)
    folder = config.paths.pki
    authority = keys.load_authority(folder)
    asked = keys.read_request(read_small(request_file, pipe=True))
    peer_store(config).snapshot().refuse_withdrawn(asked.identity)
    if not yes and not confirm(
        f"sign for {asked.identity}? Whoever has this request's key gets this identity"
    ):
        raise Cancelled("not confirmed; nothing was signed", hint="the same command again")
    roots = keys.parse_certificates(read_small(folder / "roots.pem"), "roots.pem")
    path = out if out is not None else Path(f"{asked.identity.name}.pem")
    life = config.identity.life(asked.identity.kind)
    signed = keys.sign_request(authority, asked, roots, lifetime=life)
    leaf = keys.parse_certificates(signed, "what was signed")[0]
    note(
        config.paths.store,
        "certificate_issued",
        identity=asked.identity.uri,
        certificate=keys.fingerprint(leaf),
        until=leaf.not_valid_after_utc.isoformat(),
    )
    write_file(path, signed, overwrite=False)
    say(f"wrote {path}, the certificate of {asked.identity}")
    say_next(
        [(f"ddib pki install {shlex.quote(path.name)}", f"where the request was made; take {path} there")]
    )
    outcome(written=path, identity=asked.identity.uri, valid_until=leaf.not_valid_after_utc)


@pki.command(epilog="\b\nExample:\n  ddib pki install node-2.pem --config node.toml")
@options.CONFIG
@FOLDER
@options.OUTCOME
@click.argument("certificate", type=click.Path(dir_okay=False, path_type=Path))
def install(config_path: Path, folder: Path | None, certificate: Path) -> None:
    """Install a signed certificate after checking its key, name and root."""
    from ddib_fed.security import pki as keys
    from ddib_fed.security.audit import note
    from ddib_fed.security.peers import begin_trust

    place, owner = _place(config_path, folder)
    signed = read_small(certificate, pipe=True)
    if folder is None:
        if not (place / "leaf.pem").exists():  # a new node
            begin_trust(_config(config_path).paths.state)
        leaf = keys.parse_certificates(signed, "the signed certificate", hint="ddib pki issue writes one")[0]
        note(_config(config_path).paths.store, "certificate_given", certificate=keys.fingerprint(leaf))
    identity = keys.install(place, signed, expected=owner)
    say(f"installed the certificate of {identity} in {place}")
    outcome(installed=identity.uri, folder=place)


@pki.command()
@options.CONFIG
@FOLDER
@options.FORMAT
def show(config_path: Path, folder: Path | None, output_format: str) -> None:
    """Show the certificate's identity and expiry, the trusted roots of its institution, and who is withdrawn."""
    from datetime import UTC, datetime

    from ddib_fed.security import pki as keys

    place, _owner = _place(config_path, folder)
    withdrawn = {} if folder is not None else _store(config_path).snapshot().withdrawn
    own, issuer = keys.load_identity(place), keys.has_authority(place)
    roots = [
        {"fingerprint": keys.fingerprint(root), "valid_until": root.not_valid_after_utc} for root in own.roots
    ]
    shown = {
        "identity": own.identity.uri,
        "role": own.identity.kind,
        "dns_name": own.identity.dns_name,
        "valid_until": own.not_after,
        "expired": own.not_after <= datetime.now(UTC),
        "roots": roots,
        "issuer": issuer,
        "withdrawn": [{"identity": each.uri, "comment": comment} for each, comment in withdrawn.items()],
    }
    if output_format == "json":
        print_json(shown)
        return
    until = "%Y-%m-%d %H:%M UTC"
    say(
        f"identity     {own.identity.uri}",
        f"role         {own.identity.kind}",
        f"DNS name     {own.identity.dns_name}",
        f"valid until  {own.not_after:{until}}{'  EXPIRED' if shown['expired'] else ''}",
        *(f"root         {root['fingerprint']}  until {root['valid_until']:{until}}" for root in roots),
        f"issues       {'yes: the root key is in this folder' if issuer else 'no'}",
        *(f"withdrawn    {each.uri}  {comment}" for each, comment in withdrawn.items()),
    )


@pki.command(
    epilog="\b\nExample:\n  ddib pki withdraw spiffe://north.example/client/alice --comment 'laptop lost'"
)
@options.CONFIG
@options.FORMAT
@click.option("--comment", default="", metavar="TEXT", help="Reason, for the list; default: the date.")
@IDENTITY
def withdraw(config_path: Path, output_format: str, comment: str, identity: str) -> None:
    """Refuse a client or node of this institution although its certificate is valid, e.g. because its key was lost.

    The node refuses its next call and renewals, and issues it no certificate. Each node of the institution has its
    own list: run this on each.
    """
    from ddib_fed.node.admitting import peer_store
    from ddib_fed.security.audit import note

    config = _config(config_path)
    named = _of_institution(config, identity)
    changed = peer_store(config).withdraw(
        named,
        comment=comment,
        before=lambda: note(config.paths.store, "identity_withdrawn", identity=named.uri, comment=comment),
    )
    _report(config, named, output_format, changed=changed, withdrawn=True)


@pki.command(epilog="\b\nExample:\n  ddib pki reinstate spiffe://north.example/client/alice")
@options.CONFIG
@options.FORMAT
@IDENTITY
def reinstate(config_path: Path, output_format: str, identity: str) -> None:
    """Reinstate an identity that was withdrawn on this node."""
    from ddib_fed.node.admitting import peer_store
    from ddib_fed.security.audit import note

    config = _config(config_path)
    named = _of_institution(config, identity)
    changed = peer_store(config).reinstate(
        named,
        before=lambda: note(config.paths.store, "identity_reinstated", identity=named.uri),
    )
    _report(config, named, output_format, changed=changed, withdrawn=False)


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


def _report(
    config: NodeConfig, identity: Identity, output_format: str, *, changed: bool, withdrawn: bool
) -> None:
    """Make the node on this state read the list; say what was done, when it applies, and where else to run this."""
    from ddib_fed.node.admin import AdminClient
    from ddib_fed.security.peers import TRUST

    file, lines = config.paths.state / TRUST, AdminClient(config).reload_if_running()
    running = lines is not None
    if refused := [line for line in lines or () if line.startswith("not read:") and TRUST in line]:
        raise InputError(
            f"the list is written, and the running node does not obey it: {refused[0]}",
            hint="run this as the node's own user, and let the file belong to that user",
        )
    if output_format == "json":
        obeyed = "now" if running else "at start"
        print_json(
            {
                "identity": identity.uri,
                "withdrawn": withdrawn,
                "changed": changed,
                "file": str(file),
                "node_running": running,
                "obeyed": obeyed,
            }
        )
        return
    if not changed and not withdrawn:
        say(f"{identity} was not withdrawn, in {file}: nothing is changed")
        return
    done = "withdrawn" if withdrawn else "reinstated"
    say(f"{identity} is {done} in {file}" if changed else f"{identity} was {done} already, in {file}")
    if not running:
        say("no node runs on this state now; it obeys the list from its start")
    elif withdrawn:
        say("the running node refuses it from now on, renewals too; its open calls are ended")
    else:
        say("the running node lets it in again")
    say(f"do the same on each other node of {identity.institution}: each has a list of its own")
    if withdrawn and identity.kind == "node":
        say(f"and tell the peers that admitted it: ddib peer remove {identity.institution}, there")
