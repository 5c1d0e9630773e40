"""Where a node's files are."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

# sun_path holds 108 bytes on Linux and 104 on macOS, with the closing zero.
MAX_SOCKET_PATH = 100


@dataclass(frozen=True, slots=True)
class NodePaths:
    """The paths of a node's files, absolute."""

    bundle: Path
    classifier: Path | None
    state: Path
    pki: Path
    peers: Path
    jobs: Path
    spool: Path
    audit: Path
    softening_key: Path
    calibrations: Path
    aggregate: Path
    costs: Path
    quotas: Path
    admin_socket: Path


def paths_of(folder: Path, state_folder: str, *, bundle: str, classifier: str | None) -> NodePaths:
    """The paths of a node's files."""
    state = folder / state_folder
    return NodePaths(
        bundle=folder / bundle,
        classifier=None if classifier is None else folder / classifier,
        state=state,
        pki=state / "pki",
        peers=state / "peers",
        jobs=state / "jobs.sqlite",
        spool=state / "spool",
        audit=state / "audit.jsonl",
        softening_key=state / "softening.key",
        calibrations=state / "calibrations",
        aggregate=state / "aggregate.json",
        costs=state / "engine.json",
        quotas=state / "quotas.json",
        admin_socket=_socket_path(state),
    )


def _socket_path(state: Path) -> Path:
    plain = state / "admin.sock"
    if len(str(plain).encode()) <= MAX_SOCKET_PATH:
        return plain
    name = hashlib.sha256(str(state).encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"ddib-{name}" / "admin.sock"
