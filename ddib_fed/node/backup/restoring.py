"""Makes a node's folder of a backup; nothing that is there is overwritten.

Every byte is compared with the record's digests before the folder appears under its name.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Final

from ddib_fed.errors import AlreadyExists
from ddib_fed.files import sync_folder
from ddib_fed.node.backup.databases import check_database, is_database
from ddib_fed.node.backup.leftovers import remove_interrupted, unfinished
from ddib_fed.node.backup.reading import PIECE, check_config, check_log, read_archive
from ddib_fed.node.backup.record import CONFIG, STATE, BackupRecord
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.model.library import recorded_choice
from ddib_fed.trust.audit.log import AuditLog
from ddib_fed.trust.audit.verification import verify

_UNFINISHED: Final = "ddib-restore"


def restore(path: Path, folder: Path) -> BackupRecord:
    """Make the folder of a node from its backup.

    Args:
        path: The backup.
        folder: Where node.toml and the state are to lie; it must not be there, or be empty.

    Returns:
        What was restored. The audit log gets a line that says so.

    Raises:
        AlreadyExists: The folder has something in it.
        FileMissing, InputError, ChunkCorrupt, ConfigError: As `check_backup`.
    """
    place = folder.resolve()
    if os.path.lexists(place) and (not place.is_dir() or any(place.iterdir())):
        raise AlreadyExists(f"{folder} exists and is not overwritten", hint="another --out folder")
    place.parent.mkdir(parents=True, exist_ok=True)
    remove_interrupted(place.parent, _UNFINISHED)
    with _unpacked(path, place.parent) as (record, unpacked):
        if place.exists():
            place.rmdir()
        unpacked.rename(place)
        sync_folder(place.parent)
    config = NodeConfig.load(place / CONFIG)
    AuditLog(config.paths.audit).write("restored", made=record.created, head=record.audit_head)
    return record


def left_out(config: NodeConfig, model_sha256: str) -> list[str]:
    """What a node needs and its backup does not hold, each with its place.

    Args:
        config: Of the node, restored or running.
        model_sha256: Digest of the model that it served, hex.

    Raises:
        ConfigError: Which model was chosen cannot be read.
    """
    paths = config.paths
    named = []
    if paths.classifier is not None:
        named.append(("the classifier", paths.classifier))
    if config.node.proxy_login is not None:
        named.append(("the proxy's login", config.folder / config.node.proxy_login))
    if config.policy.memorised:
        named.append(("the index of training pictures", config.folder / config.policy.memorised))
    return [*_models(config, model_sha256), *(f"{what} at {place}" for what, place in named)]


def _models(config: NodeConfig, served: str) -> list[str]:
    """The model that was served; of an installed one also the configured one, beside which alone the choice counts."""
    paths, chosen = config.paths, recorded_choice(config)
    if chosen is None or served != chosen.active or served == chosen.configured:
        return [f"the model {served[:12]}".rstrip() + f" at {paths.bundle}"]
    configured = [f"the model {chosen.configured[:12]} at {paths.bundle}"] if chosen.configured else []
    command = f"ddib model install BUNDLE --config {shlex.quote(str(config.path))}"
    return [*configured, f"the model {served[:12]}, which was active, at {paths.models / served}: {command}"]


@contextmanager
def _unpacked(path: Path, beside: Path) -> Iterator[tuple[BackupRecord, Path]]:
    """The record, and a folder with the node's files, checked; it goes unless it was moved away."""
    folder = Path(tempfile.mkdtemp(prefix=unfinished(_UNFINISHED), dir=beside))  # mode 0700
    try:
        record = read_archive(path, lambda name, content: _write(folder / PurePosixPath(name), content))
        _settle(folder, record, path)
        yield record, folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(target: Path, content: IO[bytes]) -> str:
    """See `Take`."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256()
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        while data := content.read(PIECE):
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _settle(folder: Path, record: BackupRecord, path: Path) -> None:
    """Put the state where node.toml says, and check what has a form of its own: databases and the audit log."""
    config = NodeConfig.load(folder / CONFIG)
    check_config(config, record, path)
    state, unpacked = config.paths.state, folder / STATE
    if unpacked.exists() and state != unpacked:
        state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unpacked.rename(state)
    for file in state.rglob("*"):
        if file.is_file() and is_database(file):
            check_database(file)
    if config.paths.audit.exists():
        check_log(verify(config.paths.audit), record, path)
