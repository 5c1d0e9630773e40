"""`ddib init node|client`: writes a configuration with its certificates, and prints the next commands."""

from __future__ import annotations

import getpass
import re
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ddib_fed.cli import options
from ddib_fed.cli.help import group, say_next, with_config
from ddib_fed.cli.output import outcome
from ddib_fed.client.profile import FOLDER, Profile, candidates
from ddib_fed.errors import AlreadyExists, InputError, UsageError
from ddib_fed.files import check_private_folder, write_file
from ddib_fed.names import NODE_FILE, is_institution, is_label
from ddib_fed.protocol.addresses import is_loopback, split_address
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig, Role
    from ddib_fed.security.identity import Identity


CLIENT_FILE: Final = "client.toml"
HELP: Final = "ddib init --help"
LISTEN: Final = "127.0.0.1:7443"


def addresses(listen: str | None, address: str | None, example: str) -> tuple[str, str]:
    """The bind address and the dial address of a node; each is derived from the other if it is missing."""
    from ddib_fed.protocol.addresses import is_every_address, is_loopback, split_address

    try:
        host, port = split_address(address or listen or LISTEN, bound=True)
        if address is None and is_every_address(host):
            raise UsageError(
                f"--listen {listen} is every address of this machine, and does not say what peers dial",
                hint=f"--address HOST:{port}, with a name or address that they reach, e.g. {example}:{port}",
            )
        dialled = address or (f"localhost:{port}" if is_loopback(host) else f"{listen}")
        bound = listen or (f"127.0.0.1:{port}" if is_loopback(host) else f"0.0.0.0:{port}")
        split_address(bound, bound=True)
    except ValueError as error:
        raise InputError(str(error), hint=HELP) from error
    if is_every_address(host) or not port:
        raise InputError(
            f"{dialled} is not an address that clients and peers can dial",
            hint=f"--address with a name and a port that they reach, e.g. {example}:7443",
        )
    return bound, dialled


def make_node(
    out: Path,
    *,
    institution: str,
    roles: tuple[Role, ...],
    name: str,
    listen: str,
    address: str,
    domain: str | None = None,
    model: str | None = None,
    classifier: str | None = None,
    with_ca: bool = True,
) -> NodeConfig:
    """Write node.toml and what it needs."""
    from ddib_fed.node.config import NodeConfig, render_node_toml
    from ddib_fed.security.identity import Identity
    from ddib_fed.security.peers import begin_node, begin_trust

    Identity(institution, "node", name)
    path = out / NODE_FILE
    _require_free(path, out / "state" / "pki" / "ca.key")
    hosted = HostedModel("", "model") if model is None else HostedModel.find(model, out)
    try:
        text = render_node_toml(
            institution=institution,
            name=name,
            roles=roles,
            domain=hosted.domain if domain is None else domain,
            listen=listen,
            address=address,
            bundle=hosted.place,
            classifier=None if classifier is None else HostedModel.find(classifier, out).place,
            bundle_domain=None if domain in {None, hosted.domain} else hosted.domain,
        )
    except ValueError as error:
        raise InputError(_first_line(error), hint=HELP) from error
    check_private_folder(out / "state")
    out.mkdir(parents=True, exist_ok=True)
    # The configuration is written last, so that the command can be repeated after a failure.
    hosted.copy_to(out)
    if with_ca:
        begin_node(out / "state", institution, name)
    else:
        begin_trust(out / "state")
    write_file(path, text.encode(), overwrite=False)
    return NodeConfig.load(path)


@dataclass(frozen=True, slots=True)
class HostedModel:
    """The model of a new node."""

    domain: str
    place: str
    shipped: str | None = None

    @classmethod
    def find(cls, which: str, out: Path) -> HostedModel:
        """A shipped model, or the one in a folder, for the node in `out`."""
        from ddib_fed.models.bundle import open_bundle, shipped_name

        domain, shipped = open_bundle(which).manifest.domain, shipped_name(which)
        if shipped is not None:
            return cls(domain, "model", shipped)
        folder, here = Path(which).resolve(), out.resolve()
        return cls(domain, str(folder.relative_to(here) if folder.is_relative_to(here) else folder))

    def copy_to(self, out: Path) -> None:
        """Copy a shipped model, so that the node's model does not change with the package version."""
        if self.shipped is None:
            return
        from ddib_fed.models.bundle import load_bundle, pretrained
        from ddib_fed.models.catalogue import copy_shipped

        path = out / self.place
        if not path.exists():
            copy_shipped(self.shipped, path)
        elif load_bundle(path).digest != pretrained(self.shipped).digest:
            raise AlreadyExists(
                f"{path} holds another model",
                hint=f"--model {shlex.quote(str(path))}, or another --out folder",
            )


