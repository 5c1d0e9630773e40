"""Whom a node trusts: the peer file with which an institution introduces its node, and the node's store of trust.

    state/trust.json     admitted peers, suspended peers and withdrawn identities; commands alone write it, under a lock
    state/pki/roots.pem  the roots of the own institution

The store sees both files as a snapshot that is always current. A snapshot is immutable, so that its holder can tell by
identity whether anything has changed since. A file that cannot be read changes nothing in a running node, which keeps
the last valid content and is degraded, and it stops a start: nobody is reinstated by damage.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from cryptography import x509

from ddib_fed.errors import AlreadyExists, DdibError, InputError, PeerNotFound, PeerSuspended, PolicyDenied
from ddib_fed.files import private_folder, read_private, read_small, write_file
from ddib_fed.names import nearest, readable, resembles
from ddib_fed.protocol.addresses import split_address
from ddib_fed.security.audit import Value, note
from ddib_fed.security.identity import Identity, Pins, check_institution, check_root
from ddib_fed.security.pki import (
    MAX_ROOTS,
    Authority,
    certificate_pem,
    create_institution,
    fingerprint,
    issue_to_folder,
    parse_certificates,
    same_fingerprint,
)
from ddib_fed.terminal import escape

T = TypeVar("T")

TRUST: Final = "trust.json"
FORMAT_VERSION: Final = 1
MAX_PEERS: Final = 256
MAX_REASON: Final = 200
MAX_TRUST_BYTES: Final = 4 << 20
_FIELDS: Final = frozenset({"format_version", "institution", "identity", "address", "roots"})
_SECTIONS: Final = frozenset({"format_version", "peers", "suspended", "withdrawn"})
_SHOWN: Final = 40
# A file changed less than this long ago may change again within the resolution of its time stamp.
_RACY_NS: Final = 2_000_000_000


@dataclass(frozen=True, slots=True)
class Peer:
    """Another institution's node, as described by its peer file."""

    institution: str
    identity: Identity
    address: str
    roots: tuple[x509.Certificate, ...]

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """One for each root, to be compared out of band."""
        return tuple(fingerprint(root) for root in self.roots)

    @property
    def fingerprint(self) -> str:
        return ", ".join(self.fingerprints)

    @property
    def warnings(self) -> tuple[str, ...]:
        """How a name with letters beyond ASCII reads, for the operator who admits it."""
        if (text := readable(self.institution)) == self.institution:
            return ()
        warning = (
            f"warning: {self.institution} reads as {text}, whose letters may look like others: "
            "compare every one with what the other operator spells out"
        )
        return (warning,)

    def still_vouches_for(self, earlier: Peer) -> bool:
        """Return whether a connection of an earlier entry may go on: same node, and its roots are still pinned."""
        return self.identity == earlier.identity and set(earlier.roots) <= set(self.roots)

    def fields(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "institution": self.institution,
            "identity": self.identity.uri,
            "address": self.address,
            "roots": [certificate_pem(root).decode() for root in self.roots],
        }

    def to_bytes(self) -> bytes:
        return (json.dumps(self.fields(), indent=2) + "\n").encode()


def parse_peer(data: bytes, what: str) -> Peer:
    """Read a peer file strictly, all of it checked before any is used; an InputError's text begins with `what`."""
    try:
        return _peer_of(json.loads(data, object_pairs_hook=_once))
    except (DdibError, ValueError, RecursionError) as exc:
        why = exc.detail if isinstance(exc, DdibError) else f"it is no JSON: {exc}"
        raise InputError(
            f"{what} is no peer file: {why}", hint="ddib peer export writes one, on the other side"
        ) from exc


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is repeated")
    return fields


