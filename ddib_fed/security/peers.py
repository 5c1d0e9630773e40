"""Peers: the file with which an institution introduces its node, and the store of those that are admitted.

    INSTITUTION.json        the peer file of an admitted peer; one that cannot be read admits nobody
    INSTITUTION.suspended   beside it: the peer is refused and not called; its presence counts, not its content

The store sees them, the own roots and the list of withdrawn identities as a snapshot that is always current. A snapshot
is immutable, so that its holder can tell by identity whether anything has changed since.
"""

from __future__ import annotations

import fnmatch
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from cryptography import x509

from ddib_fed.errors import (
    AlreadyExists,
    DdibError,
    InputError,
    PeerNotFound,
    PeerSuspended,
    PolicyDenied,
)
from ddib_fed.files import private_folder, read_small, sync_folder, write_file
from ddib_fed.names import nearest, readable, resembles
from ddib_fed.protocol.addresses import split_address
from ddib_fed.security.identity import Identity, Pins, check_institution, check_root
from ddib_fed.security.pki import (
    MAX_ROOTS,
    certificate_pem,
    fingerprint,
    parse_certificates,
    same_fingerprint,
)
from ddib_fed.security.withdrawn import WITHDRAWN, judge, keep_last, remedy
from ddib_fed.terminal import escape

FORMAT_VERSION: Final = 1
MAX_PEERS: Final = 256
MAX_REASON: Final = 200
SUSPENDED: Final = ".suspended"
_FIELDS: Final = frozenset({"format_version", "institution", "identity", "address", "roots"})
_HINT: Final = "ddib peer export writes one, on the other side"
_PEER_FILES: Final = "[a-z0-9]*.json"
_SHOWN: Final = 40
# A file changed less than this long ago may change again within the resolution of its time stamp.
_RACY_NS: Final = 2_000_000_000

_Signature = tuple[tuple[str, int, int, int, int], ...]
_Contents = dict[Path, bytes | str]
"""Each file's content, or the reason (text) why it cannot be read."""
# Named here, because inside the class `list` is a method.
_Lines = list[str]
_Paths = list[Path]


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
        """The fingerprints on one line."""
        return ", ".join(self.fingerprints)

    def still_vouches_for(self, earlier: Peer) -> bool:
        """Whether a connection that was made by an earlier entry may go on under this one.

        It may when it leads to the same node, and each root by which it may have been verified is pinned still.
        """
        return self.identity == earlier.identity and set(earlier.roots) <= set(self.roots)

    def to_bytes(self) -> bytes:
        """The peer file."""
        content = {
            "format_version": FORMAT_VERSION,
            "institution": self.institution,
            "identity": self.identity.uri,
            "address": self.address,
            "roots": [certificate_pem(root).decode() for root in self.roots],
        }
        return (json.dumps(content, indent=2) + "\n").encode()


def parse_peer(data: bytes, what: str) -> Peer:
    """Read a peer file strictly: only the known fields, all checked, alone and together, before any is used.

    Raises:
        InputError: It is not a peer file, or its parts do not fit together; the text begins with `what`.
    """

    def refuse(why: str, hint: str = _HINT) -> InputError:
        return InputError(f"{what}: {why}", hint=hint)

    try:
        content = json.loads(data, object_pairs_hook=_once)
        fits = isinstance(content, dict) and set(content) == _FIELDS
    except (ValueError, RecursionError) as exc:
        raise refuse(f"it is no peer file: {exc}") from exc
    if not fits:
        raise refuse(f"it is no peer file: it must have exactly {', '.join(sorted(_FIELDS))}")
    if type(content["format_version"]) is not int or content["format_version"] != FORMAT_VERSION:
        version = f"{str(content['format_version'])[:_SHOWN]!a}"
        raise refuse(
            f"format version {version}, this release reads {FORMAT_VERSION}", "ddib --version on both sides"
        )
    texts = (content["institution"], content["identity"], content["address"])
    if not all(isinstance(text, str) and len(text) <= 512 for text in texts):
        raise refuse("institution, identity and address are short texts")
    try:
        identity, institution = Identity.parse(texts[1]), check_institution(texts[0])
        host, _port = split_address(texts[2])
        roots = _roots_of(content["roots"], institution)
    except (DdibError, ValueError) as exc:
        raise refuse(exc.detail if isinstance(exc, DdibError) else str(exc)) from exc
    if identity.kind != "node" or identity.institution != institution:
        raise refuse(f"{identity} is not a node of {institution}")
    if "%" in host:
        raise refuse(f"{texts[2]!r} names a network interface of one machine, which others do not have")
    return Peer(institution, identity, texts[2], roots)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a field is repeated")
    return found


