"""Jobs and items as frozen records; the names of states are those of translation.proto without their prefix.

An item goes RECEIVED, ENCODED, DECODED, DELIVERED, or from one of the first two to FAILED.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from ddib_fed.errors import DdibError
from ddib_fed.protocol.details import to_detail
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.v1.common_pb2 import ErrorDetail
from ddib_fed.v1.translation_pb2 import JobHeader

OPEN_STATES = frozenset({JobState.QUEUED, JobState.RUNNING})

PENDING_ITEMS = frozenset({ItemState.RECEIVED, ItemState.ENCODED})
"""Items that are still to be worked on."""


class Part(StrEnum):
    """A file of an item in the spool; the last four are what a client fetches."""

    INPUT = "input"
    DECODED = "decoded"
    ENCODED = "encoded"
    ROUNDTRIP_LATENT = "roundtrip_latent"
    TRANSLATION = "translation"
    RETURNED = "returned"
    LATENT = "latent"
    SOURCE = "source"


KEPT = frozenset({Part.INPUT, Part.DECODED})
RESULTS = frozenset({Part.TRANSLATION, Part.RETURNED, Part.LATENT, Part.SOURCE})

# From a state to another: the part that must be in the spool first, and what the spool drops afterwards.
# Back to RECEIVED: a stored latent that is no longer of the model that is served is made again.
TRANSITIONS: Mapping[tuple[ItemState, ItemState], tuple[Part | None, frozenset[Part]]] = {
    (ItemState.RECEIVED, ItemState.ENCODED): (Part.ENCODED, frozenset()),
    (ItemState.ENCODED, ItemState.RECEIVED): (None, frozenset(Part) - KEPT),
    (ItemState.ENCODED, ItemState.DECODED): (Part.TRANSLATION, frozenset(Part) - RESULTS),
    (ItemState.DECODED, ItemState.DELIVERED): (None, frozenset(Part)),
    (ItemState.RECEIVED, ItemState.FAILED): (None, frozenset(Part)),
    (ItemState.ENCODED, ItemState.FAILED): (None, frozenset(Part)),
}


def error_record(error: DdibError) -> ErrorDetail:
    """What is kept of an error, and told to the client: nothing of an exception's text."""
    institution = error.hop.rpartition(" ")[2] if error.hop.startswith("target ") else ""
    detail = to_detail(error, institution, error.incident)
    detail.ClearField("retry_after_ms")
    return detail


def last_cause(detail: ErrorDetail) -> str:
    """A kept error in a few words: who, what was found, and the reason."""
    who = detail.institution or detail.facts.get("peer", "")
    what = detail.facts.get("found") or f"{detail.sentence} ({detail.reason})"
    return f"{who}: {what}" if who else what


def classes_of(request: JobHeader, item: int) -> tuple[str, str]:
    """Source and target class of an item, as the client named them; empty for none."""
    asked = request.item_classes[item] if request.item_classes else request
    return asked.source_class, asked.target_class


def class_pairs(request: JobHeader) -> tuple[tuple[str, str], ...]:
    """The different pairs of source and target class in a job."""
    each = request.item_classes or (request,)
    return tuple(dict.fromkeys((asked.source_class, asked.target_class) for asked in each))


def content_digest(request: JobHeader, items: Iterable[Item]) -> bytes:
    """What decides whether the same request id has the same content: all of the request but its id, and the files."""
    settings = JobHeader.FromString(request.SerializeToString())
    settings.ClearField("request_id")
    digest = hashlib.sha256(settings.SerializeToString(deterministic=True))
    for item in items:
        digest.update(f" {item.media_type} {item.sha256.hex()}".encode())
    return digest.digest()


