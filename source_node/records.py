"""Jobs, items and their files as frozen records, and how the database has them as rows.

An item goes RECEIVED, ENCODED, DECODED, DELIVERED, or from one of the first two to FAILED.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from ddib_fed.errors import ChunkCorrupt, DdibError, ItemNotFound, JobNotFound, StateConflict
from ddib_fed.protocol.details import to_detail
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.store import Transaction
from ddib_fed.v1 import common_pb2
from ddib_fed.v1.common_pb2 import ErrorDetail
from ddib_fed.v1.translation_pb2 import JobHeader

JOB_DEADLINE_S: Final = 86_400.0
"""A job is given up after this, counting time in which the node runs. No call lasts longer (`CONNECTION_GRACE_S`)."""
OPEN_STATES: Final = (JobState.QUEUED, JobState.RUNNING)
PENDING_ITEMS: Final = (ItemState.RECEIVED, ItemState.ENCODED)
"""Items that are still to be worked on."""
CANCELLED_ERROR: Final = ErrorDetail(reason="CANCELLED", sentence="cancelled")


class SpoolPart(StrEnum):
    """A file of an item in the spool; of the encoded latent, one for each range. A client fetches the last four."""

    INPUT = "input"
    DECODED = "decoded"
    ENCODED = "encoded"
    TRANSLATION = "translation"
    RETURNED = "returned"
    LATENT = "latent"
    SOURCE = "source"


KEPT: Final = frozenset({SpoolPart.INPUT, SpoolPart.DECODED})
RESULTS: Final = frozenset({SpoolPart.TRANSLATION, SpoolPart.RETURNED, SpoolPart.LATENT, SpoolPart.SOURCE})
ALL: Final = frozenset(SpoolPart)

# From a state to another: the part that must be in the spool first, and what the spool drops afterwards.
# Back to RECEIVED: a latent that cannot be sent any more is made again.
TRANSITIONS: Final[Mapping[tuple[ItemState, ItemState], tuple[SpoolPart | None, frozenset[SpoolPart]]]] = {
    (ItemState.RECEIVED, ItemState.RECEIVED): (None, ALL - KEPT),
    (ItemState.RECEIVED, ItemState.ENCODED): (SpoolPart.ENCODED, frozenset()),
    (ItemState.ENCODED, ItemState.RECEIVED): (None, ALL - KEPT),
    (ItemState.ENCODED, ItemState.DECODED): (SpoolPart.TRANSLATION, ALL - RESULTS),
    (ItemState.DECODED, ItemState.DELIVERED): (None, ALL),
    (ItemState.RECEIVED, ItemState.FAILED): (None, ALL),
    (ItemState.ENCODED, ItemState.FAILED): (None, ALL),
}


def classes_of(request: JobHeader, item: int) -> tuple[str, str]:
    """Source and target class of an item, as the client named them; empty for none."""
    asked = request.item_classes[item] if request.item_classes else request
    return asked.source_class, asked.target_class


def error_record(error: DdibError) -> ErrorDetail:
    """An error as it is kept and sent to the client, without the text of an exception."""
    institution = error.hop.rpartition(" ")[2] if error.hop.startswith("target ") else ""
    detail = to_detail(error, institution, error.incident)
    detail.ClearField("retry_after_ms")
    return detail


@dataclass(frozen=True, slots=True)
class SpoolFile:
    """A row of `parts`: a file in the spool, how large it is, and the digest it was written with."""

    part: SpoolPart
    range: int
    file: str
    media_type: int
    size_bytes: int
    sha256: bytes


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file of an item to keep; takes the place of one of the same part and range."""

    part: SpoolPart
    data: bytes
    media_type: int = common_pb2.MEDIA_TYPE_NPY
    range: int = 0


@dataclass(frozen=True, slots=True)
class StoredItem:
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
class StoredJob:
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
    items: tuple[StoredItem, ...] = ()

    @property
    def accepted(self) -> float:
        return self.deadline - self.request.deadline_s


@dataclass(frozen=True, slots=True)
class ItemCounts:
    """How many items of a job are in each state."""

    by_state: Mapping[ItemState, int] = field(default_factory=dict)

    @property
    def items(self) -> int:
        return sum(self.by_state.values())

    def count(self, *states: ItemState) -> int:
        return sum(self.by_state.get(state, 0) for state in states)

    @property
    def done(self) -> int:
        return self.items - self.count(*PENDING_ITEMS)


@dataclass(frozen=True, slots=True)
class DueJob:
    """A queued job that may be tried now."""

    job_id: str
    owner: str
    target: str
    items: int
    size_bytes: int
    overdue: bool