def _roots_of(blocks: Any, institution: str) -> tuple[x509.Certificate, ...]:
    if not isinstance(blocks, list) or not 1 <= len(blocks) <= MAX_ROOTS:
        raise InputError(f"roots is a list of 1 to {MAX_ROOTS} certificates in PEM")
    roots: list[x509.Certificate] = []
    for block in blocks:
        # An escape of JSON may stand for half a character, which no encoding has; PEM is ASCII.
        pem = block.encode("ascii", "replace") if isinstance(block, str) else b""
        found = parse_certificates(pem, "an entry of roots")
        if len(found) != 1:
            raise InputError("one certificate is expected in each entry of roots")
        check_root(found[0], institution)
        roots.append(found[0])
    return tuple(roots)


def compare(peer: Peer, fingerprints: Sequence[str], *, pinned: tuple[x509.Certificate, ...]) -> None:
    """Compare the given fingerprints with the file, before anything else in the file is used."""
    hint = "compare it with the output of `ddib peer export` there; if it differs, stop"
    for text in fingerprints:
        if not any(same_fingerprint(own, text) for own in peer.fingerprints):
            raise PolicyDenied(
                f"the root of {peer.institution} was not confirmed: {text} was read out, "
                f"its file has {peer.fingerprint}",
                hint=hint,
            )
    for root in peer.roots:
        if root not in pinned and not any(same_fingerprint(fingerprint(root), text) for text in fingerprints):
            raise PolicyDenied(
                f"the root of {peer.institution} is {fingerprint(root)}, which was not confirmed", hint=hint
            )


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The peers and roots that this node trusts at one moment; compared by identity."""

    institution: str
    own_roots: tuple[x509.Certificate, ...]
    peers: Mapping[str, Peer]
    pins: Pins
    withdrawn: frozenset[Identity] = frozenset()
    suspended: Mapping[str, str] = field(default_factory=dict)

    @property
    def roots_pem(self) -> bytes:
        """Every root that a caller's certificate may come from, for the TLS layer."""
        return certificate_pem(*(root for roots in self.pins.values() for root in roots))

    def is_admitted_node(self, identity: Identity) -> bool:
        """Whether this is exactly the node of an admitted peer; it may be suspended."""
        peer = self.peers.get(identity.institution)
        return peer is not None and peer.identity == identity

    def allows(self, entry: Peer) -> bool:
        """Whether a connection that was made by a peer's entry, of this snapshot or an earlier one, may go on."""
        current = self.peers.get(entry.institution)
        if current is None or current.identity in self.withdrawn or entry.institution in self.suspended:
            return False
        return current is entry or current.still_vouches_for(entry)

    def refuse_suspended(self, institution: str) -> None:
        """Return if the peer is not suspended; PeerSuspended if it is."""
        if institution in self.suspended:
            raise PeerSuspended(
                f"{institution} is suspended on this node, {self.suspended[institution]}",
                hint=f"its operator lifts it: ddib peer suspend --undo {institution}",
                facts={"peer": institution, "by": self.institution},
            )

    def described(self) -> dict[tuple[str, str], str]:
        """Everything trusted or refused: kind and name, with what belongs to it."""
        found = {("own root", fingerprint(root)): "" for root in self.own_roots}
        for name, peer in self.peers.items():
            found["peer", name] = f"{peer.identity} at {peer.address}, {peer.fingerprint}"
        found |= {("withdrawn", str(identity)): "" for identity in self.withdrawn}
        return found | {("suspended", name): since for name, since in self.suspended.items()}


_VERBS: Final = {"withdrawn": ("withdrew", "reinstated"), "suspended": ("suspended peer", "resumed peer")}


