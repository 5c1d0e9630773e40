"""Jobs are tried again while that makes sense, end once with what their time was spent on, and tell their watchers."""

import logging
import threading
from contextlib import suppress

import pytest

from ddib_fed import errors
from ddib_fed.client.client import job_from_pb
from ddib_fed.protocol.messages import JobState
from source_node.runner import LARGE_JOBS, MAX_EVENTS, EventHub
from source_node.service import job_message
from tests.e2e.harness import wait_until
from tests.node.tiny_nodes import make_institution, npy
from tests.source_node.conftest import LARGE_LIMITS
from tests.source_node.jobs.job_examples import ALICE
from tests.source_node.scripted_target import ScriptedTarget, fail, hang


def waits(source, job_id: str) -> None:
    wait_until(lambda: (last := source.events.last(job_id)) and last.stage == "wait")


def test_retry_after_is_kept(source, target) -> None:
    target.decodes = [fail(errors.QuotaSpent(retry_after_s=3600))]
    patient = source.start().submit(deadline_s=7_200)
    waits(source, patient)
    assert source.ended(source.submit()).state == "FINISHED"
    assert source.store.get(patient).state == "QUEUED"
    assert source.events.last(patient).reason == "QUOTA"


@pytest.mark.parametrize("error", [errors.PeerSuspended(), errors.Unauthenticated()])
def test_a_refusal_that_passes_is_tried_again(source, target, error) -> None:
    """The peer's operator suspended us for a while, or a certificate was renewed too late: the job is finished."""
    target.decodes = [fail(error)]
    job_id = source.start().submit()
    waits(source, job_id)
    assert source.events.last(job_id).reason == error.reason
    assert source.ended(job_id).state == "FINISHED"


def test_an_error_of_ours_keeps_its_text_to_the_log(source, target, caplog) -> None:
    source.node.metrics.seconds = None
    job = source.start().ended(source.submit())
    assert job.error.reason == "INTERNAL"
    assert job.error.incident in caplog.text
    assert "NoneType" not in str(job.error)


@pytest.mark.parametrize("stage", ["remote", "waiting"])
def test_cancelling_takes_effect_at_every_stage(source, target, stage) -> None:
    target.decodes = [hang if stage == "remote" else fail(errors.NotReady(retry_after_s=600))]
    job_id = source.start().submit(deadline_s=3_600)
    if stage == "remote":
        assert target.asked.wait(60)
    else:
        waits(source, job_id)
    source.store.cancel(job_id, ALICE)
    source.runner.cancel(job_id)
    assert source.ended(job_id, 20).state == "CANCELLED"


def test_a_job_is_left_for_the_next_start_when_the_node_stops(source, target) -> None:
    target.decodes = [hang]
    job_id = source.start().submit()
    assert target.asked.wait(60)
    source.stop()
    source.open(source.node.running_engine)
    assert source.store.get(job_id).state == "RUNNING"
    assert source.start().ended(job_id).state == "FINISHED"


class FullDisk:
    """Makes calls of a method fail as a full disk does, while told to."""

    def __init__(self, monkeypatch, owner, name: str, error: Exception) -> None:
        self.full, self.hits, real = True, 0, getattr(owner, name)

        def method(*arguments, **options):
            if self.full:
                self.hits += 1
                raise error
            return real(*arguments, **options)

        monkeypatch.setattr(owner, name, method)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["due", "claim", "get", "finish"])
def test_a_disk_that_was_full_for_a_while_loses_no_job(source, target, monkeypatch, method) -> None:
    """Neither the worker nor the job is lost when the store cannot write; once it can, the job ends once."""
    job_id = source.submit()
    disk = FullDisk(monkeypatch, source.store, method, errors.DiskFull("full"))
    source.start()
    wait_until(lambda: disk.hits > 0)
    disk.full = False
    assert source.ended(job_id).state == "FINISHED"
    assert len(target.seen) == 1


@pytest.mark.slow
def test_without_an_audit_log_no_latent_leaves_and_the_job_waits(source, target, monkeypatch) -> None:
    """A full disk is no reason to fail the job, and none to send unrecorded."""
    job_id = source.submit()
    disk = FullDisk(monkeypatch, source.node.audit, "append_each", OSError(28, "No space left on device"))
    source.start()
    waits(source, job_id)
    assert not any(target.seen)
    disk.full = False
    assert source.ended(job_id).state == "FINISHED"


