"""A kill between a job's commit and its line in the audit log leaves the line to the next start."""

from __future__ import annotations

import json

import pytest

from ddib_fed.trust.audit.recent import recent
from ddib_fed.trust.audit.verification import verify
from ddib_fed.wire.jobs import JobState
from source_node.late_lines import write_late_lines
from source_node.service import SourceService
from tests.source_node.jobs.job_examples import ALICE


@pytest.fixture
def started(source):
    """A node whose log has the line of a start, as every node's."""
    source.node.audit.write("node_started")
    return source


def acts(source) -> list[tuple[str, str, bool]]:
    lines = [json.loads(line) for line in source.config.paths.audit.read_text().splitlines()]
    return [(line["act"], line["job"], line.get("late", False)) for line in lines if "job" in line]


def look(source) -> int:
    return write_late_lines(source.store, source.node.audit, source.config.paths.audit)


def end(source, job_id: str, state: JobState) -> None:
    source.store.claim()
    source.store.finish(job_id, state, {"reason": "INTERNAL", "sentence": "", "incident": "", "facts": {}})


def test_what_a_kill_left_out_is_written_once(started) -> None:
    """The job was accepted and failed, without any line; a second start finds both and adds nothing."""
    job_id = started.submit()
    end(started, job_id, JobState.FAILED)
    assert (look(started), look(started)) == (2, 0)
    assert acts(started) == [("job_accepted", job_id, True), ("job_failed", job_id, True)]
    assert verify(started.config.paths.audit).ok


def test_a_line_that_is_there_is_not_written_again(started) -> None:
    """As after every orderly stop."""
    job_id = started.submit()
    started.node.audit.write("job_accepted", job=job_id)
    end(started, job_id, JobState.CANCELLED)
    started.node.audit.write("job_cancel", job=job_id)  # of its client; a queued job ends with it
    assert look(started) == 0


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


def test_a_job_that_was_to_be_cancelled_when_the_node_was_killed_gets_its_line_at_the_start(started) -> None:
    """That start ends it."""
    job_id = started.submit()
    started.store.claim()
    started.store.cancel(job_id, ALICE)
    started.stop()
    started.open(started.node.running_engine)
    started.start()
    assert ("job_cancelled", job_id, False) in acts(started)


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


def test_jobs_from_before_the_log_are_left_alone(source) -> None:
    """An operator who moved a log away starts another one with the next act."""
    source.submit()
    assert look(source) == 0
    source.node.audit.write("node_started")
    assert look(source) == 0


def test_of_a_long_log_only_the_end_is_read(started) -> None:
    """From its first whole line on; the rest counts as unknown."""
    for number in range(50):
        started.node.audit.write("job_accepted", job=f"{number:032x}")
    path = started.config.paths.audit
    few = recent(path, 2_000)
    assert not few.whole
    assert 1 < len(few.lines) < 20
    assert few.lines[-1]["job"] == f"{49:032x}"
    assert len(recent(path).lines) == 51


def test_a_log_that_is_not_there_is_empty(tmp_path) -> None:
    """A node's first start."""
    assert recent(tmp_path / "audit.jsonl").lines == ()