def _peer_of(content: Any) -> Peer:
    if not isinstance(content, dict) or set(content) != _FIELDS:
        raise InputError(f"a peer has exactly the fields {', '.join(sorted(_FIELDS))}")
    version, blocks = content["format_version"], content["roots"]
    if type(version) is not int or version != FORMAT_VERSION:
        raise InputError(
            f"format version {str(version)[:_SHOWN]!a}, this release reads {FORMAT_VERSION}: compare ddib --version"
        )
    texts = (content["institution"], content["identity"], content["address"])
    if not all(isinstance(text, str) and len(text) <= 512 for text in texts):
        raise InputError("institution, identity and address are short texts")
    institution, identity = check_institution(texts[0]), Identity.parse(texts[1])
    if identity.kind != "node" or identity.institution != institution:
        raise InputError(f"{identity} is not a node of {institution}")
    try:
        host, _port = split_address(texts[2])
    except ValueError as exc:
        raise InputError(str(exc)) from exc
    if "%" in host:
        raise InputError(f"{texts[2]!r} names a network interface of one machine, which others do not have")
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= MAX_ROOTS:
        raise InputError(f"roots is a list of 1 to {MAX_ROOTS} certificates in PEM")
    roots: list[x509.Certificate] = []
    for block in blocks:
        # An escape of JSON may stand for half a character, which no encoding has; PEM is ASCII.
        pem = block.encode("ascii", "replace") if isinstance(block, str) else b""
        certificates = parse_certificates(pem, "an entry of roots")
        if len(certificates) != 1:
            raise InputError("one certificate is expected in each entry of roots")
        check_root(certificates[0], institution)
        roots.append(certificates[0])
    return Peer(institution, identity, texts[2], tuple(roots))


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """Whom this node trusts at one moment; compared by identity.

    `suspended` says since when and why a peer is, `withdrawn` has the comment on each identity.
    """

    institution: str
    own_roots: tuple[x509.Certificate, ...]
    peers: Mapping[str, Peer]
    withdrawn: Mapping[Identity, str] = field(default_factory=dict)
    suspended: Mapping[str, str] = field(default_factory=dict)
    pins: Pins = field(init=False)

    def __post_init__(self) -> None:
        pins = {name: peer.roots for name, peer in self.peers.items()} | {self.institution: self.own_roots}
        object.__setattr__(self, "pins", pins)

    @property
    def roots_pem(self) -> bytes:
        """Every root that a caller's certificate may come from, for the TLS layer."""
        return certificate_pem(*(root for roots in self.pins.values() for root in roots))

    def is_admitted_node(self, identity: Identity) -> bool:
        """Return whether this is exactly the node of an admitted peer; it may be suspended."""
        peer = self.peers.get(identity.institution)
        return peer is not None and peer.identity == identity

    def allows(self, entry: Peer) -> bool:
        """Return whether a connection made by a peer's entry, of this snapshot or an earlier one, may go on."""
        current = self.peers.get(entry.institution)
        if current is None or current.identity in self.withdrawn or entry.institution in self.suspended:
            return False
        return current is entry or current.still_vouches_for(entry)

    def refuse_suspended(self, institution: str) -> None:
        if institution in self.suspended:
            raise PeerSuspended(
                f"{institution} is suspended on this node, {self.suspended[institution]}",
                hint=f"its operator lifts it: ddib peer suspend --undo {institution}",
                facts={"peer": institution, "by": self.institution},
            )

    def refuse_withdrawn(self, identity: Identity) -> None:
        """Raise PolicyDenied if an identity is withdrawn: it gets no certificate."""
        if identity in self.withdrawn:
            raise PolicyDenied(
                f"{identity} is withdrawn in this node's {TRUST}",
                hint=f"choose another name, or reinstate it: ddib pki withdraw --undo {identity}",
            )

    def described(self) -> frozenset[str]:
        """Return a line for everything trusted or refused; each root has its own, so that no fingerprint is cut."""
        lines = {f"own root {fingerprint(root)}" for root in self.own_roots}
        for name, peer in self.peers.items():
            lines.add(f"peer {name}: {peer.identity} at {peer.address}")
            lines.update(f"root {text} of {name}" for text in peer.fingerprints)
        lines.update(f"withdrawn {identity}" for identity in self.withdrawn)
        return frozenset(lines | {f"suspended {name}" for name in self.suspended})


def trust_changes(before: Snapshot, after: Snapshot) -> list[str]:
    old, new = before.described(), after.described()
    return [f"removed {line}" for line in sorted(old - new)] + [f"added {line}" for line in sorted(new - old)]


