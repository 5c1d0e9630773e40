"""A node as its operator has it: makes one, runs it, calls it over its socket, keeps its certificates and log.

Each act is in the node's audit log before it has any effect. A running node obeys it at its next call, because it reads
the same files. Neither torch nor gRPC is imported before a method needs it.
"""

from __future__ import annotations

import re
import shlex
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from pydantic import TypeAdapter, ValidationError

from ddib_fed.errors import AlreadyExists, FileMissing, InputError, PolicyDenied, UsageError
from ddib_fed.files import check_private_folder, problem_text, read_small, write_file
from ddib_fed.names import NODE_FILE, is_institution, label_from
from ddib_fed.node.config import ModelSection, NodeConfig, NodeSection, Role, peer_store, render_node_toml
from ddib_fed.node.peering import Applied, Peers, apply
from ddib_fed.protocol.addresses import is_every_address, is_loopback, split_address
from ddib_fed.security import audit as log
from ddib_fed.security import pki as keys
from ddib_fed.security.identity import Identity
from ddib_fed.security.peers import begin_node, begin_trust

if TYPE_CHECKING:
    from ddib_fed.models.bundle import Bundle
    from ddib_fed.node.admin import NodeStatus
    from ddib_fed.node.agreements import Calibrations
    from ddib_fed.node.daemon import StepResult

HELP: Final = "ddib init --help"
LISTEN: Final = "127.0.0.1:7443"
USUAL_NODE: Final = "node-1"
ROLES: Final[dict[str, tuple[Role, ...]]] = {
    "source": ("source",),
    "target": ("target",),
    "both": ("source", "target"),
}


