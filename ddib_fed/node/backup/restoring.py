"""Checks a backup, and makes a node's folder of it; nothing that is there is overwritten.

Every byte is compared with the record's digests before the folder appears under its name.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

from ddib_fed.errors import AlreadyExists, ChunkCorrupt, ConfigError, FileMissing, InputError
from ddib_fed.files import sync_folder
from ddib_fed.node.backup.databases import check_database, is_database
from ddib_fed.node.backup.record import (
    CONFIG,
    MAX_RECORD_BYTES,
    NAME,
    STATE,
    BackupRecord,
    FileRecord,
    parse_record,
)
from ddib_fed.node.config import NodeConfig
from ddib_fed.trust.audit.log import AuditLog
from ddib_fed.trust.audit.verification import verify

_PIECE: Final = 1 << 20


def check_backup(path: Path) -> BackupRecord:
    """Read a whole backup, and return its record if everything in it is as recorded.

    Raises:
        FileMissing: There is no such file.
        InputError: It cannot be read.
        ChunkCorrupt: It is no backup, or damaged.
        ConfigError: A later release made it, or its node.toml cannot be used.
    """
    with _unpacked(path, Path(tempfile.gettempdir())) as (record, _folder):
        return record


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
    with _unpacked(path, place.parent) as (record, unpacked):
        if place.exists():
            place.rmdir()
        unpacked.rename(place)
        sync_folder(place.parent)
    config = NodeConfig.load(place / CONFIG)
    AuditLog(config.paths.audit).write("restored", made=record.created, head=record.audit_head)
    return record


@contextmanager
def _unpacked(path: Path, beside: Path) -> Iterator[tuple[BackupRecord, Path]]:
    """The record, and a folder with the node's files, checked; it goes unless it was moved away."""
    folder = Path(tempfile.mkdtemp(prefix=".restore-", dir=beside))  # mode 0700
    try:
        try:
            with tarfile.open(path, "r:") as archive:
                record = _unpack(archive, path, folder)
        except FileNotFoundError as error:
            raise FileMissing(f"there is no {path}", hint="ddib backup writes one") from error
        except tarfile.TarError as error:
            raise ChunkCorrupt(f"{path} is no backup of a node, or damaged: {error}") from error
        except OSError as error:
            raise InputError(f"{path} cannot be unpacked: {error.strerror}") from error
        _settle(folder, record, path)
        yield record, folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(archive: tarfile.TarFile, path: Path, folder: Path) -> BackupRecord:
    """Write each member that the record names, and no other; sizes and digests are the record's."""
    first = archive.next()
    content = None if first is None or first.name != NAME else archive.extractfile(first)
    if content is None:
        raise ChunkCorrupt(f"{path} is no backup of a node: it does not begin with {NAME}")
    record = parse_record(content.read(MAX_RECORD_BYTES), str(path))
    left = dict(record.files)
    while (member := archive.next()) is not None:
        about = left.pop(member.name, None)
        content = archive.extractfile(member) if member.isreg() else None
        if about is None or content is None or member.size != about.size:
            raise ChunkCorrupt(f"{path}: {member.name[:80]!a} is not what its record says")
        _write(folder / PurePosixPath(member.name), content, about, path)
    if left:
        raise ChunkCorrupt(f"{path} ends before {min(left)}: {len(left)} files are missing")
    return record


def _write(target: Path, content: object, about: FileRecord, path: Path) -> None:
    reader: BinaryIO = content  # type: ignore[assignment]  # what extractfile returns
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    digest = hashlib.sha256()
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        while data := reader.read(_PIECE):
            digest.update(data)
            file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != about.sha256:
        raise ChunkCorrupt(f"{path}: {target.name} has another digest than its record")


def _settle(folder: Path, record: BackupRecord, path: Path) -> None:
    """Put the state where node.toml says, and check what has a form of its own: databases and the audit log."""
    config = NodeConfig.load(folder / CONFIG)
    if (config.node.institution, config.node.name) != (record.institution, record.name):
        raise ChunkCorrupt(f"{path}: its {CONFIG} is of another node than its record")
    state = config.paths.state
    if not state.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(
            f"{path}: its {CONFIG} puts the state at {config.node.state}, outside of the node's folder",
            hint="tar -xf unpacks it; move state/ there by hand",
        )
    unpacked = folder / STATE
    if unpacked.exists() and state != unpacked:
        state.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        unpacked.rename(state)
    for file in state.rglob("*"):
        if file.is_file() and is_database(file):
            check_database(file)
    if config.paths.audit.exists():
        found = verify(config.paths.audit)
        if not found.ok or found.head != record.audit_head:
            raise ChunkCorrupt(f"{path}: the chain of its audit log is broken: {found.problem}")