@dataclass(slots=True)
class Trust:
    peers: dict[str, Peer] = field(default_factory=dict)
    suspended: dict[str, str] = field(default_factory=dict)
    withdrawn: dict[Identity, str] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        content = {
            "format_version": FORMAT_VERSION,
            "peers": [peer.fields() for _name, peer in sorted(self.peers.items())],
            "suspended": dict(sorted(self.suspended.items())),
            "withdrawn": {identity.uri: comment for identity, comment in sorted(self.withdrawn.items())},
        }
        return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes, own: str) -> Trust:
        """Read it strictly; raise InputError if it is not wholly valid, or has a peer of the own institution."""
        try:
            content = json.loads(data, object_pairs_hook=_once)
        except (ValueError, RecursionError) as exc:
            raise InputError(f"it is no JSON: {exc}") from exc
        if not isinstance(content, dict) or set(content) != _SECTIONS:
            raise InputError(f"it must have exactly {', '.join(sorted(_SECTIONS))}")
        version, peers = content["format_version"], content["peers"]
        if version != FORMAT_VERSION or not isinstance(peers, list) or len(peers) > MAX_PEERS:
            raise InputError(f"it is of another format, or has more than {MAX_PEERS} peers")
        admitted = {peer.institution: peer for peer in map(_peer_of, peers)}
        if len(admitted) != len(peers) or own in admitted:
            raise InputError("a peer is named twice, or is of the own institution")
        lines: list[dict[str, str]] = []
        for section in ("suspended", "withdrawn"):
            noted = content[section]
            if not isinstance(noted, dict) or not all(isinstance(text, str) for text in noted.values()):
                raise InputError(f"{section} has a text for each name")
            lines.append({name: escape(text) for name, text in noted.items()})
        return cls(admitted, lines[0], {Identity.parse(uri): comment for uri, comment in lines[1].items()})


def begin_trust(state: Path) -> None:
    """Write the store of a new node, which trusts its own institution alone; one that is there stays."""
    if not (state / TRUST).exists():
        private_folder(state)
        write_file(state / TRUST, Trust().to_bytes(), private=True, overwrite=False)


def begin_node(state: Path, institution: str, name: str, *, now: datetime | None = None) -> Authority:
    """Make the institution's root, this node's certificate from it, and its store of trust."""
    Identity(institution, "node", name)
    authority = create_institution(state / "pki", institution, now=now)
    issue_to_folder(authority, state / "pki", "node", name, now=now)
    begin_trust(state)
    return authority


class _Watched(Generic[T]):
    """A file that is read again when it has changed; one that cannot be read keeps its last valid content."""

    def __init__(self, path: Path, read: Callable[[], bytes], parse: Callable[[bytes], T]) -> None:
        self._path, self._read, self._parse = path, read, parse
        self._mark: object = None
        self._data: bytes | None = None
        self._value: T | None = None
        self.problem: str | None = None

    def current(self, *, anew: bool = False) -> T:
        """Return the content, the same object until it changes; raise DdibError if it never could be read."""
        mark, racy = None, True
        with suppress(OSError):
            status = self._path.stat()
            mark = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            racy = abs(time.time_ns() - status.st_ctime_ns) < _RACY_NS
        if self._value is not None and mark is not None and mark == self._mark and not anew:
            return self._value
        self.problem = None
        try:
            data = self._read()
            if data != self._data or self._value is None:
                self._value, self._data = self._parse(data), data
        except DdibError as exc:
            if self._value is None:
                raise
            self.problem = exc.detail
        self._mark = None if racy else mark
        return self._value


