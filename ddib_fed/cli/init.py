"""`ddib init node|client`: from nothing to a configuration with its certificates, and the next commands to type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ddib_fed.errors import AlreadyExists, FileMissing, InputError

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig, Role

NODE_FILE = "node.toml"
CLIENT_FILE = "client.toml"
ROLES: Mapping[str, tuple[Role, ...]] = {
    "source": ("source",),
    "target": ("target",),
    "both": ("source", "target"),
}


@click.group()
def init() -> None:
    """Write a node's configuration or a client's profile, with the certificates it needs.

    Nothing that exists is overwritten.
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
    help="What clients and peers dial; without it localhost and the port of --listen.",
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
        address=address or f"localhost:{listen.rpartition(':')[2]}",
        with_ca=not no_ca,
    )
    click.echo(f"{out / NODE_FILE} is written; keys and certificates are in {config.paths.pki}")
    _next(_node_steps(out / NODE_FILE, config, with_ca=not no_ca))


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
    from ddib_fed.node import pki
    from ddib_fed.node.config import NodeConfig, render_node_toml
    from ddib_fed.node.identity import Identity

    Identity(institution, "node", name)
    path = out / NODE_FILE
    _require_free(path)
    try:
        text = render_node_toml(
            institution=institution, name=name, roles=roles, domain=domain, listen=listen, address=address
        )
    except ValueError as error:
        raise InputError(_first_line(error)) from error
    _require_free(out / "state" / "pki" / "ca.key")
    out.mkdir(parents=True, exist_ok=True)
    _write_new(path, text)
    config = NodeConfig.load(path)
    if with_ca:
        pki.init_node_identity(config.paths.pki, institution, name)
    return config


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
    epilog="\b\nExample:\n  ddib init client --node-config north/node.toml --name alice --out alice"
)
@click.option(
    "--node-config",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    metavar="FILE",
    help="node.toml of the institution's source node.",
)
@click.option("--name", required=True, help="The client's name inside the institution, one DNS label.")
@click.option(
    "--address",
    metavar="HOST:PORT",
    help="Where this client reaches the node, when that differs from the node's own address.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder for client.toml and the client's key; take it to the person's machine.",
)
def client(node_config: Path, name: str, address: str | None, out: Path) -> None:
    """Write a commented client.toml, with a certificate from the institution's CA on this machine.

    Where the CA is on another machine a request is written instead, and the next command is printed.
    """
    profile, issued = make_client(node_config, out, name=name, address=address)
    click.echo(f"{profile} is written; the key and its certificate are in {out / 'pki'}")
    if issued:
        _next(
            [
                (f"ddib doctor --profile {profile}", "check the way to the node"),
                (f"ddib domains --profile {profile}", "see what can be translated to"),
            ]
        )


def make_client(node_config: Path, out: Path, *, name: str, address: str | None = None) -> tuple[Path, bool]:
    """What `ddib init client` does: the profile's path, and whether its certificate was issued.

    Raises:
        AlreadyExists: There is a profile or an identity already.
        FileMissing: There is no node.toml, or the CA is not on this machine.
        InputError: A value cannot be used.
    """
    from ddib_fed.node import pki
    from ddib_fed.node.config import NodeConfig
    from ddib_fed.node.identity import Identity
    from ddib_fed.node.profile import render_client_toml

    config = NodeConfig.load(node_config)
    identity = Identity(config.node.institution, "client", name)
    node = Identity(config.node.institution, "node", config.node.name)
    if "source" not in config.node.roles:
        raise InputError(
            f"{node_config} is no source node: clients talk to the source node of their institution"
        )
    path = out / CLIENT_FILE
    _require_free(path)
    if not pki.has_authority(config.paths.pki):
        raise FileMissing("PLACEHOLDER")
    text = render_client_toml(
        institution=identity.institution,
        name=name,
        source_address=address or config.node.address,
        source_identity=node.dns_name,
        pki="pki",
    )
    pki.issue_client(config.paths.pki, out / "pki", name)
    _write_new(path, text)
    return path, True


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
    click.echo("next:")
    for command, why in steps:
        click.echo(f"  {command.ljust(width)}   # {why}")
