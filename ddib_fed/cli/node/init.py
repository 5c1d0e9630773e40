"""`ddib init node|client`: writes a configuration with its certificates, and prints the next commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.errors import AlreadyExists, InputError, UsageError
from ddib_fed.terminal import say

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig, Role
    from ddib_fed.trust.identity import Identity

NODE_FILE = "node.toml"
CLIENT_FILE = "client.toml"
HELP = "ddib init --help"
ROLES: Mapping[str, tuple[Role, ...]] = {
    "source": ("source",),
    "target": ("target",),
    "both": ("source", "target"),
}


@click.group()
def init() -> None:
    """Write a node's configuration or a client's profile.

    With the certificates that it needs. Nothing that exists is overwritten.
    """


@init.command(
    epilog="\b\nExample:\n  ddib init node --institution north.example --role source --domain moons --out north"
)
@click.option(
    "--institution", required=True, metavar="NAME", help="DNS name of the institution, in lower case."
)
@click.option("--role", type=click.Choice(list(ROLES)), required=True, help="What the node does.")
@click.option(
    "--domain",
    required=True,
    metavar="NAME",
    help="Name of the domain whose model it hosts; a built-in one (moons, checkerboards, ...) or your own.",
)
@click.option("--name", default="node-1", show_default=True, help="The node's name inside the institution.")
@click.option(
    "--listen", default="127.0.0.1:7443", show_default=True, metavar="HOST:PORT", help="What to bind."
)
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="What clients and peers dial; without it what --listen says, and localhost where that is this machine alone. "
    "Needed where --listen is 0.0.0.0 or [::].",
)
@click.option(
    "--no-ca",
    is_flag=True,
    help="Another node of the institution issues certificates: write the configuration only.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    metavar="DIR",
    help="Folder for node.toml and its state; without it the current one.",
)
def node(
    institution: str,
    role: str,
    domain: str,
    name: str,
    listen: str,
    address: str | None,
    no_ca: bool,
    out: Path,
) -> None:
    """Write a commented node.toml, and make the institution's CA and the node's certificate."""
    config = make_node(
        out,
        institution=institution,
        roles=ROLES[role],
        domain=domain,
        name=name,
        listen=listen,
        address=_address(listen, address, f"{name}.{institution}"),
        with_ca=not no_ca,
    )
    say(f"{out / NODE_FILE} is written; keys and certificates are in {config.paths.pki}")
    _next(_node_steps(out / NODE_FILE, config, with_ca=not no_ca))


def _address(listen: str, address: str | None, example: str) -> str:
    """What clients and peers dial.

    Raises:
        UsageError: It was not given, and --listen does not tell it.
        InputError: Nobody could dial it.
    """
    from ddib_fed.rpc.addresses import is_every_address, is_loopback, split_address

    try:
        host, port = split_address(listen, bound=True)
        if address is None and is_every_address(host):
            raise UsageError(
                f"--listen {listen} is every address of this machine, and does not say what peers dial",
                hint=f"--address HOST:{port}, with a name or address that they reach, e.g. {example}:{port}",
            )
        dialled = address or (f"localhost:{port}" if is_loopback(host) else listen)
        host, port = split_address(dialled, bound=True)
    except ValueError as error:
        raise InputError(str(error), hint=HELP) from error
    if is_every_address(host) or not port:
        raise InputError(
            f"{dialled} is nothing that clients and peers could dial",
            hint=f"--address with a name and a port that they reach, e.g. {example}:7443",
        )
    return dialled


def make_node(
    out: Path,
    *,
    institution: str,
    roles: tuple[Role, ...],
    domain: str,
    name: str,
    listen: str,
    address: str,
    with_ca: bool = True,
) -> NodeConfig:
    """What `ddib init node` does.

    Raises:
        AlreadyExists: There is a node.toml, or a root, already.
        InputError: A value cannot be used.
    """
    from ddib_fed.files import check_private_folder
    from ddib_fed.node.config import NodeConfig, render_node_toml
    from ddib_fed.trust import pki
    from ddib_fed.trust.identity import Identity

    Identity(institution, "node", name)
    path = out / NODE_FILE
    _require_free(path)
    try:
        text = render_node_toml(
            institution=institution, name=name, roles=roles, domain=domain, listen=listen, address=address
        )
    except ValueError as error:
        raise InputError(_first_line(error), hint=HELP) from error
    _require_free(out / "state" / "pki" / "ca.key")
    check_private_folder(out / "state")
    out.mkdir(parents=True, exist_ok=True)
    if with_ca:  # before the configuration: whatever goes wrong, the same command can be given again
        pki.init_node_identity(out / "state" / "pki", institution, name)
    _write_new(path, text)
    return NodeConfig.load(path)


def _node_steps(path: Path, config: NodeConfig, *, with_ca: bool) -> list[tuple[str, str]]:
    command = (
        f"ddib-{config.node.roles[0]}-node" if len(config.node.roles) == 1 else "python -m ddib_fed.node"
    )
    steps = [
        (
            f"ddib peer export --config {path} --out {config.node.institution}.peer",
            "the file for the other side",
        ),
        (f"ddib peer add OTHER.peer --config {path}", "admit the other side"),
        (f"{command} train --config {path}", "train the model"),
        (f"{command} serve --config {path}", "serve it"),
    ]
    if not with_ca:
        steps.insert(0, (f"ddib pki request --config {path}", "a request for the node that issues"))
    if "source" in config.node.roles:
        steps.append(
            (f"ddib init client --node-config {path} --name alice --out alice", "a profile for a person")
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
    help="node.toml of the institution's source node, where that is on this machine.",
)
@click.option("--institution", metavar="NAME", help="Without --node-config: the institution.")
@click.option(
    "--node", "node_name", metavar="NAME", help="Without --node-config: the source node's name, else node-1."
)
@click.option("--address", metavar="HOST:PORT", help="Where this client reaches the node, when that differs.")
@click.option("--name", required=True, help="The client's name inside the institution, one DNS label.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder for client.toml, the client's key and its certificate.",
)
def client(
    node_config: Path | None,
    institution: str | None,
    node_name: str | None,
    address: str | None,
    name: str,
    out: Path,
) -> None:
    """Write a commented client.toml, and make the client's key and certificate.

    Where the institution's CA is on this machine the certificate is issued at once. Elsewhere the key is made here,
    a request for the certificate is written beside it, and the next commands are printed.
    """
    source = _source_node(node_config, institution, node_name, address)
    path = make_client(source, out, name=name)
    say(f"{path} is written; the key is in {out / 'pki'}")
    steps = [
        (f"ddib doctor --profile {path}", "check the way to the node"),
        (f"ddib domains --profile {path}", "see what can be translated to"),
    ]
    if source.issuer is None:
        asked = out / f"{name}.csr"
        steps.insert(0, (f"ddib pki issue {asked.name}", f"at the node that issues; take {asked} there"))
        steps.insert(1, (f"ddib pki install {name}.pem --folder {out / 'pki'}", "here, with what it wrote"))
    _next(steps)


@dataclass(frozen=True, slots=True)
class SourceNode:
    """The node that a client will talk to, and the folder that issues for it if that is on this machine."""

    identity: Identity
    address: str
    issuer: Path | None


def _source_node(
    node_config: Path | None, institution: str | None, name: str | None, address: str | None
) -> SourceNode:
    """From a node.toml, or from what was typed.

    Raises:
        UsageError: Neither, or both.
        InputError: The node is no source node, or a name cannot be used.
    """
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.trust import pki
    from ddib_fed.trust.identity import Identity

    if node_config is None:
        if institution is None or address is None:
            raise UsageError(
                "give --node-config FILE, or --institution NAME and --address HOST:PORT", hint=HELP
            )
        return SourceNode(Identity(institution, "node", name or "node-1"), address, None)
    if institution is not None or name is not None:
        raise UsageError("--node-config says already which institution and node it is", hint=HELP)
    config = NodeConfig.load(node_config)
    if "source" not in config.node.roles:
        raise InputError(f"{node_config} is no source node, and clients talk to source nodes only", hint=HELP)
    identity = Identity(config.node.institution, "node", config.node.name)
    issuer = config.paths.pki if pki.has_authority(config.paths.pki) else None
    return SourceNode(identity, address or config.node.address, issuer)


def make_client(source: SourceNode, out: Path, *, name: str) -> Path:
    """What `ddib init client` does; the profile's path.

    Raises:
        AlreadyExists: There is a profile, a request or an identity already.
        InputError: A value cannot be used.
    """
    from ddib_fed.client.profile import render_client_toml
    from ddib_fed.trust import enrolment, pki
    from ddib_fed.trust.identity import Identity

    identity = Identity(source.identity.institution, "client", name)
    path, request = out / CLIENT_FILE, out / f"{name}.csr"
    for place in (path, request, out / "pki" / "leaf.key"):
        _require_free(place)
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
        pki.issue_client(source.issuer, out / "pki", name)
    else:
        request.write_bytes(enrolment.make_request(out / "pki", identity))
    _write_new(path, text)
    return path


def _require_free(path: Path) -> None:
    if path.exists():
        raise AlreadyExists(f"{path} exists and is not overwritten", hint="another --out folder")


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise AlreadyExists(f"{path} exists and is not overwritten", hint="another --out folder") from error


def _first_line(error: ValueError) -> str:
    """The first thing that pydantic complains of, without its web address."""
    problems = getattr(error, "errors", None)
    if problems is None:
        return str(error)
    first = problems()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"


def _next(steps: Sequence[tuple[str, str]]) -> None:
    """Print the next commands."""
    width = max(len(command) for command, _ in steps)
    say("next:")
    for command, why in steps:
        say(f"  {command.ljust(width)}   # {why}")
