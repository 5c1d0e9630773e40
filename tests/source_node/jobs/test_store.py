"""What is done to an accepted job: who sees it, its steps, how it ends, and how its results leave."""

import shutil
import time
from pathlib import Path

import pytest

from ddib_fed.errors import ChunkCorrupt, DiskFull, JobNotFound, StateConflict
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.v1.common_pb2 import ErrorDetail
from source_node.spool import NewFile, SpoolPart
from source_node.store import Change, JobStore
from tests import audit_rows
from tests.source_node.jobs import job_examples as jobs

DAY_S, YEAR_S = 86_400.0, 365 * 86_400.0


def test_each_job_is_claimed_by_one_thread(store):
    ids = [jobs.submit(store).job_id for _ in range(8)]
    claimed = []

    def work() -> None:
        while due := store.due():
            if (job := store.claim(due[0].job_id)) is not None:
                claimed.append(job.job_id)

    jobs.in_threads(work, 4)
    assert claimed == ids or (len(claimed), set(claimed)) == (8, set(ids))


def test_a_job_that_was_to_be_cancelled_is_cancelled_at_the_next_start(store, open_store):
    job = jobs.running(store)
    store.cancel(job.job_id, jobs.ALICE)
    again = open_store()
    assert [ended.job_id for ended in again.release_running()] == [job.job_id]
    assert (again.get(job.job_id).state, again.due()) == (JobState.CANCELLED, [])


def bring(store, job, state: str) -> None:
    """Take item 0 to a state by legal steps."""
    if state == "FAILED":
        jobs.fail(store, job)
    elif state == "ENCODED":
        jobs.encode(store, job)
    elif state in {"DECODED", "DELIVERED"}:
        digest = jobs.decode(store, job)
        if state == "DELIVERED":
            store.acknowledge(job.job_id, jobs.ALICE, [(0, digest)])


def test_a_file_that_is_replaced_goes_when_the_new_one_is_there(store, tmp_path):
    """Of the same part and range, and no other."""
    job = jobs.running(store)
    for data in (b"old", b"new"):
        store.keep(job.job_id, Change(0, [NewFile(SpoolPart.ENCODED, data, range=3)])).result(20)
    store.keep(job.job_id, Change(0, [NewFile(SpoolPart.ENCODED, b"beside", range=4)])).result(20)
    assert [store.read_part(job.job_id, 0, SpoolPart.ENCODED, n) for n in (3, 4)] == [b"new", b"beside"]
    assert len(list((tmp_path / "spool").rglob("*.encoded-*"))) == 2
    assert store.spool.used_bytes == len(b"points" + b"new" + b"beside")


def test_a_failed_job_fails_what_was_left_and_keeps_what_was_decoded(store, tmp_path):
    job = jobs.running(store, b"one", b"two")
    jobs.decode(store, job)
    error = ErrorDetail(reason="CONTRACT_MISMATCH")
    store.finish(job.job_id, "FAILED", error)
    ended = store.get(job.job_id)
    assert [item.state for item in ended.items] == [ItemState.DECODED, ItemState.FAILED]
    assert (ended.error, ended.items[1].error) == (error, error)
    assert jobs.files(tmp_path) == {"0.translation"}


def test_an_acknowledged_item_leaves_only_its_row(store, tmp_path):
    """The spool is empty; what remains is counted. Asking again changes nothing."""
    job = jobs.running(store, b"one", b"two", b"three")
    digest = jobs.decode(store, job)
    jobs.fail(store, job, 2)
    assert [store.acknowledge(job.job_id, jobs.ALICE, [(0, digest)]) for _ in range(2)] == [1, 1]
    assert store.get(job.job_id).items[0].state == ItemState.DELIVERED
    assert jobs.files(tmp_path) == {"1.input"}
    with pytest.raises(StateConflict):
        store.acknowledge(job.job_id, jobs.ALICE, [(1, bytes(32))])


def test_a_wrong_digest_removes_nothing_at_all(store, tmp_path):
    job = jobs.running(store, b"one", b"two")
    digest = jobs.decode(store, job, 0)
    jobs.decode(store, job, 1)
    with pytest.raises(ChunkCorrupt):
        store.acknowledge(job.job_id, jobs.ALICE, [(0, digest), (1, bytes(32))])
    assert [item.state for item in store.get(job.job_id).items] == [ItemState.DECODED] * 2
    assert jobs.files(tmp_path) == {"0.translation", "1.translation"}


def test_only_an_ended_job_is_deleted(store, tmp_path):
    """An open one is cancelled first; the hint says so. Of the other no row and no file stays."""
    for prepare in (jobs.submit, jobs.running):
        job = prepare(store)
        with pytest.raises(StateConflict) as caught:
            store.delete(job.job_id, jobs.ALICE)
        assert caught.value.hint == f"ddib job cancel {job.job_id}"
    jobs.decode(store, job)
    store.finish(job.job_id, "FINISHED")
    store.delete(job.job_id, jobs.ALICE)
    with pytest.raises(JobNotFound):
        store.get(job.job_id)
    assert not (tmp_path / "spool" / job.job_id).exists()
    assert store.parts(job.job_id, 0) == {}


