"""The first member of a backup, `backup.json`: whose it is, and each file with size and digest.

A backup of any earlier format is read: `MIGRATIONS` brings its record forward. One of a later format is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ddib_fed.errors import ChunkCorrupt, ConfigError

FORMAT_VERSION: Final = 1
NAME: Final = "backup.json"
CONFIG: Final = "node.toml"
STATE: Final = "state"
MAX_RECORD_BYTES: Final = 256 << 20
"""Some million files of jobs."""

# From each earlier version to the next.
MIGRATIONS: Final[Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]] = {}
_SAFE: Final = re.compile(r"[A-Za-z0-9._-]{1,255}\Z")


class FileRecord(BaseModel):
    """A file of the backup: size in bytes, SHA-256 in hex."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class BackupRecord(BaseModel):
    """The whole of `backup.json`.

    Attributes:
        format_version: Of the backup.
        release: Of ddib-fed that made it.
        created: When, ISO 8601, UTC.
        institution: Whose node.
        name: The node's name.
        roles: What it serves.
        model_sha256: Digest of the model that it served; empty if there was none. The model is not in the backup.
        jobs: How many jobs the source holds.
        audit_head: Digest of the last line of the audit log.
        files: By name: `node.toml`, and `state/...`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int
    release: str
    created: str
    institution: str
    name: str
    roles: tuple[str, ...]
    model_sha256: str
    jobs: int
    audit_head: str
    files: dict[str, FileRecord]

    @field_validator("files")
    @classmethod
    def _files(cls, value: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in value:
            if not is_safe(name):
                raise ValueError(f"{name[:80]!a} is no name of a file in a backup")
        if CONFIG not in value:
            raise ValueError(f"there is no {CONFIG}")
        return value

    def to_bytes(self) -> bytes:
        """The member of the archive."""
        return (self.model_dump_json(indent=1) + "\n").encode()


def is_safe(name: str) -> bool:
    """Whether a name is `node.toml` or one below `state/` that leads nowhere else."""
    parts = PurePosixPath(name).parts
    if name == CONFIG:
        return True
    plain = all(_SAFE.match(part) and part not in {".", ".."} for part in parts)
    return len(parts) > 1 and parts[0] == STATE and plain and "/".join(parts) == name


def parse_record(data: bytes, what: str) -> BackupRecord:
    """Read a record of this or an earlier format.

    Args:
        data: Its JSON.
        what: What to call the backup in an error.

    Raises:
        ConfigError: It is of a later format.
        ChunkCorrupt: It is no record.
    """
    try:
        content = json.loads(data)
        version = content["format_version"]
        if type(version) is int and version > FORMAT_VERSION:
            raise ConfigError(
                f"{what} has format version {version}, this release reads up to {FORMAT_VERSION}",
                hint="restore it with the release that made it, or a later one",
            )
        while version != FORMAT_VERSION:
            content = MIGRATIONS[version](content)
            version = content["format_version"]
        return BackupRecord.model_validate(content)
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as error:
        raise ChunkCorrupt(f"{what} is no backup of a node: its {NAME} cannot be read") from error
