"""What is done to an accepted job: who sees it, its steps, and how it ends."""

import errno
import os
import stat

import pytest

from ddib_fed.errors import (
    ChunkCorrupt,
    ItemNotFound,
    JobNotFound,
    StateConflict,
)
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.v1.common_pb2 import ErrorDetail
from source_node.records import Part
from tests.source_node.jobs.job_examples import ALICE, BOB, decode, encode, files, in_threads, running, submit


def test_another_clients_job_is_as_good_as_none(store):
    """The same error, whatever is asked."""
    job_id = submit(store).job_id
    for ask in (store.get, store.cancel, store.delete):
        with pytest.raises(JobNotFound):
            ask(job_id, BOB)
    with pytest.raises(JobNotFound):
        store.acknowledge(job_id, BOB, [])
    other = submit(store, owner=BOB).job_id
    assert [[job.job_id for job in store.list(owner)] for owner in (ALICE, BOB)] == [[job_id], [other]]


def test_jobs_are_listed_newest_first_without_items(store):
    """As many as asked for."""
    ids = [submit(store).job_id for _ in range(3)]
    listed = store.list(ALICE, 2)
    assert [job.job_id for job in listed] == [ids[2], ids[1]]
    assert [job.items for job in listed] == [(), ()]


def test_the_oldest_job_is_claimed_first(store):
    """And only once."""
    ids = [submit(store).job_id for _ in range(2)]
    assert [store.claim().job_id, store.claim().job_id, store.claim()] == [*ids, None]


def test_each_job_is_claimed_by_one_thread(store):
    """However many ask at once."""
    ids = {submit(store).job_id for _ in range(8)}
    claimed = []

    def work() -> None:
        while (job := store.claim()) is not None:
            claimed.append(job.job_id)

    in_threads(work, 4)
    assert (len(claimed), set(claimed)) == (8, ids)


def test_a_job_that_was_put_back_waits(store, clock):
    """Others go first; later it is due again."""
    job = running(store)
    store.put_back(job.job_id, 10.0)
    assert store.claim() is None
    clock.now += 10
    assert store.claim().job_id == job.job_id


def test_a_killed_nodes_jobs_go_on(store, open_store):
    """From where their items are."""
    job = running(store, b"one", b"two")
    encode(store, job)
    again = open_store()
    assert again.release_running() == ()
    claimed = again.claim()
    assert [item.state for item in claimed.items] == [ItemState.ENCODED, ItemState.RECEIVED]
    assert again.read_part(job.job_id, 0, Part.ENCODED) == b"latent"
    assert claimed.items[0].provenance == {"seconds": {"encode": 1.0}}


def test_a_job_that_was_to_be_cancelled_is_cancelled_at_the_next_start(store, open_store):
    """It is not begun again."""
    job = running(store)
    store.cancel(job.job_id, ALICE)
    again = open_store()
    assert [ended.job_id for ended in again.release_running()] == [job.job_id]
    assert (again.get(job.job_id).state, again.claim()) == (JobState.CANCELLED, None)


LEGAL = {
    ("RECEIVED", "ENCODED"),
    ("ENCODED", "DECODED"),
    ("ENCODED", "RECEIVED"),
    ("RECEIVED", "FAILED"),
    ("ENCODED", "FAILED"),
}


def bring(store, job, state: str) -> None:
    """Take item 0 to a state by legal steps, with every part that any step asks for."""
    if state == "FAILED":
        store.fail_item(job.job_id, 0, ErrorDetail(reason="NOT_FINITE"))
    elif state == "ENCODED":
        encode(store, job)
    elif state in {"DECODED", "DELIVERED"}:
        digest = decode(store, job)
        if state == "DELIVERED":
            store.acknowledge(job.job_id, ALICE, [(0, digest)])