@dataclass(frozen=True, slots=True)
class SourceNode:
    """The client's node; if it issues, the folder from which, and how long clients' certificates live."""

    identity: Identity
    address: str
    issuer: Path | None
    life: timedelta | None = None
    config: NodeConfig | None = None

    @classmethod
    def of(cls, path: Path, address: str | None = None) -> SourceNode:
        """The node of a node.toml, at its own address or the given one."""
        from ddib_fed.node.config import NodeConfig
        from ddib_fed.security import pki
        from ddib_fed.security.identity import Identity

        config = NodeConfig.load(path)
        if "source" not in config.node.roles:
            raise InputError(f"{path} is no source node, and clients talk to source nodes only", hint=HELP)
        identity = Identity(config.node.institution, "node", config.node.name)
        issuer = config.paths.pki if pki.has_authority(config.paths.pki) else None
        life = config.identity.life("client")
        return cls(identity, address or config.node.address, issuer, life, config)

    def note_issue(self, identity: Identity) -> None:
        """Refuse an identity that is withdrawn; write to the node's audit log, before the certificate is made."""
        from ddib_fed.node.admitting import peer_store
        from ddib_fed.security.audit import note

        if self.config is not None:
            peer_store(self.config).snapshot().refuse_withdrawn(identity)
            note(self.config.paths.store, "certificate_issued", identity=identity.uri)


def make_client(source: SourceNode, out: Path, *, name: str) -> Path:
    """Write client.toml with the client's key and its certificate, or a request for one; the profile's path."""
    from ddib_fed.client.profile import render_client_toml
    from ddib_fed.security import pki
    from ddib_fed.security.identity import Identity

    identity = Identity(source.identity.institution, "client", name)
    path, request = out / CLIENT_FILE, out / f"{name}.csr"
    _require_free(path, request, out / "pki" / "leaf.key")
    try:
        text = render_client_toml(
            institution=identity.institution,
            name=name,
            source_address=source.address,
            source_identity=source.identity.dns_name,
            pki="pki",
        )
    except ValueError as error:
        raise InputError(_first_line(error), hint=HELP) from error
    out.mkdir(parents=True, exist_ok=True)
    if source.issuer is not None:
        pki.issue_client(source.issuer, out / "pki", name, lifetime=source.life, before=source.note_issue)
    else:
        request.write_bytes(pki.make_request(out / "pki", identity))
    write_file(path, text.encode(), overwrite=False)
    return path


