"""Reads the archive of a backup: each file that its record names, and no other, of the size and digest recorded."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from ddib_fed.errors import ChunkCorrupt, ConfigError, FileMissing, InputError
from ddib_fed.node.backup.record import CONFIG, MAX_RECORD_BYTES, NAME, BackupRecord, parse_record
from ddib_fed.node.config import NodeConfig
from ddib_fed.trust.audit.verification import Verified

PIECE = 1 << 20
Take = Callable[[str, IO[bytes]], str]
"""Reads a file of the archive, by its name, to its end; gives the SHA-256 of what it read, hex."""


def read_archive(path: Path, take: Take) -> BackupRecord:
    """Give every file of a backup to `take`, and return the record that they agree with.

    Raises:
        FileMissing: There is no such backup.
        InputError: It cannot be read, or a file of it not be written.
        ChunkCorrupt: It is no backup, or damaged.
        ConfigError: A later release made it.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            return _read(archive, path, take)
    except FileNotFoundError as error:
        raise FileMissing(f"there is no {path}", hint="ddib backup writes one") from error
    except tarfile.TarError as error:
        raise ChunkCorrupt(f"{path} is no backup of a node, or damaged: {error}") from error
    except OSError as error:
        raise InputError(f"{path} cannot be unpacked: {error.strerror}") from error


def _read(archive: tarfile.TarFile, path: Path, take: Take) -> BackupRecord:
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
        if take(member.name, content) != about.sha256:
            raise ChunkCorrupt(f"{path}: {member.name[:80]!a} has another digest than its record")
    if left:
        raise ChunkCorrupt(f"{path} ends before {min(left)}: {len(left)} files are missing")
    return record


def check_config(config: NodeConfig, record: BackupRecord, path: Path) -> None:
    """Return if a node.toml is that of the record's node, with its state in the node's folder.

    Raises:
        ChunkCorrupt: It is of another node.
        ConfigError: The state is elsewhere.
    """
    if (config.node.institution, config.node.name) != (record.institution, record.name):
        raise ChunkCorrupt(f"{path}: its {CONFIG} is of another node than its record")
    folder = config.folder.resolve()
    if not config.paths.state.resolve().is_relative_to(folder):
        raise ConfigError(
            f"{path}: its {CONFIG} puts the state at {config.node.state}, outside of the node's folder",
            hint="tar -xf unpacks it; move state/ there by hand",
        )


def check_log(found: Verified, record: BackupRecord, path: Path) -> None:
    """Return if the audit log is whole and ends where the record says.

    Raises:
        ChunkCorrupt: It is or does not.
    """
    if not found.ok or found.head != record.audit_head:
        raise ChunkCorrupt(f"{path}: the chain of its audit log is broken: {found.problem}")