class Node:
    """An institution's node on this machine, as its operator has it; `Node.open` reads one, `Node.create` makes one.

    Attributes
    ----------
    config
        The checked node.toml, with its path and the paths of the node's files.

    Examples
    --------
    >>> import tempfile
    >>> from ddib_fed import Node
    >>> node = Node.create(tempfile.mkdtemp(), role="target", model="moons", institution="west.example")
    >>> node.config.node.listen, node.config.model.domain
    ('127.0.0.1:7443', 'moons')
    >>> print(node.pki.show().identity)
    spiffe://west.example/node/node-1
    >>> node.peers.list(), node.pki.issues
    ((), True)
    """

    def __init__(self, config: NodeConfig) -> None:
        self.config = config

    @classmethod
    def open(cls, path: str | Path = NODE_FILE) -> Node:
        """Open the node of a node.toml; raise FileMissing, or ConfigError that names the key."""
        return cls(NodeConfig.load(Path(path)))

    @classmethod
    def create(
        cls,
        folder: str | Path,
        *,
        role: Literal["source", "target", "both"],
        model: str | Path | None = None,
        domain: str | None = None,
        institution: str | None = None,
        name: str = USUAL_NODE,
        listen: str | None = None,
        address: str | None = None,
        classifier: str | Path | None = None,
        with_ca: bool = True,
    ) -> Node:
        """Make a node: a commented node.toml, the institution's CA, and the node's certificate.

        Parameters
        ----------
        folder
            Folder of node.toml and the node's state; made if missing.
        model
            The hosted model: a folder, or a model that ships, which is copied. Without it, `domain` names the
            domain of a model that is trained later.
        institution
            DNS name in lower case. Without it the host of `address`, else this machine's name under .internal.
        listen, address
            HOST:PORT to bind and to be dialled at. Each follows from the other; without both 127.0.0.1:7443.
        with_ca
            Whether this node issues the institution's certificates; without it `pki.request` asks another node.

        Raises
        ------
        AlreadyExists
            The folder has a node, or another model.
        InputError
            A value cannot be used; nothing is written then.
        """
        if domain is None and model is None:
            raise UsageError("give --model, or --domain of a model that is trained later", hint=HELP)
        institution = institution or _institution_here(address, name)
        bound, dialled = _addresses(listen, address, f"{name}.{institution}")
        Identity(institution, "node", name)
        out = Path(folder)
        path, state = out / NODE_FILE, out / "state"
        for place in (path, state / "pki" / "ca.key"):
            if place.exists():
                raise AlreadyExists(f"{place} exists and is not overwritten", hint="another --out folder")
        named = shipped = None
        if model is not None:
            from ddib_fed.models.bundle import open_bundle, shipped_name

            named, shipped = open_bundle(str(model)).manifest.domain, shipped_name(str(model))
        try:
            section = NodeSection(
                institution=institution, name=name, roles=ROLES[role], listen=bound, address=dialled
            )
            hosted = ModelSection(
                domain=named or "" if domain is None else domain,
                bundle="model" if model is None or shipped else _place(model, out),
                classifier=None if classifier is None else _place(classifier, out),
                bundle_domain=None if domain in {None, named} else named,
            )
            text = render_node_toml(section, hosted)
        except ValidationError as error:
            raise InputError(problem_text(error), hint=HELP) from error
        check_private_folder(state)
        out.mkdir(parents=True, exist_ok=True)
        # The configuration is written last, so that the command can be repeated after a failure.
        if shipped is not None:
            _copy_model(shipped, out / "model")
        if with_ca:
            begin_node(state, institution, name)
        else:
            begin_trust(state)
        write_file(path, text.encode(), overwrite=False)
        return cls.open(path)

    def serve(self) -> int:
        """Serve in this process until SIGTERM or SIGINT, which drain; return the exit code.

        Raise what fails at the first step of a start; `check` runs all steps.
        """
        from ddib_fed.node import daemon

        return daemon.serve(self.config)

    def check(self) -> list[StepResult]:
        """Run every step of a start, changing nothing; return what each found, or its problem."""
        from ddib_fed.node import daemon

        return daemon.check(self.config)

    def model(self) -> Bundle:
        """Open the model that the node hosts, for `measure_dial` or `Model.open`; raise ConfigError for another one."""
        from ddib_fed.node.role import load_hosted

        return load_hosted(self.config)

    # Calls over the socket of a running node; PeerUnreachable without one

    def status(self) -> NodeStatus:
        """Ask the running node for its state."""
        from ddib_fed.node.admin import NodeStatus, ask

        return TypeAdapter(NodeStatus).validate_python(ask(self.config, "status"))

    def reload(self) -> list[str]:
        """Have the running node read peers, withdrawals and certificates again; return a line for each change.

        It does so at the next call by itself; this ends calls of removed peers at once. node.toml is read at a start.
        """
        from ddib_fed.node.admin import ask

        return list(ask(self.config, "reload"))

    def drain(self) -> int:
        """Have the running node finish its work and exit; return the number of jobs that still run."""
        from ddib_fed.node.admin import ask

        return int(ask(self.config, "drain"))

    def write_leaving(self, path: str | Path) -> list[str]:
        """Write a page of what leaves to whom under which settings; return what could not be read.

        The node need not run. Raise AlreadyExists if the file exists.
        """
        from ddib_fed.node.leaving import write_leaving

        if Path(path).exists():
            raise AlreadyExists(f"{path} exists and is not overwritten", hint="another name for --leaving")
        return write_leaving(self.config, Path(path))

    @cached_property
    def peers(self) -> Peers:
        """The other institutions' nodes that are admitted here."""
        return Peers(self.config)

    @cached_property
    def pki(self) -> NodeCertificates:
        """The node's certificate, and the certificates that it issues."""
        return NodeCertificates(self.config)

    @cached_property
    def audit(self) -> Audit:
        """The node's audit log."""
        return Audit(self.config)

    @cached_property
    def calibrations(self) -> Calibrations:
        """The node's published aggregate, and the calibrations that it and its peers agreed on."""
        from ddib_fed.node.agreements import Calibrations

        return Calibrations(self.config)

    def __repr__(self) -> str:
        node = self.config.node
        return f"<Node {node.name}.{node.institution}: {', '.join(node.roles)} of {self.config.model.domain}>"


