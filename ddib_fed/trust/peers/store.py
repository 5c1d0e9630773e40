"""The store of admitted peers: one file for each, read again when it changes.

A peer without a readable file is not admitted, and a withdrawn identity stays withdrawn until a list
that can be read no longer names it. A snapshot is immutable, so that its holder can tell by identity whether
anything has changed since.
"""

from __future__ import annotations

import fnmatch
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Final

from cryptography import x509

from ddib_fed.errors import (
    AlreadyExists,
    DdibError,
    InputError,
    PeerNotFound,
    PolicyDenied,
)
from ddib_fed.files import private_folder, read_small, sync_folder, write_file
from ddib_fed.names import nearest, readable, resembles
from ddib_fed.trust.identity import Identity, check_institution
from ddib_fed.trust.peers import suspended as suspensions
from ddib_fed.trust.peers.file import Peer, compare, parse_peer
from ddib_fed.trust.peers.snapshot import Snapshot
from ddib_fed.trust.pki import parse_certificates
from ddib_fed.trust.withdrawn import WITHDRAWN, Withdrawn, judge, keep_last, last_withdrawn, remedy

MAX_PEERS: Final = 256
_PEER_FILES: Final = "[a-z0-9]*.json"
# A file changed less than this long ago may change again within the resolution of its time stamp.
_RACY_NS: Final = 2_000_000_000


_Signature = tuple[tuple[str, int, int, int, int], ...]
# Named here, because inside the class `list` is a method.
_Lines = list[str]
_Paths = list[Path]


