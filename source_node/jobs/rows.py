"""Maps records to rows of the job database and back."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

from ddib_fed.guidance import Guidance
from ddib_fed.wire.jobs import ItemState, JobState, Settings
from source_node.jobs.records import Item, ItemSpec, Job, JobSpec, Part, PartRecord


def insert_job(
    db: sqlite3.Connection,
    job_id: str,
    spec: JobSpec,
    content: bytes,
    items: Iterable[ItemSpec],
    parts: Iterable[tuple[int, PartRecord]],
    *,
    deadline: float,
    expires: float,
) -> None:
    """A queued job, its items, and their files."""
    db.execute(
        "INSERT INTO jobs (job_id, owner, request_id, content, spec, state, created, expires, target, deadline)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            job_id,
            spec.owner,
            spec.request_id,
            content,
            json.dumps(asdict(spec)),
            JobState.QUEUED,
            time.time(),
            expires,
            spec.target_institution,
            deadline,
        ),
    )
    for item in items:
        row = (job_id, item.index, ItemState.RECEIVED, item.media_type, item.size_bytes, item.sha256)
        db.execute(
            "INSERT INTO items (job_id, item, state, media_type, size_bytes, sha256)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            row,
        )
    for index, part in parts:
        insert_part(db, job_id, index, part)


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
    error: Mapping[str, Any] | None = None,
) -> None:
    """A state, and what is given of the rest."""
    db.execute(
        "UPDATE items SET state = ?, provenance = coalesce(?, provenance), error = coalesce(?, error)"
        " WHERE job_id = ? AND item = ?",
        (state, _json(provenance), _json(error), job_id, item),
    )


def end_job(
    db: sqlite3.Connection,
    job_id: str,
    state: JobState,
    *,
    expires: float,
    error: Mapping[str, Any] | None,
) -> None:
    """A job's last state."""
    db.execute(
        "UPDATE jobs SET state = ?, finished = ?, expires = ?, error = ? WHERE job_id = ?",
        (state, time.time(), expires, _json(error), job_id),
    )


def postpone_job(
    db: sqlite3.Connection, job_id: str, *, not_before: float, error: Mapping[str, Any] | None
) -> None:
    """A job that waits again, and why, if that is given."""
    db.execute(
        "UPDATE jobs SET state = ?, not_before = ?, error = coalesce(?, error) WHERE job_id = ?",
        (JobState.QUEUED, not_before, _json(error), job_id),
    )


def job_from_row(row: sqlite3.Row, items: Iterable[sqlite3.Row] = ()) -> Job:
    """A job."""
    return Job(
        job_id=row["job_id"],
        spec=_spec_from(json.loads(row["spec"])),
        state=JobState(row["state"]),
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
        deadline=row["deadline"],
        expires=row["expires"],
        cancel_requested=bool(row["cancel_requested"]),
        error=json.loads(row["error"]) if row["error"] else None,
        items=tuple(map(item_from_row, items)),
    )


def _spec_from(stored: Mapping[str, Any]) -> JobSpec:
    read = dict(stored)
    read["solver"] = Settings(**read["solver"])
    read["guidance"] = Guidance(**read.get("guidance", {}))
    read["item_classes"] = tuple((source, target) for source, target in read.get("item_classes", ()))
    return JobSpec(**read)


def item_from_row(row: sqlite3.Row) -> Item:
    """An item."""
    return Item(
        index=row["item"],
        state=ItemState(row["state"]),
        media_type=row["media_type"],
        size_bytes=row["size_bytes"],
        sha256=row["sha256"],
        provenance=json.loads(row["provenance"]),
        error=json.loads(row["error"]) if row["error"] else None,
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


def _json(value: Mapping[str, Any] | None) -> str | None:
    return None if value is None else json.dumps(value, sort_keys=True, allow_nan=False)