def _institution_here(address: str | None, node_name: str) -> str:
    """Name the institution by the host of an address, else by this machine."""
    try:
        host = "" if address is None else split_address(address, bound=True)[0].lower()
    except ValueError:
        host = ""  # the address itself is refused later
    host = host.removeprefix(f"{node_name}.")
    if is_institution(host) and not is_loopback(host):
        return host
    # A top-level domain for private use, which is never delegated.
    return f"{label_from(socket.gethostname().partition('.')[0], 'node')}.internal"


def _addresses(listen: str | None, address: str | None, example: str) -> tuple[str, str]:
    """Return the bind address and the dial address of a node; each is derived from the other if it is missing."""
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


def _copy_model(shipped: str, path: Path) -> None:
    from ddib_fed.models.bundle import load_bundle, pretrained
    from ddib_fed.models.catalogue import copy_shipped

    if not path.exists():
        copy_shipped(shipped, path)
    elif load_bundle(path).digest != pretrained(shipped).digest:
        hint = f"--model {shlex.quote(str(path))}, or another --out folder"
        raise AlreadyExists(f"{path} holds another model", hint=hint)


def _place(model: str | Path, out: Path) -> str:
    """Return how node.toml in `out` names the folder of a model."""
    folder, here = Path(model).resolve(), out.resolve()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that was issued, and its file."""

    identity: Identity
    path: Path
    valid_until: datetime


class NodeCertificates(keys.Certificates):
    """The certificates of a node; the node with the root's key issues those of its institution."""

    def __init__(self, config: NodeConfig) -> None:
        super().__init__(config.paths.pki, Identity(config.node.institution, "node", config.node.name))
        self._config = config

    def init(self) -> str:
        """Make the institution's root and this node's certificate from it; return the root's fingerprint.

        The root's key, in the node's state folder, can make any identity of the institution. Raise AlreadyExists for a
        second.
        """
        node = self._config.node
        return keys.fingerprint(begin_node(self._config.paths.state, node.institution, node.name).certificate)

    def sign(self, request: bytes) -> bytes:
        """Sign a request in PEM, after a line in the audit log; return the certificate with the roots.

        The owner of the request's key gets the identity that it names. Raise PolicyDenied if that is withdrawn.
        """
        authority = keys.load_authority(self.folder)
        identity, key = keys.read_request(request)
        peer_store(self._config).snapshot().refuse_withdrawn(identity)
        roots = keys.parse_certificates(read_small(self.folder / "roots.pem"), "roots.pem")
        life = self._config.identity.life(identity.kind)
        signed = keys.sign_request(authority, identity, key, roots, lifetime=life)
        leaf = keys.parse_certificates(signed, "what was signed")[0]
        until = leaf.not_valid_after_utc.isoformat()
        values = {"identity": identity.uri, "certificate": keys.fingerprint(leaf), "until": until}
        log.note(self._config.paths.store, "certificate_issued", **values)
        return signed

    def issue(
        self,
        request: str | Path,
        path: str | Path | None = None,
        *,
        ask: Callable[[Identity], object] | None = None,
    ) -> Issued:
        """Sign a request of another machine into a file, by default NAME.pem; raise AlreadyExists if it exists.

        `ask` is called with the identity before anything is signed, and raises to stop it.
        """
        content = read_small(Path(request), pipe=True)
        identity, _key = keys.read_request(content)
        if ask is not None:
            ask(identity)
        signed, out = self.sign(content), Path(path or f"{identity.name}.pem")
        write_file(out, signed, overwrite=False)
        leaf = keys.parse_certificates(signed, "what was signed")[0]
        return Issued(identity, out, leaf.not_valid_after_utc)

    def install(self, certificate: str | Path) -> Identity:
        """Install a signed certificate as of `Certificates.install`, with a line in the audit log before."""
        signed = read_small(Path(certificate), pipe=True)
        leaf = keys.parse_certificates(signed, "the signed certificate", hint="ddib pki issue writes one")[0]
        log.note(self._config.paths.store, "certificate_given", certificate=keys.fingerprint(leaf))
        return keys.install(self.folder, signed, expected=self.owner)

    @property
    def withdrawn(self) -> dict[Identity, str]:
        """The identities that this node refuses, each with its comment."""
        return dict(peer_store(self._config).snapshot().withdrawn)

    @property
    def list_file(self) -> Path:
        """The file with the withdrawn identities, beside the peers."""
        return peer_store(self._config).file

    def withdraw(self, identity: str, reason: str = "") -> Applied:
        """Refuse a client or node of this institution although its certificate is valid, e.g. because its key was lost.

        Each node of the institution has a list of its own. Raise PolicyDenied for another institution's identity.
        """
        changed = peer_store(self._config).withdraw(self._of_institution(identity), comment=reason)
        return apply(self._config, changed=changed)

    def reinstate(self, identity: str) -> Applied:
        """Accept an identity again that was withdrawn on this node."""
        changed = peer_store(self._config).reinstate(self._of_institution(identity))
        return apply(self._config, changed=changed)

    def _of_institution(self, text: str) -> Identity:
        institution = self._config.node.institution
        try:
            identity = Identity.parse(text)
        except InputError as error:
            raise InputError(
                f"{text!a} is no identity: {error.detail}",
                hint=f"e.g. spiffe://{institution}/client/alice; `ddib pki show` prints a certificate's own",
            ) from error
        if identity.institution != institution:
            other = identity.institution
            raise PolicyDenied(
                f"{identity} is not of {institution}, and a node withdraws identities of its own institution",
                hint=f"to refuse another institution's node: ddib peer remove {other}, or ddib peer suspend",
            )
        return identity


