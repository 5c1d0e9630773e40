"""`ddib init node|client`: writes a configuration with its certificates, and prints the next commands."""

from __future__ import annotations

import getpass
import re
import shlex
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

import ddib_fed
from ddib_fed.cli import options
from ddib_fed.cli.options import group, open_config, option, say_next, with_config
from ddib_fed.client.profile import FOLDER, USUAL_NODE, candidates
from ddib_fed.errors import AlreadyExists, InputError, UsageError
from ddib_fed.files import check_private_folder, problem_text, write_file
from ddib_fed.names import NODE_FILE, is_institution, is_label
from ddib_fed.protocol.addresses import is_every_address, is_loopback, split_address
from ddib_fed.security import pki
from ddib_fed.security.audit import note
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import begin_node, begin_trust
from ddib_fed.terminal import outcome, say

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig, Role

HELP: Final = "ddib init --help"
LISTEN: Final = "127.0.0.1:7443"
ROLES: dict[str, tuple[Role, ...]] = {
    "source": ("source",),
    "target": ("target",),
    "both": ("source", "target"),
}


def addresses(listen: str | None, address: str | None, example: str) -> tuple[str, str]:
    """The bind address and the dial address of a node; each is derived from the other if it is missing."""
    try:
        host, port = split_address(address or listen or LISTEN, bound=True)
        local = is_loopback(host)
        dialled = address or (f"localhost:{port}" if local else f"{listen}")
        bound = listen or (f"127.0.0.1:{port}" if local else f"0.0.0.0:{port}")
        split_address(bound, bound=True)
    except ValueError as error:
        raise InputError(str(error), hint=HELP) from error
    if is_every_address(host) or not port:
        raise InputError(
            f"{dialled} is not an address that clients and peers can dial",
            hint=f"--address HOST:{port or 7443}, with a name or address that they reach, e.g. {example}:7443",
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
    """Write node.toml and what it needs; a shipped model is copied, so that it does not change with the package."""
    from ddib_fed.node.config import ModelSection, NodeConfig, NodeSection, render_node_toml

    Identity(institution, "node", name)
    path = out / NODE_FILE
    _require_free(path, out / "state" / "pki" / "ca.key")
    own = shipped = None
    if model is not None:
        from ddib_fed.models.bundle import open_bundle, shipped_name

        own, shipped = open_bundle(model).manifest.domain, shipped_name(model)
    try:
        node = NodeSection(institution=institution, name=name, roles=roles, listen=listen, address=address)
        hosted = ModelSection(
            domain=own or "" if domain is None else domain,
            bundle="model" if model is None or shipped else _place(model, out),
            classifier=None if classifier is None else _place(classifier, out),
            bundle_domain=None if domain in {None, own} else own,
        )
        text = render_node_toml(node, hosted)
    except ValidationError as error:
        raise _refused(error) from error
    check_private_folder(out / "state")
    out.mkdir(parents=True, exist_ok=True)
    # The configuration is written last, so that the command can be repeated after a failure.
    if shipped is not None:
        _copy_model(shipped, out / "model")
    if with_ca:
        begin_node(out / "state", institution, name)
    else:
        begin_trust(out / "state")
    write_file(path, text.encode(), overwrite=False)
    return NodeConfig.load(path)


def _copy_model(shipped: str, path: Path) -> None:
    from ddib_fed.models.bundle import load_bundle, pretrained
    from ddib_fed.models.catalogue import copy_shipped

    if not path.exists():
        copy_shipped(shipped, path)
    elif load_bundle(path).digest != pretrained(shipped).digest:
        hint = f"--model {shlex.quote(str(path))}, or another --out folder"
        raise AlreadyExists(f"{path} holds another model", hint=hint)


def _place(model: str, out: Path) -> str:
    """How node.toml in `out` names the folder of a model."""
    folder, here = Path(model).resolve(), out.resolve()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def _require_free(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise AlreadyExists(f"{path} exists and is not overwritten", hint="another --out folder")


def _refused(error: ValidationError) -> InputError:
    return InputError(problem_text(error), hint=HELP)


def make_client(
    out: Path,
    *,
    name: str,
    config: NodeConfig | None = None,
    institution: str = "",
    address: str | None = None,
) -> Path:
    """Write client.toml with the client's key and its certificate, or a request for one; the profile's path.

    Its node is that of `config`, which issues the certificate if it can, or the institution's first node.
    """
    from ddib_fed.node.admitting import peer_store

    node = USUAL_NODE
    if config is not None:
        if "source" not in config.node.roles:
            why = f"{config.path} is no source node, and clients talk to source nodes only"
            raise InputError(why, hint=HELP)
        institution, node = config.node.institution, config.node.name
        address = address or config.node.address
    issue = None
    if config is not None and pki.has_authority(config.paths.pki):
        folder, store, life = config.paths.pki, config.paths.store, config.identity.life("client")
        peers, identity = peer_store(config), Identity(institution, "client", name)

        def issue(to: Path) -> None:
            peers.snapshot().refuse_withdrawn(identity)
            pki.load_authority(folder).check(datetime.now(UTC))  # what cannot be issued is not noted
            note(store, "certificate_issued", identity=identity.uri)
            pki.issue_client(folder, to, name, lifetime=life)

    try:
        return ddib_fed.Profile.create(
            out, name=name, institution=institution, address=address or "", node=node, issue=issue
        )
    except ValidationError as error:
        raise _refused(error) from error


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
@option(
    "--institution NAME",
    "DNS name of the institution, in lower case. Default: the host of --address, else this machine's under .internal.",
)
@option("--role", "What the node does.", tuple(ROLES), required=True)
@option(
    "--model NAME|DIR",
    "The model that it hosts: a shipped one (satellite, relief, moons, ...), which is copied, or a folder. Without it "
    "the model is trained later.",
    str,
)
@option("--classifier DIR", "Folder of a classifier that guides decoding (classifier-scale).", str)
@option("--domain NAME", "The domain's name for peers; default: the model's own.")
@option("--name NAME", "The node's name inside the institution.", default=USUAL_NODE)
@option(
    "--listen HOST:PORT",
    "Address to bind. Default: the port of --address on every interface, or on loopback only if that is localhost or "
    "not given (127.0.0.1:7443).",
)
@option(
    "--address HOST:PORT",
    "Address that clients and peers dial. Default: that of --listen, with localhost if it is loopback. Required if "
    "--listen is 0.0.0.0 or [::].",
)
@option("--no-ca", "Another node of the institution issues certificates: write only the configuration.")
@option("--out DIR", "Folder for node.toml and its state; default: the current one.", default=Path())
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
    no_ca: bool,
    out: Path,
) -> None:
    """Make a node: a commented node.toml, the institution's CA, the node's certificate, its peer file, a client.

    --role and --model suffice for a first try on this machine. A node that others reach needs --address. The name of
    the institution is in every certificate: choose it before others admit the node. The client of a source node is
    yours, in the folder client, where `ddib translate` finds it.
    """
    from ddib_fed.node.admitting import export_peer

    if domain is None and model is None:
        raise UsageError("give --model, or --domain of a model that is trained later", hint=HELP)
    if institution is None:
        institution, whence = institution_here(address, name)
        say(f"institution  {institution}, {whence}; --institution NAME names another")
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
    more = with_config(path)
    serve = f"{config.command} serve{more}"
    say(
        f"wrote        {path}: listens on {bound}, is dialled at {dialled}",
        f"keys         {config.paths.pki}",
    )
    steps = []
    if no_ca:
        steps.append((f"ddib pki request{more}", "a request for the node that issues"))
    if model is None:
        steps.append((f"{config.command} train{more}", "train the model"))
    steps += [
        (f"{serve} --pair", "serve, once the other side has come with the code"),
        (f"{serve} --pair-with HOST:PORT CODE", "or be the one who comes"),
        (f"ddib peer add OTHER.peer{more}", "or with its peer file, and fingerprints"),
    ]
    if role != "target":
        if not no_ca:
            person = person_here()
            profile = make_client(out / FOLDER, name=person, config=config)
            say(f"client       {profile}: {person}")
            found = profile in candidates({"HOME": ""})
            which = "" if found else f" --profile {shlex.quote(str(profile))}"
            steps.append((f"ddib domains{which}", "see what can be translated to"))
        another = f"ddib init client --config {shlex.quote(str(path))} --name NAME --out NAME"
        steps.append((another, "a profile for a person"))
    if not no_ca:
        file = out / f"{institution}.peer"
        prints = export_peer(config, file).fingerprints
        say(f"peer file    {file}", *(f"fingerprint  {one}" for one in prints))
    say_next(steps)
    outcome(
        config=path, listen=bound, address=dialled, pki=config.paths.pki, next=[step for step, _ in steps]
    )


@init.command(
    epilog="\b\nExamples:\n"
    "  ddib init client --config north/node.toml --name alice --out alice\n"
    "  ddib init client --institution north.example --address north.example:7443 --name bob --out bob"
)
@option("config_path --config FILE", "node.toml of the institution's source node, if it is on this machine.")
@option(
    "--institution NAME",
    f"Without --config: the institution. Its node is taken to be {USUAL_NODE}; client.toml can say another.",
)
@option("--address HOST:PORT", "Address at which this client reaches the node, if it differs.")
@option("--name NAME", "The client's name inside the institution, one DNS label.", required=True)
@option("--out DIR", "Folder for client.toml, the client's key and its certificate.", required=True)
@options.OUTCOME
def client(
    config_path: Path | None, institution: str | None, address: str | None, name: str, out: Path
) -> None:
    """Write a commented client.toml, and make the client's key and certificate.

    If the institution's CA is on this machine, the certificate is issued at once. Otherwise the key is made here,
    a request for the certificate is written beside it, and the next commands are printed.
    """
    config = None
    if config_path is not None:
        options.refuse_idle(("institution",), "is in --config already", hint=HELP)
        config = open_config(config_path)
    elif institution is None or address is None:
        raise UsageError("give --config FILE, or --institution NAME and --address HOST:PORT", hint=HELP)
    path = make_client(out, name=name, config=config, institution=institution or "", address=address)
    say(f"{path} is written; the key is in {out / 'pki'}")
    which, asked = shlex.quote(str(path)), out / f"{name}.csr"
    steps = []
    if asked.exists():
        steps += [
            (f"ddib pki issue {asked.name}", f"at the node that issues; take {asked} there"),
            (f"ddib pki install {name}.pem --profile {which}", "here, with what it wrote"),
        ]
    steps += [
        (f"ddib doctor --profile {which}", "check the way to the node"),
        (f"ddib domains --profile {which}", "see what can be translated to"),
    ]
    say_next(steps)
    outcome(profile=path, pki=out / "pki", next=[step for step, _ in steps])


def institution_here(address: str | None, node_name: str) -> tuple[str, str]:
    """A name for the institution, and where it comes from: the host of an address, or this machine's name."""
    try:
        dialled = "" if address is None else split_address(address, bound=True)[0].lower()
    except ValueError:
        dialled = ""  # the address itself is refused later
    dialled = dialled.removeprefix(f"{node_name}.")
    if is_institution(dialled) and not is_loopback(dialled):
        return dialled, "the host of --address"
    # A top-level domain for private use, which is never delegated.
    return f"{_label(socket.gethostname().partition('.')[0], 'node')}.internal", "from this machine's name"


def person_here() -> str:
    """The name of whoever types, as one DNS label."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):
        name = ""
    return _label(name, "client-1")


def _label(text: str, otherwise: str) -> str:
    label = re.sub(r"[^a-z0-9-]", "-", text.lower())[:63].strip("-")
    return label if is_label(label) else otherwise
