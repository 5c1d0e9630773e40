"""Makes a node's folder and a client's folder: configuration, keys, certificates, and a copy of a model that ships."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ddib_fed.errors import AlreadyExists, InputError, UsageError
from ddib_fed.names import NODE_FILE

if TYPE_CHECKING:
    from ddib_fed.node.config import NodeConfig, Role
    from ddib_fed.trust.identity import Identity

CLIENT_FILE: Final = "client.toml"
HELP: Final = "ddib init --help"
LISTEN: Final = "127.0.0.1:7443"


def addresses(listen: str | None, address: str | None, example: str) -> tuple[str, str]:
    """The bind address and the dial address of a node; each is derived from the other if it is missing."""
    from ddib_fed.rpc.addresses import is_every_address, is_loopback, split_address

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
    from ddib_fed.files import check_private_folder
    from ddib_fed.node.config import NodeConfig, render_node_toml
    from ddib_fed.trust import pki
    from ddib_fed.trust.identity import Identity

    Identity(institution, "node", name)
    path, pki_folder = out / NODE_FILE, out / "state" / "pki"
    _require_free(path, pki_folder / "ca.key")
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
        pki.init_node_identity(pki_folder, institution, name)
    _write_new(path, text)
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
        from ddib_fed.models.shipped import open_bundle, shipped_name

        domain, shipped = open_bundle(which).manifest.domain, shipped_name(which)
        if shipped is not None:
            return cls(domain, "model", shipped)
        folder, here = Path(which).resolve(), out.resolve()
        return cls(domain, str(folder.relative_to(here) if folder.is_relative_to(here) else folder))

    def copy_to(self, out: Path) -> None:
        """Copy a shipped model, so that the node's model does not change with the package version."""
        if self.shipped is None:
            return
        from ddib_fed.models.bundle import load_bundle
        from ddib_fed.models.catalogue import copy_shipped
        from ddib_fed.models.shipped import pretrained

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
    audit: Path | None = None
    life: timedelta | None = None

    @classmethod
    def of(cls, path: Path, address: str | None = None) -> SourceNode:
        """The node of a node.toml, at its own address or the given one."""
        from ddib_fed.node.config import NodeConfig
        from ddib_fed.trust import pki
        from ddib_fed.trust.identity import Identity

        config = NodeConfig.load(path)
        if "source" not in config.node.roles:
            raise InputError(f"{path} is no source node, and clients talk to source nodes only", hint=HELP)
        identity = Identity(config.node.institution, "node", config.node.name)
        issuer = config.paths.pki if pki.has_authority(config.paths.pki) else None
        life = config.identity.life("client")
        return cls(identity, address or config.node.address, issuer, config.paths.audit, life)

    def note_issue(self, identity: Identity) -> None:
        """Write to the node's audit log, before the certificate is made, for whom it is."""
        from ddib_fed.trust.audit.log import note

        if self.audit is not None:
            note(self.audit, "certificate_issued", identity=identity.uri)


def make_client(source: SourceNode, out: Path, *, name: str) -> Path:
    """Write client.toml with the client's key and its certificate, or a request for one; the profile's path."""
    from ddib_fed.client.profile import render_client_toml
    from ddib_fed.trust import pki
    from ddib_fed.trust.identity import Identity

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
    _write_new(path, text)
    return path


def _require_free(*paths: Path) -> None:
    for path in paths:
        if path.exists():
            raise AlreadyExists(f"{path} exists and is not overwritten", hint="another --out folder")


def _write_new(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise AlreadyExists(f"{path} exists and is not overwritten", hint="another --out folder") from error


def _first_line(error: ValueError) -> str:
    problems = getattr(error, "errors", None)
    if problems is None:
        return str(error)
    first = problems()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