class Audit:
    """The audit log of a node, read while the node runs or not."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._own = Identity(config.node.institution, "node", config.node.name)

    @property
    def path(self) -> Path:
        """The database that holds the log; FileMissing before the node has served."""
        path = self._config.paths.store
        if not path.exists():
            raise FileMissing(f"there is no {path}", hint="a node writes it when it serves")
        return path

    def entries(self, *, peer: str = "", since: str | datetime | None = None) -> Iterator[log.AuditLine]:
        """Yield the lines of the log about a peer, the oldest first; the chain is not checked.

        `since` is a moment, an age ("30m", "2h", "7d"), or a date and time of ISO 8601, UTC.
        """
        moment = log.parse_since(since) if isinstance(since, str) else since
        return (line for line in log.entries(self.path) if line.is_asked_for(peer=peer, since=moment))

    def verify(self, *noted: str | Path) -> log.Verified:
        """Follow the chain of the whole log; return its head and its problem.

        `noted` are heads (64 hexadecimal digits) and files that peers wrote with `anchors`; they show whether the log's
        end was cut off or all of it rewritten.
        """
        # Each by itself: two peers may have noted the same line, one of them wrongly.
        checks: list[tuple[str | None, log.Noted]] = []
        for text in map(str, noted):
            is_head = re.fullmatch("[0-9a-f]{64}", text)
            anchors = {} if is_head else log.read_anchors(Path(text), of=self._own).by_line()
            checks.append((text if is_head else None, anchors))
        matched = 0
        for head, anchors in checks or [(None, {})]:
            result = log.verify(log.lines_of(self.path), noted=head, anchors=anchors)
            matched += result.anchors
            if not result.ok:
                break
        return replace(result, anchors=matched)

    def anchors(self, peer: str) -> tuple[log.AnchorFile, str]:
        """Return the noted ends of a peer's log, and a contradiction between two; raise FileMissing for none."""
        other = peer_store(self._config).get(peer)
        held, contradiction = log.held_of(self.path, peer)
        if not held:
            raise FileMissing(
                f"the audit log has no end of the log of {peer}",
                hint="it comes with each latent and translation",
            )
        return log.AnchorFile(of=other.identity.uri, noted_by=self._own.uri, anchors=held), contradiction
