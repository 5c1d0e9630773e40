"""Makes a backup of a node, which may run: one private tar file that holds its keys.

SQLite databases are copied through SQLite's own backup, logs up to their last whole line, and other files as they are:
the node replaces those as a whole. What belongs to a role is copied by the role. The model is not in it.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from ddib_fed.errors import AlreadyExists, InputError
from ddib_fed.files import sync_folder
from ddib_fed.node.backup.databases import copy_database, is_database
from ddib_fed.node.backup.leftovers import remove_interrupted, unfinished
from ddib_fed.node.backup.record import (
    CONFIG,
    FORMAT_VERSION,
    NAME,
    STATE,
    BackupRecord,
    FileRecord,
    is_safe,
)
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.model.library import active_digest
from ddib_fed.node.role import find_roles
from ddib_fed.trust.audit.verification import verify
from ddib_fed.version import __version__

# Made again by every node: sockets, locks, what SQLite keeps beside a database, measured times of calls.
_LEFT_OUT: Final = (".sock", ".lock", "-wal", "-shm", "-journal")
_STAGING: Final = "backup"


def make_backup(config: NodeConfig, path: Path, *, now: datetime | None = None) -> BackupRecord:
    """Write a backup of a node, consistent although it runs; on the disk when this returns.

    Args:
        config: Of the node.
        path: The file; mode 0600, for it holds private keys.
        now: For the record.

    Raises:
        AlreadyExists: There is a file.
        InputError: It cannot be written there, or there is no state to back up.
        DdibError: As the roles' copies raise.
    """
    state = config.paths.state
    if os.path.lexists(path):
        raise AlreadyExists(f"{path} exists and is not overwritten", hint="another --out")
    if not state.is_dir():
        raise InputError(f"there is no {state}: this node has no state yet")
    aside = f"ddib-backup-{config.node.name}.{config.node.institution}"
    remove_interrupted(state, _STAGING)  # its links would keep files of jobs that have ended
    remove_interrupted(path.parent, aside)
    # In the state folder itself: files of the spool are linked, not copied.
    with tempfile.TemporaryDirectory(prefix=unfinished(_STAGING), dir=state) as folder:
        staged = Path(folder)
        (staged / CONFIG).write_bytes(config.path.read_bytes())
        jobs = sum(role.copy(config, staged / STATE) for role in find_roles(config.node.roles))
        _copy_rest(config, staged / STATE)
        record = _record(config, staged, jobs, now or datetime.now(UTC))
        try:
            _write_archive(path, staged, record, unfinished(aside))
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror}") from error
    return record


def _copy_rest(config: NodeConfig, to: Path) -> None:
    """Everything in the state folder that no role has copied."""
    paths = config.paths
    left_out = {paths.jobs, paths.spool, paths.costs, paths.models, paths.admin_socket}
    to.mkdir(mode=0o700, exist_ok=True)
    for source in sorted(_files(paths.state, left_out)):
        name = source.relative_to(paths.state)
        if not is_safe(f"{STATE}/{name.as_posix()}"):
            raise InputError(f"{source} has a name that no file of a node has", hint="move it elsewhere")
        target = to / name
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _copy(source, target)


def _files(folder: Path, left_out: set[Path]) -> list[Path]:
    found: list[Path] = []
    for entry in folder.iterdir():
        hidden = entry.name.startswith(".")  # half written, or another backup
        if entry in left_out or hidden or entry.name.endswith(_LEFT_OUT):
            continue
        if entry.is_dir():
            found += _files(entry, left_out)
        elif entry.is_file():
            found.append(entry)
    return found


def _copy(source: Path, target: Path) -> None:
    if is_database(source):
        copy_database(source, target)
        return
    data = source.read_bytes()
    if source.suffix == ".jsonl":
        data = data[: data.rfind(b"\n") + 1]
    target.write_bytes(data)


def _record(config: NodeConfig, staged: Path, jobs: int, now: datetime) -> BackupRecord:
    audit = staged / STATE / config.paths.audit.name
    files = {
        file.relative_to(staged).as_posix(): FileRecord(size=file.stat().st_size, sha256=_digest(file))
        for file in sorted(staged.rglob("*"))
        if file.is_file()
    }
    return BackupRecord(
        format_version=FORMAT_VERSION,
        release=__version__,
        created=now.isoformat(timespec="seconds"),
        institution=config.node.institution,
        name=config.node.name,
        roles=config.node.roles,
        model_sha256=active_digest(config),
        jobs=jobs,
        audit_head=verify(audit).head if audit.exists() else "",
        files=files,
    )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_archive(path: Path, staged: Path, record: BackupRecord, prefix: str) -> None:
    """The archive beside its place, synced, then linked there: never half of it under its name."""
    descriptor, aside = tempfile.mkstemp(prefix=prefix, dir=path.parent)  # mode 0600
    try:
        with os.fdopen(descriptor, "wb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
                _add(archive, NAME, io.BytesIO(data := record.to_bytes()), len(data))
                for name, about in record.files.items():
                    with (staged / name).open("rb") as content:
                        _add(archive, name, content, about.size)
            file.flush()
            os.fsync(file.fileno())
        os.link(aside, path)
    finally:
        Path(aside).unlink()
    sync_folder(path.parent)


def _add(archive: tarfile.TarFile, name: str, content: object, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    archive.addfile(member, content)  # type: ignore[arg-type]  # a file for reading