def trust_changes(before: Snapshot, after: Snapshot) -> Iterator[str]:
    """What changed, one line each, and each root of a peer by itself: no fingerprint may be cut."""
    old, new = before.described(), after.described()
    for kind, name in sorted(old.keys() | new.keys()):
        was, now = old.get((kind, name)), new.get((kind, name))
        if was == now:
            continue
        begins, ends = _VERBS.get(
            kind, (f"{'added' if was is None else 'changed'} {kind}", f"removed {kind}")
        )
        if now is None:
            yield f"{ends} {name}"
        elif kind != "peer":
            yield f"{begins} {name}"
        else:
            peer = after.peers[name]
            yield f"{begins} {name}: {peer.identity} at {peer.address}"
            yield from (f"root {text} of {name}" for text in peer.fingerprints)


class PeerStore:
    """The peer files, the own roots and the withdrawn identities of a node; safe between threads and processes."""

    def __init__(
        self,
        folder: Path,
        *,
        own_institution: str,
        pki_folder: Path,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._folder = folder
        self._pki_folder = pki_folder
        self._clock_ns = clock_ns
        self._roots_file = pki_folder / "roots.pem"
        self._withdrawn_file = pki_folder / WITHDRAWN
        self._institution = own_institution
        self._lock = threading.Lock()
        self._signature: _Signature | None = None
        self._racy = True
        self._contents: _Contents = {}
        self._snapshot: Snapshot | None = None
        self._problems: tuple[str, ...] = ()
        self._withdrawn_problem: str | None = None
        # Names missing from a list that was changed a moment ago: it may be half written.
        self._held: frozenset[Identity] = frozenset()

    @property
    def problem(self) -> str | None:
        """Files that cannot be read, for the node's health; None if there are none."""
        self.snapshot()
        return "; ".join(self._problems) or None

    def snapshot(self) -> Snapshot:
        """The current snapshot: the same object until a file changes. Costs one stat for each file.

        Raises:
            InputError: The own roots cannot be read, and never could since the store was made.
        """
        with self._lock:
            signature = self._look()
            if self._snapshot is not None and signature == self._signature and not self._racy:
                return self._snapshot
            contents = self._read()
            rested = bool(self._held) and not self._changes_still(self._withdrawn_file)
            if self._snapshot is None or contents != self._contents or rested:
                self._snapshot = self._build(contents)
                self._contents = contents
            self._signature = signature
            newest = max((entry[-1] for entry in signature), default=0)
            self._racy = bool(self._held) or abs(self._clock_ns() - newest) < _RACY_NS
            return self._snapshot

    def reload(self) -> Sequence[str]:
        """Read everything again, ignoring time stamps; what changed since the last read, and what cannot be read."""
        with self._lock:
            before, self._signature = self._snapshot, None
        after = self.snapshot()
        changed = () if before is None else trust_changes(before, after)
        return [*changed, *(f"not read: {problem}" for problem in self._problems)]

    def check_withdrawn(self) -> None:
        """Return if the list of withdrawn identities can be read.

        Raises:
            InputError: It cannot, or is missing: a node that starts with it might admit refused identities.
        """
        self.snapshot()
        if self._withdrawn_problem is not None:
            raise InputError(self._withdrawn_problem, hint=remedy(self._pki_folder))

    def keep_withdrawn(self) -> None:
        """Record who is withdrawn now, so that the next start detects a list that disappeared while it was down."""
        keep_last(self._pki_folder, self.snapshot().withdrawn)

    def get(self, institution: str) -> Peer:
        """One admitted peer that is neither suspended nor withdrawn.

        Raises:
            PeerNotFound: It is not admitted, or its node is withdrawn.
            PeerSuspended: It is suspended.
        """
        snapshot = self.snapshot()
        peer = snapshot.peers.get(institution)
        if peer is None:
            raise _no_peer(institution, snapshot.peers)
        if peer.identity in snapshot.withdrawn:
            raise PeerNotFound(
                f"the node of {institution}, {peer.identity}, is withdrawn here",
                hint=f"ddib pki withdraw --undo {peer.identity}, if that was a mistake",
            )
        snapshot.refuse_suspended(institution)
        return peer

    def list(self) -> tuple[Peer, ...]:
        """Every admitted peer, by institution, also the suspended."""
        return tuple(peer for _name, peer in sorted(self.snapshot().peers.items()))

    def add(
        self,
        peer: Peer,
        *,
        fingerprints: Sequence[str],
        replace: bool = False,
        before: Callable[[], object] = lambda: None,
    ) -> Path:
        """Admit a peer; each of its new roots must have been compared out of band.

        Raises:
            PolicyDenied: A new root's fingerprint is not among `fingerprints`, one of these is of no root of
                the peer, or the peer is this institution, or its name looks like that of another.
            AlreadyExists: Another entry for the institution exists, and `replace` is false.
        """
        path = self._path(peer.institution)
        if not self.judge(peer, fingerprints=fingerprints, replace=replace):
            return path
        before()
        private_folder(self._folder)
        try:
            write_file(path, peer.to_bytes(), private=True, overwrite=replace)
        except AlreadyExists as exc:
            raise _other_data(peer) from exc
        return path

    def judge(self, peer: Peer, *, fingerprints: Sequence[str], replace: bool = False) -> bool:
        """Whether `add` would change anything; arguments and errors as there."""
        if peer.institution == self._institution:
            raise PolicyDenied(
                f"{peer.institution} is this node's own institution, not a peer",
                hint="two institutions have two names: ddib init node --institution NAME",
            )
        peers = self.snapshot().peers
        for other in sorted({self._institution, *peers} - {peer.institution}):
            if resembles(peer.institution, other):
                raise PolicyDenied(
                    f"{peer.institution} reads as {readable(peer.institution)} and can be mistaken for another name",
                    # Not in the sentence, which pairing sends to the other side.
                    hint=f"compare it with {other}: an institution whose name looks like that needs another one",
                )
        known = peers.get(peer.institution)
        compare(peer, fingerprints, pinned=known.roots if known else ())
        if known is not None and known != peer and not replace:
            raise _other_data(peer)
        return known != peer

    def suspend(
        self, institution: str, *, reason: str = "", before: Callable[[], object] = lambda: None
    ) -> bool:
        """Refuse a peer, and do not call it, until it is resumed; durable when this returns."""
        self._require(institution)
        if len(reason) > MAX_REASON or not reason.isprintable():
            raise InputError(f"a reason is one printable line of at most {MAX_REASON} characters")
        before()
        mark = self._mark(institution)
        if mark.exists():
            return False
        content = {"since": datetime.now(UTC).isoformat(timespec="seconds"), "reason": reason}
        write_file(mark, (json.dumps(content) + "\n").encode(), private=True)
        return True

    def resume(self, institution: str, *, before: Callable[[], object] = lambda: None) -> bool:
        """Lift a suspension, durably; whether there was one. PeerNotFound if the peer is not admitted."""
        self._require(institution)
        before()
        return self._lift(institution)

    def remove(self, institution: str, *, before: Callable[[], object] = lambda: None) -> None:
        """Remove a peer and its suspension, also one whose file cannot be read; it is refused from its next call."""
        path = self._require(institution)
        before()
        path.unlink(missing_ok=True)
        sync_folder(self._folder)  # or a power failure brings the peer back
        self._lift(institution)

    def _lift(self, institution: str) -> bool:
        mark = self._mark(institution)
        if not mark.exists():
            return False
        mark.unlink()
        sync_folder(self._folder)
        return True

    def _require(self, institution: str) -> Path:
        path = self._path(check_institution(institution))
        if not os.path.lexists(path):
            raise _no_peer(institution, self.snapshot().peers)
        return path

    def _path(self, institution: str) -> Path:
        return self._folder / f"{institution}.json"

    def _mark(self, institution: str) -> Path:
        return self._folder / f"{institution}{SUSPENDED}"

    def _changes_still(self, path: Path) -> bool:
        try:
            return abs(self._clock_ns() - path.stat().st_ctime_ns) < _RACY_NS
        except OSError:
            return True

    def _files(self) -> _Paths:
        # A dangling link counts as an unreadable file.
        own = [self._roots_file, *([self._withdrawn_file] if os.path.lexists(self._withdrawn_file) else [])]
        try:
            names = sorted(fnmatch.filter(os.listdir(self._folder), _PEER_FILES))  # noqa: PTH208 - glob hides errors
        except FileNotFoundError:
            names = []
        except OSError:
            return [*own, self._folder]  # which cannot be read either, and that is a problem
        files = [self._folder / name for name in names[:MAX_PEERS]]
        marks = [self._mark(path.stem) for path in files]
        return [*own, *files, *(path for path in marks if os.path.lexists(path))]

    def _look(self) -> _Signature:
        signature = []
        for path in self._files():
            try:
                found = path.stat()
            except OSError:
                continue
            signature.append((path.name, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))
        return tuple(signature)

    def _read(self) -> _Contents:
        contents: _Contents = {}
        for path in self._files():
            try:
                contents[path] = read_small(path)
            except DdibError as exc:
                contents[path] = exc.detail
        return contents

    def _build(self, contents: _Contents) -> Snapshot:
        problems: _Lines = []
        files = dict(contents)
        own_roots = self._own_roots(files.pop(self._roots_file), problems)
        listed = files.pop(self._withdrawn_file, None)
        peers: dict[str, Peer] = {}
        paused: dict[str, str] = {}
        for path, content in files.items():
            if path.suffix == SUSPENDED:
                paused[path.stem] = _since(content)
                continue
            try:
                peers[path.stem] = self._parse(path, content)
            except InputError as exc:
                problems.append(exc.detail)
        withdrawn = self._withdrawn(listed, problems)
        self._problems = tuple(problems)
        pins = {name: peer.roots for name, peer in peers.items()} | {self._institution: own_roots}
        return Snapshot(
            self._institution,
            own_roots,
            MappingProxyType(peers),
            MappingProxyType(pins),
            withdrawn,
            MappingProxyType(paused),
        )

    def _withdrawn(self, content: bytes | str | None, problems: _Lines) -> frozenset[Identity]:
        """The withdrawn identities; also the previous ones if the list cannot be read or may be half written."""
        before = self._snapshot.withdrawn if self._snapshot else None
        found = judge(self._pki_folder, content, before)
        self._withdrawn_problem, self._held = found.problem, frozenset()
        if found.problem:
            problems.append(found.problem)
        elif before and self._changes_still(self._withdrawn_file):
            self._held = before - found.identities
        return found.identities | self._held

    def _own_roots(self, content: bytes | str, problems: _Lines) -> tuple[x509.Certificate, ...]:
        """The own roots; those of the last snapshot and a problem if the file has become unreadable."""
        try:
            return _roots_in(content, self._roots_file)
        except InputError as exc:
            if self._snapshot is None:
                raise
            problems.append(exc.detail)
            return self._snapshot.own_roots

    def _parse(self, path: Path, content: bytes | str) -> Peer:
        if isinstance(content, str):
            raise InputError(content)
        peer = parse_peer(content, str(path))
        if peer.institution != path.stem or peer.institution == self._institution:
            raise InputError(f"{path} names {peer.institution}: it is in the wrong place")
        return peer


def _roots_in(content: bytes | str, path: Path) -> tuple[x509.Certificate, ...]:
    if isinstance(content, str):
        raise InputError(content, hint="ddib pki init, or ddib pki install")
    return parse_certificates(content, str(path), hint="ddib pki show says what puts it right")


def _since(content: bytes | str) -> str:
    """Since when and why a peer is suspended, one line."""
    try:
        found = json.loads(content)
        since, reason = str(found["since"])[:_SHOWN], str(found["reason"])[:MAX_REASON]
    except (ValueError, TypeError, KeyError, RecursionError):
        return "since an unknown time: its file cannot be read"
    return escape(f"since {since}: {reason}" if reason else f"since {since}")


def _no_peer(institution: str, known: Iterable[str]) -> PeerNotFound:
    close = nearest(institution, known)
    meant = f"did you mean {close}? `ddib peer list` lists the peers" if close else "ddib peer list"
    return PeerNotFound(f"{institution} is not a peer of this node", hint=meant)


def _other_data(peer: Peer) -> AlreadyExists:
    return AlreadyExists(
        f"{peer.institution} is already a peer, with other data", hint="ddib peer add --force FILE"
    )
