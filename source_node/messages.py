"""The messages that clients read, from the store's records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ddib_fed.bridge.records.translation_record import SolverUsed, Translation, guidance_used
from ddib_fed.errors import Difference, StateConflict, error_class
from ddib_fed.rpc.details import MAX_TEXT, to_detail
from ddib_fed.rpc.settings import solver_settings
from ddib_fed.v1 import common_pb2, translation_pb2
from ddib_fed.wire.contracts.calibration import LAST_MOMENT
from ddib_fed.wire.contracts.guidance import guidance_to_pb
from ddib_fed.wire.jobs import Event, settings_to_pb
from ddib_fed.wire.mapping import enum_members, to_message
from source_node.jobs.queries import Progress
from source_node.jobs.records import PENDING_ITEMS
from source_node.jobs.store import Item, Job, Part, PartRecord

PARTS = tuple(enum_members(Part, translation_pb2.ResultPart.DESCRIPTOR).values())
"""The files that a client fetches."""


def error_message(record: Mapping[str, Any] | None) -> common_pb2.ErrorDetail | None:
    """A kept error for the wire, cut as every error that crosses is."""
    if not record:
        return None
    kept = error_class(record["reason"])(
        record["sentence"],
        facts=record.get("facts", {}),
        differences=tuple(Difference(**difference) for difference in record.get("differences", ())),
    )
    detail = to_detail(kept, record.get("institution", ""), record.get("incident", ""))
    detail.reason, detail.sentence = record["reason"], record["sentence"][:MAX_TEXT]
    return detail


def event_message(event: Event) -> translation_pb2.WatchJobResponse:
    return to_message(event, translation_pb2.WatchJobResponse)


def job_message(job: Job, progress: Progress | None = None, *, expires: float = 0.0) -> translation_pb2.Job:
    """A job with its items; or without them, but with how many there are, from `progress`. `expires` is Unix time."""
    done = sum(item.state not in PENDING_ITEMS for item in job.items) if progress is None else progress.done
    return to_message(
        job.spec,
        translation_pb2.Job,
        local=("owner", "deadline_s", "item_classes"),
        job_id=job.job_id,
        state=f"JOB_STATE_{job.state.name}",
        solver=settings_to_pb(job.spec.solver),
        created=job.created,
        finished=job.finished,
        expires=min(expires, LAST_MOMENT),  # `result_days` has no upper limit
        items=[item_message(job, item) for item in job.items],
        item_count=len(job.items) if progress is None else progress.items,
        items_done=done,
        error=error_message(job.error),
        guidance=guidance_to_pb(job.spec.guidance),
    )


def item_message(job: Job, item: Item) -> translation_pb2.Item:
    """One item of a job."""
    own, other = job.spec.classes_of(item.index)
    classes = translation_pb2.ItemClasses(source_class=own, target_class=other)
    return to_message(
        item,
        translation_pb2.Item,
        local=("media_type", "provenance"),
        error=error_message(item.error),
        classes=classes if job.spec.item_classes else None,
    )


def file_message(record: PartRecord) -> common_pb2.FileHeader:
    """The header of a file in the spool."""
    return common_pb2.FileHeader(
        media_type=common_pb2.MediaType.Name(record.media_type),
        size_bytes=record.size_bytes,
        sha256=record.sha256,
    )


def record_of(job: Job, item: Item) -> Translation:
    """How a result came about, as the pipeline stored it."""
    record, spec = Translation.parse(item.provenance), job.spec
    if record is None:
        raise StateConflict(f"item {item.index} of job {job.job_id} has no record")
    source_class, target_class = spec.classes_of(item.index)
    return record.with_(
        job_id=job.job_id,
        solver=SolverUsed.model_validate(solver_settings(spec.solver).described()),
        source_class=source_class,
        target_class=target_class,
        guidance=guidance_used(spec.guidance),
    )