@dataclass(frozen=True, slots=True)
class JobLimits:
    """What the store takes on."""

    max_open_jobs: int = 64
    max_spool_bytes: int = 4 << 30
    max_staged_bytes: int = 2 << 30
    retention_s: float = 7 * 86_400.0
    default_deadline_s: float = JOB_DEADLINE_S
    retry_after_s: float = 30.0


PARTS_OF: Final = (
    "SELECT part, range, file, media_type, size_bytes, sha256 FROM parts WHERE job_id = ? AND item = ?"
)
JOB_OF_REQUEST: Final = "SELECT * FROM jobs WHERE owner = ? AND request_id = ?"


def content_digest(request: JobHeader, items: Iterable[StoredItem]) -> bytes:
    """What decides whether the same request id has the same content: all of the request but its id, and the files."""
    settings = JobHeader.FromString(request.SerializeToString())
    settings.ClearField("request_id")
    digest = hashlib.sha256(settings.SerializeToString(deterministic=True))
    for item in items:
        digest.update(f" {item.media_type} {item.sha256.hex()}".encode())
    return digest.digest()


def save_state(db: Transaction, key: str, value: float) -> None:
    db.execute("INSERT OR REPLACE INTO node_state (key, value) VALUES (?, ?)", (key, value))


def own_row(rows: Sequence[sqlite3.Row], job_id: str, owner: str | None) -> sqlite3.Row:
    if not rows or owner not in {None, rows[0]["owner"]}:
        raise JobNotFound(f"there is no job {job_id}", hint="ddib job list")
    return rows[0]


def require_running(db: Transaction, job_id: str) -> None:
    rows = db.read("SELECT state FROM jobs WHERE job_id = ?", (job_id,))
    if not rows:
        raise JobNotFound(f"there is no job {job_id}", hint="ddib job list")
    if (state := rows[0]["state"]) != JobState.RUNNING:
        raise StateConflict(f"job {job_id} is {state}", facts={"state": state})


def state_of(db: Transaction, job_id: str, item: int) -> ItemState:
    rows = db.read("SELECT state FROM items WHERE job_id = ? AND item = ?", (job_id, item))
    if not rows:
        raise ItemNotFound(f"job {job_id} has no item {item}", facts={"item": item})
    return ItemState(rows[0]["state"])


def transition(
    job_id: str, item: int, before: ItemState, after: ItemState
) -> tuple[SpoolPart | None, frozenset[SpoolPart]]:
    """What a step needs in the spool, and what the spool drops after it."""
    try:
        return TRANSITIONS[before, after]
    except KeyError:
        raise StateConflict(
            f"item {item} of job {job_id} is {before} and cannot become {after}",
            facts={"item": item, "state": before},
        ) from None


def update_item(
    db: Transaction,
    job_id: str,
    item: int,
    state: ItemState,
    *,
    provenance: Mapping[str, Any] | None = None,
    error: ErrorDetail | None = None,
) -> None:
    """A state, and what is given of the rest."""
    record = None if provenance is None else json.dumps(provenance, sort_keys=True, allow_nan=False)
    db.execute(
        "UPDATE items SET state = ?, provenance = coalesce(?, provenance), error = coalesce(?, error)"
        " WHERE job_id = ? AND item = ?",
        (state, record, error and error.SerializeToString(), job_id, item),
    )


def insert_part(db: Transaction, job_id: str, item: int, file: SpoolFile) -> None:
    db.execute(
        "INSERT INTO parts (job_id, item, part, range, file, media_type, size_bytes, sha256)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (job_id, item, file.part, file.range, file.file, file.media_type, file.size_bytes, file.sha256),
    )


def files_from(rows: Iterable[sqlite3.Row]) -> dict[tuple[SpoolPart, int], SpoolFile]:
    return {(part := SpoolPart(row["part"]), row["range"]): SpoolFile(part, *row[1:]) for row in rows}


def require_digest(found: bytes, record: SpoolFile, job_id: str, item: int) -> None:
    if found != record.sha256:
        raise ChunkCorrupt(
            f"{record.part} of item {item} of job {job_id} has changed on disk", facts={"item": item}
        )


def _error(row: sqlite3.Row) -> ErrorDetail | None:
    return ErrorDetail.FromString(row["error"]) if row["error"] else None


def job_from_row(row: sqlite3.Row, items: Iterable[sqlite3.Row] = ()) -> StoredJob:
    return StoredJob(
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
        error=_error(row),
        items=tuple(map(item_from_row, items)),
    )


def item_from_row(row: sqlite3.Row) -> StoredItem:
    return StoredItem(
        row["item"], ItemState(row["state"]), row["media_type"], row["size_bytes"], row["sha256"],
        json.loads(row["provenance"]), _error(row),
    )  # fmt: skip