def _require_free(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise AlreadyExists(f"{path} exists and is not overwritten", hint="another --out folder")


def _first_line(error: ValueError) -> str:
    problems = getattr(error, "errors", None)
    if problems is None:
        return str(error)
    first = problems()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"


_PRIVATE = "internal"
"""Top-level domain for private use, which is never delegated."""
_NOBODY = "client-1"

ROLES: Mapping[str, tuple[Role, ...]] = {
    "source": ("source",),
    "target": ("target",),
    "both": ("source", "target"),
}


@group()
def init() -> None:
    """Write a node's configuration or a client's profile.

    It also makes the certificates. Existing files are not overwritten.
    """


@init.command(
    epilog="\b\nExamples:\n"
    "  ddib init node --role source --model satellite\n"
    "  ddib init node --role source --model satellite --institution east.example --address east.example:7443"
)
@click.option(
    "--institution",
    metavar="NAME",
    help="DNS name of the institution, in lower case. Default: the host of --address, else this machine's domain.",
)
@click.option("--role", type=click.Choice(list(ROLES)), required=True, help="What the node does.")
@click.option(
    "--model",
    metavar="NAME|DIR",
    help="The model that it hosts: a shipped one (satellite, relief, moons, ...), which is copied, or a folder. "
    "Without it the model is trained later.",
)
@click.option(
    "--classifier",
    metavar="DIR",
    help="Folder of a classifier that guides decoding on request (--classifier-scale).",
)
@click.option("--domain", metavar="NAME", help="The domain's name for peers; default: the model's own.")
@click.option("--name", default="node-1", show_default=True, help="The node's name inside the institution.")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    help="Address to bind. Default: the port of --address on every interface, or on loopback only if that is localhost "
    "or not given (127.0.0.1:7443).",
)
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="Address that clients and peers dial. Default: that of --listen, with localhost if it is loopback. "
    "Required if --listen is 0.0.0.0 or [::].",
)
@click.option(
    "--client",
    "person",
    metavar="NAME",
    help="Name of the first client of a source node, and its folder in --out. Default: your own name, in the folder "
    "client, where `ddib translate` finds it.",
)
@click.option("--no-client", is_flag=True, help="Make no client.")
@click.option(
    "--no-ca",
    is_flag=True,
    help="Another node of the institution issues certificates: write only the configuration.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Folder for node.toml and its state; default: the current one.",
)
@options.OUTCOME
def node(
    institution: str | None,
    role: str,
    model: str | None,
    classifier: str | None,
    domain: str | None,
    name: str,
    listen: str | None,
    address: str | None,
    person: str | None,
    no_client: bool,
    no_ca: bool,
    out: Path,
) -> None:
    """Make a node: a commented node.toml, the institution's CA, the node's certificate, its peer file, a client.

    --role and --model suffice for a first try on this machine. A node that others reach needs --address. The name of
    the institution is in every certificate: choose it before others admit the node.
    """
    if domain is None and model is None:
        raise UsageError("give --model, or --domain of a model that is trained later", hint=HELP)
    serves_clients = role != "target" and not no_ca
    if person is not None and (no_client or not serves_clients):
        raise UsageError("--client is for a source node that issues certificates", hint="ddib init client")
    if institution is None:
        institution, whence = institution_here(address, name)
        say(f"institution  {institution}, {whence}; --institution NAME names another")
    folder = None if no_client or not serves_clients else out / (person or FOLDER)
    bound, dialled = addresses(listen, address, f"{name}.{institution}")
    config = make_node(
        out,
        institution=institution,
        roles=ROLES[role],
        domain=domain,
        model=model,
        classifier=classifier,
        name=name,
        listen=bound,
        address=dialled,
        with_ca=not no_ca,
    )
    path = out / NODE_FILE
    say(
        f"wrote        {path}: listens on {bound}, is dialled at {dialled}",
        f"keys         {config.paths.pki}",
    )
    profile = None
    if folder is not None:
        profile = make_client(SourceNode.of(path), folder, name=person or person_here())
        say(f"client       {profile}: {Profile.load(profile).name}")
    if not no_ca:
        _write_peer_file(config, out / f"{institution}.peer")
    steps = _node_steps(path, config, with_ca=not no_ca, trained=model is not None, profile=profile)
    say_next(steps)
    outcome(
        config=path, listen=bound, address=dialled, pki=config.paths.pki, next=[step for step, _ in steps]
    )


def _write_peer_file(config: NodeConfig, path: Path) -> None:
    from ddib_fed.node.admitting import export_peer

    own = export_peer(config, path)
    say(f"peer file    {path}", *(f"fingerprint  {one}" for one in own.fingerprints))


def _node_steps(
    path: Path, config: NodeConfig, *, with_ca: bool, trained: bool, profile: Path | None
) -> list[tuple[str, str]]:
    """What to type next; without --config where the file is found anyway."""
    more = with_config(path)
    steps = [
        (f"{config.command} serve{more} --pair", "serve, once the other side has come with the code"),
        (f"{config.command} serve{more} --pair-with HOST:PORT CODE", "or be the one who comes"),
        (f"{config.command} serve{more} --peer OTHER.peer", "or with its peer file, and fingerprints"),
    ]
    if not trained:
        steps.insert(0, (f"{config.command} train{more}", "train the model"))
    if not with_ca:
        steps.insert(0, (f"ddib pki request{more}", "a request for the node that issues"))
    if profile is not None:
        found = profile in candidates({"HOME": ""})
        which = "" if found else f" --profile {shlex.quote(str(profile))}"
        steps.append((f"ddib domains{which}", "see what can be translated to"))
    if "source" in config.node.roles:
        steps.append(
            (
                f"ddib init client --node-config {shlex.quote(str(path))} --name NAME --out NAME",
                "a profile for a person",
            )
        )
    return steps


