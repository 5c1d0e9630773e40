"""A copy of the jobs and their files as they are at one moment, while a node works on them.

A row names only files that are there, but a file goes once its row has gone. So the files are taken first, by links,
then the rows; what was written in between is taken after. What both came and went meanwhile makes another try.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from ddib_fed.errors import StateConflict
from ddib_fed.node.backup.databases import copy_database
from source_node.jobs.spool import part_name

TRIES: Final = 20


def copy_jobs(database: Path, spool: Path, to: Path) -> int:
    """Copy a source node's jobs.

    Args:
        database: The job database.
        spool: The folder of files.
        to: The folder of the copy; it gets the names of both.

    Returns:
        How many jobs the copy holds.

    Raises:
        InputError: The database cannot be read.
        StateConflict: The jobs change faster than they can be copied.
    """
    to.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not database.exists():
        return 0
    for _ in range(TRIES):
        links, rows = to / spool.name, to / database.name
        shutil.rmtree(links, ignore_errors=True)
        rows.unlink(missing_ok=True)
        _link_all(spool, links)
        copy_database(database, rows)
        named = _named(rows)
        if all(_is_there(name, digest, spool, links) for name, digest in named.items()):
            _keep_only(links, named)
            return _count(rows)
    raise StateConflict(
        "the jobs change faster than they can be copied", hint="ddib drain, then make the backup"
    )


def _named(rows: Path) -> Mapping[str, bytes]:
    """The files that the rows name, "JOB/ITEM.PART", with their digests."""
    with closing(sqlite3.connect(rows)) as database:
        found = database.execute("SELECT job_id, item, part, sha256 FROM parts").fetchall()
    return {part_name(job, item, part): digest for job, item, part, digest in found}


def _count(rows: Path) -> int:
    with closing(sqlite3.connect(rows)) as database:
        return int(database.execute("SELECT count(*) FROM jobs").fetchone()[0])


def _link_all(spool: Path, links: Path) -> None:
    for folder, _, names in os.walk(spool):  # passes over a folder that goes meanwhile, as a job's does
        for name in names:
            source = Path(folder, name)
            _link(source, links / source.relative_to(spool))


def _link(source: Path, target: Path) -> None:
    """The same bytes under another name: a file of the spool never changes, it is replaced or removed."""
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        os.link(source, target)


def _is_there(name: str, digest: bytes, spool: Path, links: Path) -> bool:
    """Whether the copy has a file that a row names; one that was written or replaced meanwhile is taken now."""
    path = links / name
    if _has(path, digest):
        return True
    _link(spool / name, path)
    # What the disk has damaged is as damaged in the copy: the node makes it again, or says so.
    return path.exists()


def _has(path: Path, digest: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest() == digest
    except FileNotFoundError:
        return False


def _keep_only(links: Path, named: Mapping[str, bytes]) -> None:
    for path in list(links.rglob("*")) if links.exists() else []:
        if path.is_file() and path.relative_to(links).as_posix() not in named:
            path.unlink()