@pytest.mark.parametrize("before", list(ItemState))
@pytest.mark.parametrize("after", ItemState)
def test_only_the_legal_steps_are_taken(store, before, after):
    """Every pair of states."""
    job = running(store)
    bring(store, job, before)
    if before in {"RECEIVED", "ENCODED"}:
        for part in (Part.ENCODED, Part.TRANSLATION):
            store.put_part(job.job_id, 0, part, b"x")

    def step() -> None:
        if after == "FAILED":
            store.fail_item(job.job_id, 0, ErrorDetail(reason="NOT_FINITE"))
        else:
            store.advance(job.job_id, 0, after)

    if (before, after) in LEGAL:
        step()
        assert store.get(job.job_id).items[0].state == after
    else:
        with pytest.raises(StateConflict):
            step()
        assert store.get(job.job_id).items[0].state == before


def test_nothing_is_done_to_a_job_that_does_not_run(store):
    """Neither before it is claimed nor after it ended."""
    job = submit(store)
    for _ in range(2):
        with pytest.raises(StateConflict):
            store.put_part(job.job_id, 0, Part.ENCODED, b"x")
        with pytest.raises(StateConflict):
            store.advance(job.job_id, 0, "ENCODED")
        with pytest.raises(StateConflict):
            store.fail_item(job.job_id, 0, ErrorDetail())
        if store.claim():
            store.finish(job.job_id, "FAILED")


def test_a_file_that_changed_on_disk_is_noticed(store, tmp_path):
    """It is not handed on as if it were whole."""
    job = running(store)
    (tmp_path / "spool" / job.job_id / "0.input").write_bytes(b"POINTS")
    with pytest.raises(ChunkCorrupt):
        store.read_part(job.job_id, 0, Part.INPUT)


def test_a_file_that_is_gone_is_a_missing_item(store, tmp_path):
    """Somebody cleaned up by hand."""
    job = running(store)
    (tmp_path / "spool" / job.job_id / "0.input").unlink()
    with pytest.raises(ItemNotFound):
        store.read_part(job.job_id, 0, Part.INPUT)


def test_a_job_is_finished_once(store):
    """The second time is a conflict, whatever the state."""
    job = running(store)
    decode(store, job)
    store.finish(job.job_id, "FINISHED")
    for state in ("FINISHED", "FAILED", "CANCELLED"):
        with pytest.raises(StateConflict):
            store.finish(job.job_id, state)
    assert store.get(job.job_id).state == JobState.FINISHED


def test_a_failed_job_fails_what_was_left_and_keeps_what_was_decoded(store, tmp_path):
    """With the job's error on both."""
    job = running(store, b"one", b"two")
    decode(store, job)
    error = ErrorDetail(reason="CONTRACT_MISMATCH")
    store.finish(job.job_id, "FAILED", error)
    ended = store.get(job.job_id)
    assert [item.state for item in ended.items] == [ItemState.DECODED, ItemState.FAILED]
    assert (ended.error, ended.items[1].error) == (error, error)
    assert files(tmp_path) == {"0.translation"}


def test_a_queued_job_is_cancelled_at_once(store, tmp_path):
    """And is never claimed; its files go."""
    job = submit(store)
    assert store.cancel(job.job_id, ALICE) == JobState.CANCELLED
    assert (store.claim(), files(tmp_path)) == (None, set())
    assert store.get(job.job_id).items[0].error.reason == "CANCELLED"


def test_a_running_job_is_asked_to_stop(store):
    """Its worker sees it and ends it."""
    job = running(store)
    assert not store.is_cancelled(job.job_id)
    assert store.cancel(job.job_id, ALICE) == JobState.RUNNING
    assert store.is_cancelled(job.job_id)
    store.finish(job.job_id, "CANCELLED")
    assert not store.is_cancelled(job.job_id)


def test_a_part_whose_replacement_was_interrupted_stays(store, monkeypatch, tmp_path):
    """The old bytes, and nothing of the new ones."""
    job = running(store)
    store.put_part(job.job_id, 0, Part.ENCODED, b"old")

    def fail_for_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    with pytest.raises(OSError, match="gone"):
        store.put_part(job.job_id, 0, Part.ENCODED, b"new")
    assert store.read_part(job.job_id, 0, Part.ENCODED) == b"old"
    assert files(tmp_path) == {"0.input", "0.encoded"}
    assert store.spool_bytes == len(b"points") + len(b"old")
