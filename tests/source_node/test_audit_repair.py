"""A kill between a job's commit and its line, or between a line and its act, leaves a line to the next start."""

from __future__ import annotations

import json

import pytest

from ddib_fed.protocol.messages import JobState
from ddib_fed.security.audit_reading import verify
from ddib_fed.v1.common_pb2 import ErrorDetail
from source_node.audit_repair import repair_audit
from source_node.service import SourceService
from tests.source_node.jobs.job_examples import ALICE, decode, running


@pytest.fixture
def started(source):
    source.node.audit.write("node_started")
    return source


def acts(source) -> list[tuple[str, str, bool]]:
    lines = [json.loads(line) for line in source.config.paths.audit.read_text().splitlines()]
    return [(line["act"], line["job"], line.get("late", False)) for line in lines if "job" in line]


def look(source) -> int:
    return repair_audit(source.store, source.node.audit, source.config.paths.audit)


def end(source, job_id: str, state: JobState) -> None:
    source.store.claim()
    source.store.finish(job_id, state, ErrorDetail(reason="INTERNAL"))


def test_what_a_kill_left_out_is_written_once(started) -> None:
    """The job was accepted and failed, without any line; a second start finds both and adds nothing."""
    job_id = started.submit()
    end(started, job_id, JobState.FAILED)
    assert (look(started), look(started)) == (2, 0)
    assert acts(started) == [("job_accepted", job_id, True), ("job_failed", job_id, True)]
    assert verify(started.config.paths.audit).ok


def test_a_running_job_that_was_cancelled_ends_with_a_line_of_its_own(started) -> None:
    """That of its client is there; the kill came between the end and its line. Nor does it hide that a job finished."""
    cancelled, finished = started.submit(), started.submit()
    for job_id in (cancelled, finished):
        started.node.audit.write("job_accepted", job=job_id)
        started.store.claim()
        started.store.cancel(job_id, ALICE)
        started.node.audit.write("job_cancel", job=job_id)
    started.store.finish(cancelled, JobState.CANCELLED)
    started.store.finish(finished, JobState.FAILED)
    assert (look(started), look(started)) == (2, 0)
    assert {line for line in acts(started) if line[2]} == {
        ("job_cancelled", cancelled, True), ("job_failed", finished, True)
    }  # fmt: skip


def test_the_log_is_compared_before_a_call_can_come(started) -> None:
    """When the role is opened: once the model is warm, jobs are accepted, whose lines would be written twice."""
    job_id = started.submit()
    started.stop()
    service = SourceService(started.node)
    try:
        assert acts(started) == [("job_accepted", job_id, True)]
    finally:
        service.close()
        service.release()
    started.open(started.node.running_engine)


def not_done(source) -> list[tuple[str, list[str], bool]]:
    lines = [json.loads(line) for line in source.config.paths.audit.read_text().splitlines()]
    return [
        (line["what"], line.get("items", []), line.get("late", False))
        for line in lines
        if line["act"] == "not_done"
    ]


def test_what_was_written_down_before_a_kill_and_not_done_is_taken_back_once(started) -> None:
    """The line comes before the act: a delivery, a deletion, a cancellation and an expiry that were not committed."""
    job = running(started.store, *[b"points"] * 3)
    digests = [decode(started.store, job, item) for item in range(2)]
    started.store.acknowledge(job.job_id, ALICE, [(0, digests[0])])
    write = started.node.audit.write
    write("items_delivered", job=job.job_id, items=["0", "1"])
    write("job_cancel", job=job.job_id)
    queued = started.submit()
    for act in ("job_deleted", "job_expired", "job_cancel"):
        write(act, job=queued)
    for each in (job.job_id, queued):
        write("job_accepted", job=each)
    assert (look(started), look(started)) == (5, 0)
    assert not_done(started) == [
        ("items_delivered", ["1"], True),
        ("job_cancel", [], True),
        ("job_deleted", [], True),
        ("job_expired", [], True),
        ("job_cancel", [], True),
    ]
    assert verify(started.config.paths.audit).ok


def test_what_was_done_is_not_taken_back(started) -> None:
    """A job that was delivered and deleted, one that is to be cancelled, one that was cancelled while it waited."""
    job = running(started.store)
    digest = decode(started.store, job)
    started.store.finish(job.job_id, JobState.FINISHED)
    started.store.acknowledge(job.job_id, ALICE, [(0, digest)])
    asked, waiting = running(started.store), started.store.get(started.submit())
    for each in (asked, waiting):
        started.store.cancel(each.job_id, ALICE)
        started.node.audit.write("job_cancel", job=each.job_id)
    for act in ("job_accepted", "items_delivered", "job_finished"):
        started.node.audit.write(act, job=job.job_id, items=["0"])
    look(started)
    started.store.delete(job.job_id, ALICE)
    started.node.audit.write("job_deleted", job=job.job_id)
    look(started)
    assert not_done(started) == []


def test_what_is_done_after_it_was_taken_back_stays(started) -> None:
    """The client comes again; its line is there twice, and the first is taken back between them."""
    job = running(started.store)
    digest = decode(started.store, job)
    started.node.audit.write("job_accepted", job=job.job_id)
    started.node.audit.write("items_delivered", job=job.job_id, items=["0"])
    assert look(started) == 1
    started.node.audit.write("items_delivered", job=job.job_id, items=["0"])
    started.store.acknowledge(job.job_id, ALICE, [(0, digest)])
    assert look(started) == 0
