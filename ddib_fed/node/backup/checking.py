"""Checks a whole backup without writing anything: it holds keys and pictures, which a kill would leave behind."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Final

from ddib_fed.errors import ChunkCorrupt
from ddib_fed.node.backup.databases import HEADER, check_content
from ddib_fed.node.backup.reading import PIECE, check_config, check_log, read_archive
from ddib_fed.node.backup.record import CONFIG, STATE, BackupRecord
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.settings.paths import paths_of
from ddib_fed.toml_files import MAX_CONFIG_BYTES
from ddib_fed.trust.audit.verification import Verified, verify_lines

_AUDIT: Final = paths_of(Path(), STATE, bundle="", classifier=None).audit.as_posix()


def check_backup(path: Path) -> BackupRecord:
    """Read a whole backup, and return its record if everything in it is as recorded.

    Raises:
        FileMissing: There is no such file.
        InputError: It cannot be read.
        ChunkCorrupt: It is no backup, or damaged.
        ConfigError: A later release made it, or its node.toml cannot be used.
    """
    looked = _Looked()
    record = read_archive(path, looked.take)
    if looked.config is None:
        raise ChunkCorrupt(f"{path}: it has no {CONFIG}")
    check_config(NodeConfig.parse(looked.config, path / CONFIG), record, path)
    if looked.log is not None:
        check_log(looked.log, record, path)
    return record


class _Looked:
    """What was found in the files that have a form of their own.

    Attributes:
        config: Content of node.toml; None before it came.
        log: The audit log, verified; None without one.
    """

    def __init__(self) -> None:
        self.config: bytes | None = None
        self.log: Verified | None = None

    def take(self, name: str, content: IO[bytes]) -> str:
        """See `Take`. A database is held in memory for as long as it is looked at."""
        digest = hashlib.sha256()
        if name == _AUDIT:
            lines = _passed(content, digest.update)
            self.log = verify_lines(lines)
            deque(lines, maxlen=0)  # what follows a broken line
            return digest.hexdigest()
        first = content.read(len(HEADER))
        if name == CONFIG:
            self.config = first = first + content.read(MAX_CONFIG_BYTES)
        elif first == HEADER:
            first += content.read()
            check_content(name, first)
        digest.update(first)
        while data := content.read(PIECE):
            digest.update(data)
        return digest.hexdigest()


def _passed(lines: Iterable[bytes], to: Callable[[bytes], object]) -> Iterator[bytes]:
    for line in lines:
        to(line)
        yield line