OF_ONE_CLIENT = 4
"""Large jobs, of `LARGE_JOBS`."""


@pytest.mark.slow
def test_a_few_large_jobs_run_at_once_and_small_ones_beside_them(source, target) -> None:
    """Large ones would only share the engine; a small one behind them is not kept waiting."""
    target.limits = LARGE_LIMITS
    target.decodes = [hang] * (LARGE_JOBS + 1)
    large = [source.submit(npy(5_000, seed=n)) for n in range(LARGE_JOBS + 1)]
    small = source.submit(npy(10))
    source.start()
    wait_until(lambda: source.store.get(small).state == "RUNNING")
    states = [str(source.store.get(job).state) for job in large]
    assert states == ["RUNNING"] * OF_ONE_CLIENT + ["QUEUED"] * (LARGE_JOBS + 1 - OF_ONE_CLIENT)
    target.release.set()


def test_each_job_has_one_line_at_its_end(source, target, caplog) -> None:
    """Whoever it is of, how many items went well, and how long it took; for collectors by name too."""
    caplog.set_level(logging.INFO, logger="source_node.runner")
    job_id = source.start().submit()
    source.ended(job_id)
    wait_until(lambda: caplog.records)
    (line,) = (record for record in caplog.records if record.name == "source_node.runner")
    assert line.getMessage().startswith(f"job {job_id} finished after ")
    assert " s: 1 of 1 items of alice to south.example/" in line.getMessage()
    assert (line.fields["job"], line.fields["translated"], line.fields["failed"]) == (job_id, 1, 0)


def seen_by_the_client(job) -> str:
    with pytest.raises(errors.JobFailed) as caught:
        job_from_pb(job_message(job), "source north.example").require_finished("source north.example")
    return caught.value.detail


def test_a_peer_where_nothing_listens_is_the_last_cause(source, target) -> None:
    target.close()
    job = source.start().ended(source.submit(deadline_s=2))
    assert job.error.reason == "DEADLINE_EXCEEDED"
    said = seen_by_the_client(job)
    assert (
        "the deadline of 2 s passed, 0 of 1 items were done; last: south.example: nothing listens at" in said
    )
    assert "Connection refused" in said


def test_a_job_that_waits_says_for_what(tmp_path, institutions, source) -> None:
    """A peer whose root is another than the one pinned here: by name, while the job waits, and to the operator."""
    north, south = institutions
    impostor = ScriptedTarget(make_institution(tmp_path / "impostor", south.name))
    try:
        north.store.remove(south.name)
        north.admit(south, impostor.address)
        job_id = source.start().submit()
        wait_until(lambda: source.store.get(job_id).error is not None)
        error = source.store.get(job_id).error
        assert (error.facts["peer"], error.facts["cause"]) == ("south.example", "wrong-root")
        _when, problem = source.node.peer_problems.of("south.example")
        assert "[wrong-root]" in problem
    finally:
        impostor.close()


@pytest.fixture
def hub():
    hub = EventHub(boot=1)
    yield hub
    hub.close()


def kept(hub, job="job", after=0) -> list:
    events: list = []
    with suppress(errors.DeadlineExceeded):
        events.extend(hub.subscribe(job, after, idle_s=0))
    return events


def end(hub, job="job") -> None:
    hub.publish(job, JobState.FINISHED)


def test_sequences_rise_over_a_restart():
    before = EventHub(boot=4).publish("job", JobState.RUNNING)
    after = EventHub(boot=5).publish("job", JobState.RUNNING)
    assert after.sequence > before.sequence + 2**31


def test_steps_do_not_push_out_changes_of_state(hub):
    hub.publish("job", JobState.RUNNING)
    for step in range(10 * MAX_EVENTS):
        hub.publish("job", JobState.RUNNING, stage="encode", step=step, steps=10)
    assert [e.stage for e in kept(hub)] == ["", "encode"]


def test_a_job_keeps_a_bounded_number(hub):
    for item in range(2 * MAX_EVENTS):
        hub.publish("job", JobState.RUNNING, item=item, stage="done")
    events = kept(hub)
    assert (len(events), events[-1].item) == (MAX_EVENTS, 2 * MAX_EVENTS - 1)


def watched(hub, events, **options) -> threading.Thread:
    thread = threading.Thread(target=lambda: events.extend(hub.subscribe("job", **options)))
    thread.start()
    return thread