@dataclass(frozen=True, slots=True)
class PartRecord:
    """A file in the spool: what it is, how large, and the digest it was written with."""

    part: Part
    media_type: int
    size_bytes: int
    sha256: bytes
    file: str
    range: int | None = None

    @property
    def name(self) -> str:
        return str(self.part) if self.range is None else f"{self.part}.{self.range}"


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a stored job; size and digest are those of the file that the client sent."""

    index: int
    state: ItemState
    media_type: int
    size_bytes: int
    sha256: bytes
    provenance: Mapping[str, Any] = field(default_factory=dict)
    error: ErrorDetail | None = None

    @property
    def model_sha256(self) -> str:
        return str(self.provenance.get("source_model_sha256", ""))


@dataclass(frozen=True, slots=True)
class Job:
    """A stored job; `list` leaves the items out."""

    job_id: str
    owner: str
    request: JobHeader
    state: JobState
    created: float
    started: float
    finished: float
    deadline: float
    expires: float
    cancel_requested: bool
    error: ErrorDetail | None
    items: tuple[Item, ...] = ()

    @property
    def accepted(self) -> float:
        return self.deadline - self.request.deadline_s


JOB_DEADLINE_S: Final = 86_400.0
"""A job is given up after this, counting time in which the node runs. No call lasts longer (`CONNECTION_GRACE_S`)."""


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What the store takes on."""

    max_open_jobs: int = 64
    max_spool_bytes: int = 4 << 30
    max_staged_bytes: int = 2 << 30
    retention_s: float = 7 * 86_400.0
    default_deadline_s: float = JOB_DEADLINE_S
    retry_after_s: float = 30.0


def insert_part(db: sqlite3.Connection, job_id: str, item: int, part: PartRecord) -> list[str]:
    """A file that is in the spool now; as `delete_parts`, of the one whose place it takes."""
    replaced = _delete(db, job_id, item, lambda record: record.name == part.name)
    db.execute(
        "INSERT INTO parts (job_id, item, part, file, media_type, size_bytes, sha256)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (job_id, item, part.name, part.file, part.media_type, part.size_bytes, part.sha256),
    )
    return replaced


def delete_parts(db: sqlite3.Connection, job_id: str, item: int, parts: Iterable[Part]) -> list[str]:
    wanted = set(parts)
    return _delete(db, job_id, item, lambda record: record.part in wanted)


def delete_ranges(db: sqlite3.Connection, job_id: str, item: int) -> list[str]:
    return _delete(db, job_id, item, lambda record: record.range is not None)


def _delete(
    db: sqlite3.Connection, job_id: str, item: int, chosen: Callable[[PartRecord], bool]
) -> list[str]:
    rows = db.execute("SELECT * FROM parts WHERE job_id = ? AND item = ?", (job_id, item)).fetchall()
    going = [record for record in map(part_from_row, rows) if chosen(record)]
    db.executemany(
        "DELETE FROM parts WHERE job_id = ? AND item = ? AND part = ?",
        [(job_id, item, record.name) for record in going],
    )
    return [record.file for record in going]


def save_state(db: sqlite3.Connection, key: str, value: float) -> None:
    db.execute("INSERT OR REPLACE INTO node_state (key, value) VALUES (?, ?)", (key, value))


def update_item(
    db: sqlite3.Connection,
    job_id: str,
    item: int,
    state: ItemState,
    *,
    provenance: Mapping[str, Any] | None = None,
    error: ErrorDetail | None = None,
) -> None:
    """A state, and what is given of the rest."""
    db.execute(
        "UPDATE items SET state = ?, provenance = coalesce(?, provenance), error = coalesce(?, error)"
        " WHERE job_id = ? AND item = ?",
        (
            state,
            None if provenance is None else json.dumps(provenance, sort_keys=True, allow_nan=False),
            error and error.SerializeToString(),
            job_id,
            item,
        ),
    )


def job_from_row(row: sqlite3.Row, items: Iterable[sqlite3.Row] = ()) -> Job:
    """A job."""
    return Job(
        job_id=row["job_id"],
        owner=row["owner"],
        request=JobHeader.FromString(row["request"]),
        state=JobState(row["state"]),
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
        deadline=row["deadline"],
        expires=row["expires"],
        cancel_requested=bool(row["cancel_requested"]),
        error=ErrorDetail.FromString(row["error"]) if row["error"] else None,
        items=tuple(map(item_from_row, items)),
    )


def item_from_row(row: sqlite3.Row) -> Item:
    """An item."""
    return Item(
        index=row["item"],
        state=ItemState(row["state"]),
        media_type=row["media_type"],
        size_bytes=row["size_bytes"],
        sha256=row["sha256"],
        provenance=json.loads(row["provenance"]),
        error=ErrorDetail.FromString(row["error"]) if row["error"] else None,
    )


def part_from_row(row: sqlite3.Row) -> PartRecord:
    """A file of the spool."""
    name, _, number = row["part"].partition(".")
    return PartRecord(
        Part(name),
        row["media_type"],
        row["size_bytes"],
        row["sha256"],
        row["file"],
        int(number) if number else None,
    )