class PeerStore:
    """A node's store of trust; safe between threads and processes.

    A change is a line of the audit log in the database `audit` first, where one is given: ConfigError, and no change,
    if it cannot be written.
    """

    def __init__(self, state: Path, institution: str, audit: Path | None = None) -> None:
        self.file = state / TRUST
        self._institution, self._audit = institution, audit
        self._lock = threading.Lock()
        self._trust = _Watched(self.file, self._read, self._parse)
        roots = state / "pki" / "roots.pem"
        self._roots = _Watched(
            roots,
            lambda: read_small(roots, hint="ddib pki init, or ddib pki install"),
            lambda data: parse_certificates(data, str(roots), hint="ddib pki show says what puts it right"),
        )
        self._snapshot: Snapshot | None = None
        self._built_of: tuple[object, object] = (None, None)

    def snapshot(self, *, anew: bool = False) -> Snapshot:
        """Return the current snapshot, the same object until a file changes; this costs one stat for each file."""
        with self._lock:
            trust = self._trust.current(anew=anew)
            roots = self._roots.current(anew=anew)
            if self._snapshot is None or self._built_of[0] is not trust or self._built_of[1] is not roots:
                suspended = {name: why for name, why in trust.suspended.items() if name in trust.peers}
                self._snapshot = Snapshot(self._institution, roots, trust.peers, trust.withdrawn, suspended)
                self._built_of = trust, roots
            return self._snapshot

    @property
    def _problems(self) -> list[str]:
        return [problem for problem in (self._trust.problem, self._roots.problem) if problem]

    @property
    def problem(self) -> str | None:
        """Files that cannot be read, for the node's health; None if there are none."""
        self.snapshot()
        return "; ".join(self._problems) or None

    def reload(self) -> Sequence[str]:
        """Read everything again, ignoring time stamps; return a line for each change, and for each unreadable file."""
        before, after = self._snapshot, self.snapshot(anew=True)
        changed = [] if before is None else trust_changes(before, after)
        return [*changed, *(f"not read: {problem}" for problem in self._problems)]

    def _read(self) -> bytes:
        return read_private(self.file, hint=self._hint, max_bytes=MAX_TRUST_BYTES)

    def _parse(self, data: bytes) -> Trust:
        try:
            return Trust.parse(data, self._institution)
        except InputError as exc:
            raise InputError(f"{self.file} cannot be used: {exc.detail}", hint=self._hint) from exc

    @property
    def _hint(self) -> str:
        return f"put {self.file} back from a copy of the state folder, or correct it"

    def get(self, institution: str) -> Peer:
        """Return an admitted peer; raise PeerNotFound, also for a withdrawn one, or PeerSuspended."""
        snapshot = self.snapshot()
        peer = _admitted(snapshot.peers, institution)
        if peer.identity in snapshot.withdrawn:
            raise PeerNotFound(
                f"the node of {institution}, {peer.identity}, is withdrawn here",
                hint=f"ddib pki withdraw --undo {peer.identity}, if that was a mistake",
            )
        snapshot.refuse_suspended(institution)
        return peer

    def list(self) -> tuple[Peer, ...]:
        return tuple(peer for _name, peer in sorted(self.snapshot().peers.items()))

    def judge(
        self,
        peer: Peer,
        *,
        fingerprints: Sequence[str],
        replace: bool = False,
        peers: Mapping[str, Peer] | None = None,
    ) -> None:
        """Raise unless a peer may be admitted beside these, by default the admitted ones.

        PolicyDenied means a new root that was not compared out of band, AlreadyExists another entry without `replace`.
        """
        peers = self.snapshot().peers if peers is None else peers
        name = peer.institution
        if name == self._institution:
            raise PolicyDenied(
                f"{name} is this node's own institution, not a peer",
                hint="two institutions have two names: ddib init node --institution NAME",
            )
        for other in sorted({self._institution, *peers} - {name}):
            if resembles(name, other):
                raise PolicyDenied(
                    f"{name} reads as {readable(name)} and can be mistaken for another name",
                    # Not in the sentence, which pairing sends to the other side.
                    hint=f"compare it with {other}: an institution whose name looks like that needs another one",
                )
        known = peers.get(name)
        pinned = {fingerprint(root) for root in known.roots} if known else set()
        wrong = [text for text in fingerprints if not _among(text, peer.fingerprints)]
        missing = [
            text for text in peer.fingerprints if text not in pinned and not _among(text, fingerprints)
        ]
        if wrong or missing:
            raise PolicyDenied(
                f"the root of {name} was not confirmed: {', '.join(wrong) or f'nothing for {missing[0]}'} "
                f"was read out, its file has {peer.fingerprint}",
                hint="compare it with the output of `ddib peer export` there; if it differs, stop",
            )
        if known is not None and known != peer and not replace:
            raise AlreadyExists(
                f"{name} is already a peer, with other data", hint="ddib peer add --force FILE"
            )
        if known is None and len(peers) >= MAX_PEERS:
            raise PolicyDenied(f"a node has at most {MAX_PEERS} peers", hint="ddib peer remove INSTITUTION")

    # Changes. Each is on the disk when it returns, and returns whether anything changed.

    def add(self, peer: Peer, *, fingerprints: Sequence[str], replace: bool = False) -> bool:
        """Admit a peer, as `judge` allows; it stays suspended if it was."""
        act = "peer_replaced" if peer.institution in self.snapshot().peers else "peer_added"
        who = {"peer": peer.institution, "identity": peer.identity.uri, "address": peer.address}
        with self._editing(act, **who, roots=peer.fingerprints) as trust:
            self.judge(peer, fingerprints=fingerprints, replace=replace, peers=trust.peers)
            changed = trust.peers.get(peer.institution) != peer
            trust.peers[peer.institution] = peer
        return changed

    def remove(self, institution: str) -> None:
        """Remove a peer and its suspension; it is refused from its next call."""
        with self._editing("peer_removed", peer=institution) as trust:
            _admitted(trust.peers, institution)
            del trust.peers[institution]
            trust.suspended.pop(institution, None)

    def suspend(self, institution: str, *, reason: str = "") -> bool:
        """Refuse a peer, and do not call it, until it is resumed."""
        since = f"since {datetime.now(UTC).isoformat(timespec='seconds')}"
        note = f"{since}: {_line(reason)}" if reason else since
        with self._editing("peer_suspended", peer=institution, reason=reason) as trust:
            _admitted(trust.peers, institution)
            return trust.suspended.setdefault(institution, note) is note

    def resume(self, institution: str) -> bool:
        """Lift a suspension; PeerNotFound if the peer is not admitted."""
        with self._editing("peer_resumed", peer=institution) as trust:
            _admitted(trust.peers, institution)
            return trust.suspended.pop(institution, None) is not None

    def withdraw(self, identity: Identity, *, comment: str = "") -> bool:
        """Refuse an identity although its certificate is valid."""
        note = _line(comment) or f"withdrawn {date.today().isoformat()}"  # noqa: DTZ011 - the operator's day
        with self._editing("identity_withdrawn", identity=identity.uri, comment=comment) as trust:
            new = identity not in trust.withdrawn
            trust.withdrawn.setdefault(identity, note)
        return new

    def reinstate(self, identity: Identity) -> bool:
        with self._editing("identity_reinstated", identity=identity.uri) as trust:
            return trust.withdrawn.pop(identity, None) is not None

    @contextmanager
    def _editing(self, act: str, **values: Value) -> Iterator[Trust]:
        """Yield the locked content; if the block changes it, note that in the audit log and write it."""
        descriptor = os.open(self.file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            content = self._parse(self._read())
            unchanged = content.to_bytes()
            yield content
            if (changed := content.to_bytes()) != unchanged:
                if len(changed) > MAX_TRUST_BYTES:
                    raise InputError(
                        f"{self.file} would have {len(changed)} bytes, and at most {MAX_TRUST_BYTES} are read",
                        hint="first take something out of it: ddib peer remove, or ddib pki withdraw --undo",
                    )
                if self._audit is not None:
                    note(self._audit, act, **values)
                write_file(self.file, changed, private=True)
        finally:
            os.close(descriptor)


def _admitted(peers: Mapping[str, Peer], institution: str) -> Peer:
    if institution not in peers:
        close = nearest(institution, peers)
        meant = f"did you mean {close}? `ddib peer list` lists the peers" if close else "ddib peer list"
        raise PeerNotFound(f"{institution} is not a peer of this node", hint=meant)
    return peers[institution]


def _among(text: str, fingerprints: Sequence[str]) -> bool:
    return any(same_fingerprint(text, candidate) for candidate in fingerprints)


def _line(text: str) -> str:
    if len(text) > MAX_REASON or not text.isprintable():
        raise InputError(f"a reason or comment is one printable line of at most {MAX_REASON} characters")
    return text
