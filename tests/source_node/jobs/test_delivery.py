"""How results leave the store: acknowledged, deleted, expired."""

import pytest

from ddib_fed.errors import (
    ChunkCorrupt,
    JobNotFound,
    StateConflict,
)
from ddib_fed.protocol.messages import ItemState
from ddib_fed.v1.common_pb2 import ErrorDetail
from tests.source_node.jobs.job_examples import ALICE, LIMITS, decode, files, running, submit


def test_an_acknowledged_item_leaves_only_its_row(store, tmp_path):
    """The spool is empty; what remains is counted."""
    job = running(store, b"one", b"two")
    digest = decode(store, job)
    assert store.acknowledge(job.job_id, ALICE, [(0, digest)]) == 1
    assert store.get(job.job_id).items[0].state == ItemState.DELIVERED
    assert files(tmp_path) == {"1.input"}


def test_acknowledging_again_changes_nothing(store):
    """A client that did not get the answer asks again."""
    job = running(store)
    digest = decode(store, job)
    assert [store.acknowledge(job.job_id, ALICE, [(0, digest)]) for _ in range(2)] == [0, 0]


def test_a_wrong_digest_removes_nothing_at_all(store, tmp_path):
    """Not even the items beside it whose digests are right."""
    job = running(store, b"one", b"two")
    digest = decode(store, job, 0)
    decode(store, job, 1)
    with pytest.raises(ChunkCorrupt):
        store.acknowledge(job.job_id, ALICE, [(0, digest), (1, bytes(32))])
    assert [item.state for item in store.get(job.job_id).items] == [ItemState.DECODED] * 2
    assert files(tmp_path) == {"0.translation", "1.translation"}


def test_an_item_that_is_not_decoded_cannot_be_acknowledged(store):
    """There is nothing that the client could have written."""
    job = running(store)
    with pytest.raises(StateConflict):
        store.acknowledge(job.job_id, ALICE, [(0, bytes(32))])


def test_a_failed_item_does_not_wait_to_be_delivered(store):
    """It never will be."""
    job = running(store, b"one", b"two")
    digest = decode(store, job)
    store.fail_item(job.job_id, 1, ErrorDetail(reason="NOT_FINITE"))
    assert store.acknowledge(job.job_id, ALICE, [(0, digest)]) == 0


def test_a_deleted_job_is_gone(store, tmp_path):
    """Rows and files."""
    job = running(store)
    decode(store, job)
    store.finish(job.job_id, "FINISHED")
    store.delete(job.job_id, ALICE)
    with pytest.raises(JobNotFound):
        store.get(job.job_id)
    assert list((tmp_path / "spool").iterdir()) == []
    assert store.parts(job.job_id, 0) == {}


@pytest.mark.parametrize("prepare", [submit, running])
def test_an_open_job_cannot_be_deleted(store, prepare):
    """It is cancelled first; the hint says so."""
    job = prepare(store)
    with pytest.raises(StateConflict) as caught:
        store.delete(job.job_id, ALICE)
    assert caught.value.hint == f"ddib job cancel {job.job_id}"


def test_results_that_nobody_fetches_expire(store, clock, tmp_path):
    """After the retention, counted from the end."""
    job = running(store)
    decode(store, job)
    clock.now += 500
    store.finish(job.job_id, "FINISHED")
    clock.now += LIMITS.retention_s - 1
    assert store.expire() == 0
    clock.now += 1
    assert store.expire() == 1
    assert (store.list(ALICE), list((tmp_path / "spool").iterdir())) == ((), [])


def test_open_jobs_do_not_expire(store, clock):
    """Their deadline ends them."""
    running(store)
    submit(store)
    clock.now += 1e9
    assert store.expire() == 0
