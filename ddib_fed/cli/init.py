"""`ddib init node|client`: writes a configuration with its certificates, and prints the next commands."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import ddib_fed
from ddib_fed.cli import options
from ddib_fed.cli.options import group, option, say_next, with_config
from ddib_fed.errors import InputError, UsageError
from ddib_fed.terminal import outcome, say

HELP = "ddib init --help"
USUAL_NODE = "node-1"


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
@option("--role", "What the node does.", ("source", "target", "both"), required=True)
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
def node(role: Any, no_ca: bool, out: Path, **given: Any) -> None:
    """Make a node: a commented node.toml, the institution's CA, the node's certificate, its peer file, a client.

    --role and --model suffice for a first try on this machine. A node that others reach needs --address. The name of
    the institution is in every certificate: choose it before others admit the node. The client of a source node is
    yours, in the folder client, where `ddib translate` finds it.
    """
    node = ddib_fed.Node.create(out, role=role, with_ca=not no_ca, **given)
    config = node.config
    section, path = config.node, out / config.path.name
    if given["institution"] is None:
        host = section.institution in (given["address"] or "").lower()
        whence = "the host of --address" if host else "from this machine's name"
        say(f"institution  {section.institution}, {whence}; --institution NAME names another")
    more = with_config(path)
    serve = f"{config.command} serve{more}"
    say(
        f"wrote        {path}: listens on {section.listen}, is dialled at {section.address}",
        f"keys         {config.paths.pki}",
    )
    steps = []
    if no_ca:
        steps.append((f"ddib pki request{more}", "a request for the node that issues"))
    if given["model"] is None:
        steps.append((f"{config.command} train{more}", "train the model"))
    steps += [
        (f"{serve} --pair", "serve, once the other side has come with the code"),
        (f"{serve} --pair-with HOST:PORT CODE", "or be the one who comes"),
        (f"ddib peer add OTHER.peer{more}", "or with its peer file, and fingerprints"),
    ]
    if role != "target":
        if not no_ca:
            profile = _create_client(node, out / "client")
            file = out / "client" / profile.path.name
            say(f"client       {file}: {profile.name}")
            which = "" if out == Path() else f" --profile {shlex.quote(str(file))}"
            steps.append((f"ddib domains{which}", "see what can be translated to"))
        another = f"ddib init client --config {shlex.quote(str(path))} --name NAME --out NAME"
        steps.append((another, "a profile for a person"))
    if not no_ca:
        file = out / f"{section.institution}.peer"
        fingerprints = node.peers.export(file).fingerprints
        say(f"peer file    {file}", *(f"fingerprint  {one}" for one in fingerprints))
    say_next(steps)
    outcome(
        config=path,
        listen=section.listen,
        address=section.address,
        pki=config.paths.pki,
        next=[step for step, _ in steps],
    )


def _create_client(
    node: ddib_fed.Node, out: Path, name: str | None = None, address: str | None = None
) -> ddib_fed.Profile:
    """Make a client of this node, whose certificate it issues at once if it can."""
    section = node.config.node
    if "source" not in section.roles:
        why = f"{node.config.path} is no source node, and clients talk to source nodes only"
        raise InputError(why, hint=HELP)
    return ddib_fed.Profile.create(
        out,
        institution=section.institution,
        address=address or section.address,
        name=name,
        node=section.name,
        sign=node.pki.sign if node.pki.issues else None,
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
    if config_path is not None:
        options.refuse_idle(("institution",), "is in --config already", hint=HELP)
        profile = _create_client(ddib_fed.Node.open(config_path), out, name, address)
    elif institution is None or address is None:
        raise UsageError("give --config FILE, or --institution NAME and --address HOST:PORT", hint=HELP)
    else:
        profile = ddib_fed.Profile.create(out, institution=institution, address=address, name=name)
    path, request = out / profile.path.name, out / f"{name}.csr"
    say(f"{path} is written; the key is in {out / 'pki'}")
    which, steps = shlex.quote(str(path)), []
    if request.exists():
        steps += [
            (f"ddib pki issue {request.name}", f"at the node that issues; take {request} there"),
            (f"ddib pki install {name}.pem --profile {which}", "here, with what it wrote"),
        ]
    steps += [
        (f"ddib doctor --profile {which}", "check the way to the node"),
        (f"ddib domains --profile {which}", "see what can be translated to"),
    ]
    say_next(steps)
    outcome(profile=path, pki=out / "pki", next=[step for step, _ in steps])
