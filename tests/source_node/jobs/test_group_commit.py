"""Changes that wait are made durable together, and each stands or fails by itself."""

from __future__ import annotations

import threading

import pytest

from ddib_fed.errors import DiskFull, ItemNotFound, StateConflict
from ddib_fed.protocol.messages import ItemState
from source_node import spool as spools
from source_node.group_commit import Change, NewFile
from source_node.records import Part
from source_node.store import JobStore
from tests.source_node.jobs.job_examples import running


@pytest.fixture
def held(store, monkeypatch):
    """The committer waits in its first group until it is let go; what is given meanwhile is one group."""
    entered, go = threading.Event(), threading.Event()
    write = spools.Spool.put_together

    def waiting(self, files):
        entered.set()
        assert go.wait(20)
        return write(self, files)

    monkeypatch.setattr(spools.Spool, "put_together", waiting)
    return entered, go


def encoded(job, item: int, data: bytes = b"latent") -> Change:
    return Change(job.job_id, item, (NewFile(Part.ENCODED, data),), ItemState.ENCODED, {"item": item})


def test_a_refused_change_leaves_those_beside_it(store, held):
    """A step that is none, an item that is none, and a job that ended meanwhile."""
    entered, go = held
    job, ended = running(store, b"0", b"1", b"2"), running(store, b"0")
    futures = [store.keep(encoded(job, 0))]
    assert entered.wait(20)
    futures += [
        store.keep(Change(job.job_id, 1, state=ItemState.DECODED)),
        store.keep(encoded(job, 7)),
        store.keep(encoded(ended, 0)),
        store.keep(encoded(job, 2)),
    ]
    store.finish(ended.job_id, "FAILED")
    go.set()
    for future, error in zip(futures[1:4], (StateConflict, ItemNotFound, StateConflict), strict=True):
        with pytest.raises(error):
            future.result(20)
    for item in (0, 2):
        futures[2 * item].result(20)
        assert store.item(job.job_id, item).state == ItemState.ENCODED
    assert store.item(job.job_id, 1).state == ItemState.RECEIVED
    assert not store.parts(ended.job_id, 0)


def test_a_file_that_cannot_be_written_fails_alone(store, monkeypatch):
    """The disk has no room for one of two; the other's item goes on."""
    job = running(store, b"0", b"1")
    write = spools.write_new

    def full(path, data):
        if data == b"large":
            raise OSError(28, "No space left on device")
        write(path, data)

    monkeypatch.setattr(spools, "write_new", full)
    large, small = store.keep(encoded(job, 0, b"large")), store.keep(encoded(job, 1, b"small"))
    with pytest.raises(DiskFull):
        large.result(20)
    small.result(20)
    assert [item.state for item in store.get(job.job_id).items] == [ItemState.RECEIVED, ItemState.ENCODED]


def test_ranges_of_an_item_go_when_its_whole_latent_is_there(store, tmp_path):
    """And outlive a restart until then."""
    job = running(store, b"0")
    for number in range(3):
        data = b"range %d" % number
        store.keep(Change(job.job_id, 0, (NewFile(Part.ENCODED, data, range=number),))).result(20)
    store.close()
    again = JobStore(tmp_path / "jobs.sqlite", tmp_path / "spool")
    again.release_running()
    assert again.claim() is not None
    kept = again.ranges(job.job_id, 0)
    assert [again.read_part(job.job_id, 0, kept[n]) for n in range(3)] == [
        b"range 0",
        b"range 1",
        b"range 2",
    ]
    assert Part.ENCODED not in again.parts(job.job_id, 0)
    again.keep(encoded(job, 0, b"whole")).result(20)
    assert not again.ranges(job.job_id, 0)
    assert again.read_part(job.job_id, 0, Part.ENCODED) == b"whole"
    assert not list((tmp_path / "spool").rglob("*.encoded.*"))
    again.close()