class PeerStore:
    """The peer files and the own roots, seen as a snapshot that is always current; safe between threads.

    Args:
        folder: Where ``<institution>.json`` lie; it need not exist yet.
        own_institution: The own institution.
        pki_folder: Where its roots.pem lies, and the list of withdrawn identities when there is one.
        clock_ns: Unix time in nanoseconds, as time stamps of files have it.
    """

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
        self._contents: Mapping[Path, bytes | str] = {}
        self._snapshot: Snapshot | None = None
        self._problems: tuple[str, ...] = ()
        self._withdrawn_problem: str | None = None
        # Names missing from a list that was changed a moment ago: it may be half written.
        self._held: frozenset[Identity] = frozenset()

    @property
    def problem(self) -> str | None:
        """Files that cannot be read, for the node's health; empty if there are none."""
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

    def _changes_still(self, path: Path) -> bool:
        try:
            return abs(self._clock_ns() - path.stat().st_ctime_ns) < _RACY_NS
        except OSError:
            return True

    def check_withdrawn(self) -> int:
        """The number of withdrawn identities in a readable list.

        Raises:
            InputError: It cannot be read, or is missing: a node that starts with it might admit refused identities.
        """
        withdrawn = self.snapshot().withdrawn
        if self._withdrawn_problem is not None:
            raise InputError(self._withdrawn_problem, hint=remedy(self._pki_folder))
        return len(withdrawn)

    def keep_withdrawn(self) -> None:
        """Record who is withdrawn now, so that the next start detects a list that disappeared while the node was down.

        Raises:
            OSError: It cannot be written.
        """
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
                hint=f"ddib pki reinstate {peer.identity}, if that was a mistake",
            )
        snapshot.refuse_suspended(institution)
        return peer

    def list(self) -> tuple[Peer, ...]:
        """Every admitted peer, by institution, also the suspended."""
        return tuple(peer for _name, peer in sorted(self.snapshot().peers.items()))

    def reload(self) -> Sequence[str]:
        """Read everything again, ignoring time stamps; returns one line per change since the last read."""
        with self._lock:
            before = dict(self._snapshot.peers) if self._snapshot else {}
            refused = self._snapshot.withdrawn if self._snapshot else frozenset()
            paused = self._snapshot.suspended if self._snapshot else {}
            self._signature = None
        snapshot = self.snapshot()
        after = snapshot.peers
        changed = dict.fromkeys(before.keys() - after.keys(), "removed")
        changed |= dict.fromkeys(after.keys() - before.keys(), "added")
        changed |= {name: "changed" for name in after.keys() & before.keys() if after[name] != before[name]}
        lines = [f"{what} peer {name}" for name, what in sorted(changed.items())]
        lines += [f"withdrew {identity}" for identity in sorted(snapshot.withdrawn - refused)]
        lines += [f"reinstated {identity}" for identity in sorted(refused - snapshot.withdrawn)]
        lines += [f"suspended peer {name}" for name in sorted(snapshot.suspended.keys() - paused.keys())]
        lines += [f"resumed peer {name}" for name in sorted(paused.keys() - snapshot.suspended.keys())]
        return [*lines, *(f"not read: {problem}" for problem in self._problems)]

    def add(
        self,
        peer: Peer,
        *,
        fingerprints: Sequence[str],
        replace: bool = False,
        before: Callable[[], object] = lambda: None,
    ) -> Path:
        """Admit a peer; each of its new roots must have been compared out of band.

        Args:
            peer: From its file.
            fingerprints: Those that the other side read out; each is compared, also when the peer is known.
            replace: Whether an existing entry may be replaced, e.g. for a new root or address; roots
                that are pinned already need no fingerprint again.
            before: Called once nothing in the peer's file refuses it, before it is admitted; what it raises prevents
                that. Not called for a peer that is there already.

        Returns:
            Where it was written.

        Raises:
            PolicyDenied: A new root's fingerprint is not among `fingerprints`, one of these is of no root of
                the peer, or the peer is this institution, or its name looks like that of another.
            AlreadyExists: Another entry for the institution exists, and `replace` is false.
        """
        if not self.judge(peer, fingerprints=fingerprints, replace=replace):
            return self._path(peer.institution)
        before()
        private_folder(self._folder)
        try:
            write_file(self._path(peer.institution), peer.to_bytes(), private=True, overwrite=replace)
        except AlreadyExists as exc:
            raise _other_data(peer) from exc
        return self._path(peer.institution)

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
        """Refuse a peer, and do not call it, until it is resumed; durable when this returns.

        Args:
            institution: Whose node.
            reason: For the operators of this node, one line.
            before: As for `remove`.

        Returns:
            Whether it was not suspended before.

        Raises:
            PeerNotFound: It is not admitted.
            InputError: The reason cannot be used.
        """
        self._require(institution)
        before()
        return suspensions.suspend(self._folder, institution, reason=reason)

    def resume(self, institution: str, *, before: Callable[[], object] = lambda: None) -> bool:
        """Lift a suspension; whether there was one.

        Raises:
            PeerNotFound: The peer is not admitted.
        """
        self._require(institution)
        before()
        return suspensions.resume(self._folder, institution)

    def _require(self, institution: str) -> None:
        if not self._path(check_institution(institution)).exists():
            raise _no_peer(institution, self.snapshot().peers)

    def remove(self, institution: str, *, before: Callable[[], object] = lambda: None) -> None:
        """Remove a peer; it is refused from its next call. A suspension ends with it.

        Args:
            institution: Whose entry is removed, also one that cannot be read.
            before: Called for a peer that is there, before it is removed; what it raises prevents that.

        Raises:
            PeerNotFound: It is not there.
        """
        path = self._path(check_institution(institution))
        if not os.path.lexists(path):
            raise _no_peer(institution, self.snapshot().peers)
        before()
        path.unlink(missing_ok=True)
        sync_folder(self._folder)  # or a power failure brings the peer back
        suspensions.resume(self._folder, institution)

    def _path(self, institution: str) -> Path:
        return self._folder / f"{institution}.json"

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
        marks = [suspensions.mark(self._folder, path.stem) for path in files]
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

    def _read(self) -> dict[Path, bytes | str]:
        """Each file's content, or the reason (text) why it cannot be read."""
        contents: dict[Path, bytes | str] = {}
        for path in self._files():
            try:
                contents[path] = read_small(path)
            except DdibError as exc:
                contents[path] = exc.detail
        return contents

    def _build(self, contents: Mapping[Path, bytes | str]) -> Snapshot:
        problems: _Lines = []
        own_roots = self._own_roots(contents[self._roots_file], problems)
        peers: dict[str, Peer] = {}
        for path, content in contents.items():
            if path in {self._roots_file, self._withdrawn_file} or path.suffix == suspensions.SUFFIX:
                continue
            try:
                peers[path.stem] = self._parse(path, content)
            except InputError as exc:
                problems.append(exc.detail)
        withdrawn = self._withdrawn(contents.get(self._withdrawn_file), problems)
        self._problems = tuple(problems)
        pins = {name: peer.roots for name, peer in peers.items()} | {self._institution: own_roots}
        paused = {
            path.stem: suspensions.describe(content)
            for path, content in contents.items()
            if path.suffix == suspensions.SUFFIX
        }
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
        last = None if self._snapshot else last_withdrawn(self._pki_folder)
        before = self._snapshot.withdrawn if self._snapshot else (last or Withdrawn()).identities
        found = judge(content, before, self._withdrawn_file)
        problem = found.problem or (last.problem if last and content is None else None)
        self._withdrawn_problem, self._held = problem, frozenset()
        if problem:
            problems.append(problem)
            return before | found.identities
        if self._snapshot and self._changes_still(self._withdrawn_file):
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


def _no_peer(institution: str, known: Iterable[str]) -> PeerNotFound:
    close = nearest(institution, known)
    meant = f"did you mean {close}? `ddib peer list` lists the peers" if close else "ddib peer list"
    return PeerNotFound(f"{institution} is not a peer of this node", hint=meant)


def _roots_in(content: bytes | str, path: Path) -> tuple[x509.Certificate, ...]:
    if isinstance(content, str):
        raise InputError(content, hint="ddib pki init, or ddib pki install")
    return parse_certificates(content, str(path), hint="ddib pki show says what puts it right")


def _other_data(peer: Peer) -> AlreadyExists:
    return AlreadyExists(
        f"{peer.institution} is already a peer, with other data", hint="ddib peer add --replace FILE"
    )