@init.command(
    epilog="\b\nExamples:\n"
    "  ddib init client --node-config north/node.toml --name alice --out alice\n"
    "  ddib init client --institution north.example --address north.example:7443 --name bob --out bob"
)
@click.option(
    "--node-config",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="node.toml of the institution's source node, if it is on this machine.",
)
@click.option("--institution", metavar="NAME", help="Without --node-config: the institution.")
@click.option(
    "--node", "node_name", metavar="NAME", help="Without --node-config: the source node's name, else node-1."
)
@click.option(
    "--address", metavar="HOST:PORT", help="Address at which this client reaches the node, if it differs."
)
@click.option("--name", required=True, help="The client's name inside the institution, one DNS label.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder for client.toml, the client's key and its certificate.",
)
@options.OUTCOME
def client(
    node_config: Path | None,
    institution: str | None,
    node_name: str | None,
    address: str | None,
    name: str,
    out: Path,
) -> None:
    """Write a commented client.toml, and make the client's key and certificate.

    If the institution's CA is on this machine, the certificate is issued at once. Otherwise the key is made here,
    a request for the certificate is written beside it, and the next commands are printed.
    """
    source = _source_node(node_config, institution, node_name, address)
    path = make_client(source, out, name=name)
    say(f"{path} is written; the key is in {out / 'pki'}")
    which = shlex.quote(str(path))
    steps = [
        (f"ddib doctor --profile {which}", "check the way to the node"),
        (f"ddib domains --profile {which}", "see what can be translated to"),
    ]
    if source.issuer is None:
        asked, folder = out / f"{name}.csr", shlex.quote(str(out / "pki"))
        steps.insert(0, (f"ddib pki issue {asked.name}", f"at the node that issues; take {asked} there"))
        steps.insert(1, (f"ddib pki install {name}.pem --folder {folder}", "here, with what it wrote"))
    say_next(steps)
    outcome(profile=path, pki=out / "pki", next=[step for step, _ in steps])


def _source_node(
    node_config: Path | None, institution: str | None, name: str | None, address: str | None
) -> SourceNode:
    """From a node.toml, or from what was typed."""
    from ddib_fed.security.identity import Identity

    if node_config is not None:
        if institution is not None or name is not None:
            raise UsageError("--node-config says already which institution and node it is", hint=HELP)
        return SourceNode.of(node_config, address)
    if institution is None or address is None:
        raise UsageError("give --node-config FILE, or --institution NAME and --address HOST:PORT", hint=HELP)
    return SourceNode(Identity(institution, "node", name or "node-1"), address, None)


def institution_here(address: str | None, node_name: str) -> tuple[str, str]:
    """A name for the institution, and where it comes from."""
    if address is not None and (named := _of_host(address, node_name)):
        return named, "the host of --address"
    host = re.sub(r"[^a-z0-9.-]", "-", socket.gethostname().lower()).strip("-.")
    domain = host.partition(".")[2]
    for found in (domain, host):
        if is_institution(found) and not host.startswith("localhost"):
            return found, "from this machine's name"
    label = host.partition(".")[0]
    return f"{label if is_label(label) else 'node'}.{_PRIVATE}", "from this machine's name"


def _of_host(address: str, node_name: str) -> str:
    try:
        host = split_address(address, bound=True)[0].lower().rstrip(".")
    except ValueError:
        return ""  # the address itself is refused later
    host = host.removeprefix(f"{node_name}.")
    return host if is_institution(host) and not is_loopback(host) else ""


def person_here() -> str:
    """The name of whoever types, as one DNS label."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        return _NOBODY
    label = re.sub(r"[^a-z0-9-]", "-", name.lower())[:63].strip("-")
    return label if is_label(label) else _NOBODY
