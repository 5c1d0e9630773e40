"""The periodic check of a running node: disk, trust, certificate and audit log; the lines of start and stop.

What changed is in the audit log, and what is wrong in the node's state, within `certificates.CHECK_INTERVAL_S`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import shlex
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from ddib_fed.errors import DdibError
from ddib_fed.files import is_disk_full
from ddib_fed.node.role import NodeContext
from ddib_fed.security.admission import Refusals
from ddib_fed.security.audit import AuditLog, Value
from ddib_fed.security.peers import PeerStore, trust_changes
from ddib_fed.security.pki import fingerprint, load_identity
from ddib_fed.security.tls import ServerCredentials

log = logging.getLogger(__name__)

LEAST_FREE_BYTES: Final = 8 << 20
"""Below it the node is degraded: half of what a start asks for, room for the databases of the jobs that it has."""
PROBE_BYTES: Final = 64 << 10
LOOK_EVERY_S: Final = 2.0
_PROBE: Final = ".room"


class DiskWatch:
    """Whether a node can write: it says so before a job finds out, and again when there is room.

    A file is written and removed in each folder, at most every `LOOK_EVERY_S`: that also finds a full quota, a
    read-only mount and a broken disk, which the number of free bytes does not show. Safe to use from any thread.
    """

    def __init__(self, folders: Sequence[Path], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._folders = tuple(dict.fromkeys(folders))
        self._clock = clock
        self._lock = threading.Lock()
        self._next_look = -math.inf
        self._problem: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the node cannot write, with the folder; None while it can."""
        with self._lock:
            if self._clock() >= self._next_look:
                self._next_look = self._clock() + LOOK_EVERY_S
                self._problem = next(filter(None, map(_problem_of, self._folders)), None)
            return self._problem


def _problem_of(folder: Path) -> str | None:
    if not folder.is_dir():  # made when it is first needed
        return None
    path, free = folder / _PROBE, 0
    try:
        free = shutil.disk_usage(folder).free
        if free >= LEAST_FREE_BYTES:
            with open(path, "wb", opener=_private, buffering=0) as file:
                file.write(bytes(PROBE_BYTES))
            return None
    except OSError as error:
        if not is_disk_full(error):
            return f"{folder} cannot be written: {error.strerror or error}"
        free = 0
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    room = f"{free >> 10} KiB left, {LEAST_FREE_BYTES >> 20} MiB needed"
    return f"the disk of {folder} is full ({room}); df -h {shlex.quote(str(folder))}"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class Observed:
    """Writes to the audit log each change of whom a running node trusts, whoever made the change.

    The commands write what an operator did. A file that somebody put into the state folder by hand has no such line.
    """

    def __init__(self, audit: AuditLog, peers: PeerStore, pki_folder: Path) -> None:
        self._audit = audit
        self._peers = peers
        self._pki_folder = pki_folder
        self._snapshot = peers.snapshot()
        self._certificate = self._own()

    def summary(self) -> dict[str, str | int | list[str]]:
        """Whom and what the node trusts now, for the line of its start; `trust` is a digest over all of it."""
        snapshot = self._snapshot
        return {
            "peers": sorted(snapshot.peers),
            "suspended": sorted(snapshot.suspended),
            "withdrawn": len(snapshot.withdrawn),
            "certificate": self._certificate[0] if self._certificate else "",
            "trust": hashlib.sha256("\n".join(sorted(snapshot.described())).encode()).hexdigest(),
        }

    def look(self) -> None:
        """Write what changed since the last look; after an OSError it is written at the next one."""
        snapshot = self._peers.snapshot()
        changes = trust_changes(self._snapshot, snapshot)
        if changes:
            self._audit.write("trust_changed", changes=changes)
        for change in changes:
            log.info("%s", change)
        self._snapshot = snapshot
        certificate = self._own()
        if certificate is not None and certificate != self._certificate:
            self._audit.write("certificate_changed", certificate=certificate[0], until=certificate[1])
            self._certificate = certificate

    def _own(self) -> tuple[str, str] | None:
        """Fingerprint and end of the node's own certificate, as it lies in its folder."""
        try:
            own = load_identity(self._pki_folder)
        except (DdibError, OSError):  # the node's health says so
            return None
        return fingerprint(own.certificate), own.not_after.isoformat()


class Watch:
    """Looks after the files that say whom a node trusts, and after the log of what it did."""

    def __init__(
        self,
        node: NodeContext,
        credentials: ServerCredentials,
        disk: DiskWatch,
        refusals: Refusals,
        peers_changed: Callable[[], object],
    ) -> None:
        self._node = node
        self._credentials = credentials
        self._disk = disk
        self._refusals = refusals
        self._peers_changed = peers_changed
        self._observed = Observed(node.audit, node.peers, node.config.paths.pki)
        self._said: str | None = None
        self._started = False
        # Both the renewal thread and the operator's reload look: an older result must not overwrite a newer.
        self._lock = threading.Lock()

    def look(self) -> None:
        """Check once; a problem is logged when it begins and when it ends."""
        self._peers_changed()
        self._refusals.flush()
        with self._lock:
            problem = self._disk.problem or self._credentials.problem
            try:
                self._observed.look()
            except OSError as error:
                problem = problem or f"the audit log cannot be written: {error}"
            problem = problem or self._node.audit.look()
            if problem and problem != self._said:
                log.error("degraded: %s", problem)
            elif self._said and not problem:
                log.info("no longer degraded: %s", self._said)
            self._said = problem

    def started(self, **values: Value) -> None:
        self._node.audit.write("node_started", **values, **self._observed.summary())
        self._started = True

    def stopped(self, **values: Value) -> None:
        """Write what is merged, and the line of a stop if there was one of a start."""
        self._refusals.flush(everything=True)
        if not self._started:
            return
        try:
            self._node.audit.write("node_stopped", **values)
        except OSError:
            log.exception("the stop could not be written to the audit log")