def test_results_that_nobody_fetches_expire_and_open_jobs_do_not(store, clock, tmp_path):
    """After the retention, counted from the end; the line says whose they were."""
    job = jobs.running(store)
    jobs.decode(store, job)
    clock.now += 500
    store.finish(job.job_id, "FINISHED")
    clock.now += jobs.RETENTION_S - 1
    assert store.expire() == 0
    clock.now += 1
    assert store.expire() == 1
    assert (store.list(jobs.ALICE), list((tmp_path / "spool").iterdir())) == ((), [])
    (line,) = audit_rows.records(tmp_path / "node.sqlite", "job_expired")
    assert (line["job"], line["client"]) == (job.job_id, jobs.ALICE)
    jobs.submit(store)
    jobs.running(store)
    clock.now += 1e9
    assert store.expire() == 0


# The line of the audit log


def lines(folder: Path) -> list[tuple[str, str]]:
    return [(line["act"], line["job"]) for line in audit_rows.records(folder / "node.sqlite")]


def test_each_act_has_its_line_once(store, tmp_path) -> None:
    job = jobs.running(store, b"one", b"two")
    digest = jobs.decode(store, job)
    with pytest.raises(StateConflict):
        store.delete(job.job_id, jobs.ALICE)
    for _ in range(2):
        store.cancel(job.job_id, jobs.ALICE)
        store.acknowledge(job.job_id, jobs.ALICE, [(0, digest)])
    store.finish(job.job_id, "CANCELLED")
    store.delete(job.job_id, jobs.ALICE)
    acts = ["job_accepted", "job_cancel", "items_delivered", "job_cancelled", "job_deleted"]
    assert lines(tmp_path) == [(act, job.job_id) for act in acts]


@pytest.mark.parametrize("act", ["acknowledge", "cancel", "delete", "finish", "keep"])
def test_what_cannot_be_written_is_not_done(store: JobStore, tmp_path: Path, monkeypatch, act: str) -> None:
    """Nothing changes, on the disk or in memory, and no line says otherwise."""
    job = jobs.running(store, b"one", b"two")
    digest = jobs.decode(store, job)
    if act == "delete":
        store.finish(job.job_id, "FAILED")
    before, there, told = store.get(job.job_id), jobs.files(tmp_path), lines(tmp_path)
    does = {
        "acknowledge": lambda: store.acknowledge(job.job_id, jobs.ALICE, [(0, digest)]),
        "cancel": lambda: store.cancel(job.job_id, jobs.ALICE),
        "delete": lambda: store.delete(job.job_id, jobs.ALICE),
        "finish": lambda: store.finish(job.job_id, "FAILED"),
        "keep": lambda: jobs.encode(store, job, 1),
    }
    with monkeypatch.context() as patched:
        audit_rows.full_disk(patched, store._store)
        with pytest.raises(DiskFull):
            does[act]()
    assert (store.get(job.job_id), jobs.files(tmp_path), lines(tmp_path)) == (before, there, told)
    does[act]()


# Over restarts


def test_a_start_sweeps_what_a_kill_left(store, open_store, tmp_path):
    job = jobs.running(store)
    (tmp_path / "spool" / job.job_id / "0.translation").write_bytes(b"torn")
    leftover = tmp_path / "spool" / ("a" * 32)
    leftover.mkdir()
    (leftover / "0.input").write_bytes(b"x")
    again = open_store()
    assert again.swept_files == 2
    assert jobs.files(tmp_path) == {"0.input"}


def test_a_kill_forgets_no_more_than_the_time_since_the_last_look(store, clock, tmp_path):
    """What the disk holds at that moment is what the next start finds."""
    clock.now += 40
    store.expire()
    clock.now += 5
    shutil.copytree(tmp_path, tmp_path / "killed")
    after = jobs.open_jobs(tmp_path / "killed", clock=clock)
    assert after.now() == 40
    jobs.close_jobs(after)


def set_clock(monkeypatch: pytest.MonkeyPatch, by_s: float) -> None:
    real = time.clock_gettime
    monkeypatch.setattr(time, "time", lambda: real(time.CLOCK_REALTIME) + by_s)


@pytest.mark.parametrize(("before_s", "after_s"), [(0, 8 * DAY_S), (0, -5 * YEAR_S), (5 * YEAR_S, 0)])
def test_a_restart_under_another_clock_neither_ends_nor_prolongs_jobs(
    open_store, clock: jobs.Clock, monkeypatch: pytest.MonkeyPatch, before_s: float, after_s: float
) -> None:
    """Results that nobody fetched and jobs that wait live as long as they would have lived."""
    set_clock(monkeypatch, before_s)
    store = open_store()
    ended = jobs.running(store)
    jobs.decode(store, ended)
    store.finish(ended.job_id, "FINISHED")
    waiting = jobs.submit(store, deadline_s=50)
    clock.now += 40
    jobs.close_jobs(store)
    set_clock(monkeypatch, after_s)
    clock.now = 7.0  # a machine that was started anew counts anew
    again = open_store()
    assert again.expire() == 0
    assert again.read_part(ended.job_id, 0, SpoolPart.TRANSLATION) == b"translation"
    assert [due.overdue for due in again.due()] == [False]
    assert again.get(waiting.job_id).deadline - again.now() == 10
    clock.now += 10
    assert [due.overdue for due in again.due()] == [True]
    clock.now += jobs.RETENTION_S - 50
    assert again.expire() == 1
