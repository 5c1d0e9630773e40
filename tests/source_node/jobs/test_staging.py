"""How a job is accepted, once, whole and only when there is room; and the private files of the spool."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from ddib_fed.errors import DiskFull, QueueFull, RequestIdConflict
from ddib_fed.protocol.messages import ItemState, JobState
from ddib_fed.v1.common_pb2 import SolverSettings
from source_node.spool import RESERVE_BYTES, RESERVE_NAME, Reserve, Spool, SpoolPart
from source_node.submission import Receiving
from tests.source_node.jobs.job_examples import (
    ALICE,
    LIMITS,
    add,
    decode,
    encode,
    files,
    header,
    keep_translation,
    running,
    submit,
)


def test_an_accepted_job_is_queued_with_its_items(store, clock):
    asked = header(
        cycle=True, solver=SolverSettings(solver="ddim", evaluations=96, grid="integer"), deadline_s=7
    )
    with Receiving(store).stage(ALICE, asked) as staging:
        add(staging, b"one")
        add(staging, b"three")
        job, repeated = staging.commit()
    assert (job.request, job.state, job.accepted, repeated) == (asked, JobState.QUEUED, store.now(), False)
    assert [(item.index, item.state, item.size_bytes) for item in job.items] == [
        (0, ItemState.RECEIVED, 3),
        (1, ItemState.RECEIVED, 5),
    ]
    assert store.get(job.job_id) == job
    assert store.read_part(job.job_id, 1, SpoolPart.INPUT) == b"three"


def test_a_job_that_was_not_committed_leaves_nothing(store, tmp_path):
    """The client went away in the middle."""
    with Receiving(store).stage(ALICE, header()) as staging:
        add(staging, b"points")
    assert (store.list(ALICE), files(tmp_path), store.spool.used_bytes) == ((), set(), 0)


def test_the_same_request_is_the_same_job(store, tmp_path):
    """However often it comes; nothing is stored twice."""
    request = header().request_id
    first = submit(store, b"points", request_id=request)
    with Receiving(store).stage(ALICE, header(request_id=request)) as staging:
        add(staging, b"points")
        second, repeated = staging.commit()
    assert (second, repeated) == (first, True)
    assert (files(tmp_path), store.spool.used_bytes) == ({"0.input"}, 6)


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        ((b"other",), {}),
        ((b"points", b"points"), {}),
        ((b"points",), {"cycle": True}),
        ((b"points",), {"solver": SolverSettings(evaluations=24)}),
    ],
)
def test_the_same_request_id_with_other_content_is_a_conflict(store, data, changes):
    """In files or settings; the first job stays as it is."""
    request = header().request_id
    job = submit(store, b"points", request_id=request)
    with pytest.raises(RequestIdConflict) as caught:
        submit(store, *data, request_id=request, **changes)
    assert caught.value.facts == {"job": job.job_id}
    assert store.list(ALICE) == (replace(job, items=()),)


def test_the_same_request_accepted_meanwhile_leaves_one_set_of_files(store, tmp_path, monkeypatch):
    """A repeated request that arrives while the files of the first are synced leaves no second job in the spool."""
    request, fsync, answers = header().request_id, os.fsync, []
    with (
        Receiving(store).stage(ALICE, header(request_id=request)) as first,
        Receiving(store).stage(ALICE, header(request_id=request)) as second,
    ):
        add(first, b"points")
        add(second, b"points")

        def meanwhile(descriptor):
            monkeypatch.setattr(os, "fsync", fsync)
            answers.append(second.commit())
            fsync(descriptor)

        monkeypatch.setattr(os, "fsync", meanwhile)
        answers.append(first.commit())
    (job, repeated), again = answers
    assert (repeated, again) == (False, (job, True))
    assert [path.name for path in (tmp_path / "spool").iterdir()] == [job.job_id]


def test_a_full_queue_refuses_before_anything_is_received(open_store):
    """And says when to come again."""
    store = open_store(LIMITS.model_copy(update={"max_open_jobs": 1}))
    submit(store)
    with pytest.raises(QueueFull) as caught, Receiving(store).stage(ALICE, header()):
        pytest.fail("it was let in")
    assert caught.value.retry_after_s == 30.0
    assert caught.value.facts == {"limit_jobs": "1", "jobs": "1", "jobs_of_client": "1"}


def test_a_job_that_was_deleted_while_its_request_came_again_is_not_replaced(open_store, tmp_path):
    """The request was let in without a place, and uncharged: it must not become a job; nothing of it stays."""
    store = open_store(LIMITS.model_copy(update={"max_open_jobs": 1}))
    request = header().request_id
    first = running(store, request_id=request)
    store.finish(first.job_id, "FAILED")
    other = submit(store)  # the one place is taken
    with Receiving(store).stage(ALICE, header(request_id=request)) as staging:
        add(staging, b"points")
        store.delete(first.job_id, ALICE)
        with pytest.raises(RequestIdConflict, match="was deleted") as caught:
            staging.commit()
    assert "new request id" in caught.value.hint
    assert (store.list(ALICE), files(tmp_path)) == ((replace(other, items=()),), {"0.input"})


def test_an_input_is_on_the_disk_before_its_job_is_accepted(store, monkeypatch):
    """A power cut would leave a job whose picture is gone."""
    synced, fsync = [], os.fsync

    def noting(descriptor):
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name.partition("-")[0])
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    with Receiving(store).stage(ALICE, header()) as staging:
        add(staging, b"points")
        assert "0.input" not in synced
        staging.commit()
    assert "0.input" in synced


def test_a_job_whose_write_never_began_leaves_no_file(store, tmp_path, monkeypatch):
    """A write that never began, because the database was replaced or locked, leaves no row: its files are removed."""
    before = files(tmp_path)

    def replaced() -> None:
        raise OSError(errno.ESTALE, "replaced")

    with monkeypatch.context() as patched:
        patched.setattr(store._store, "_require_same_file", replaced)
        with pytest.raises(OSError, match="replaced"):
            submit(store)
    assert (files(tmp_path), store.spool.used_bytes) == (before, 0)


def test_files_and_folders_are_private(store, tmp_path):
    """0600 and 0700, whatever the umask."""
    old = os.umask(0)
    try:
        encode(store, running(store))
    finally:
        os.umask(old)
    everything = list((tmp_path / "spool").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in everything if path.is_file()} == {0o600}
    folders = [tmp_path / "spool", *filter(Path.is_dir, everything)]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(store, tmp_path, monkeypatch, code):
    """The error asks the client to retry; nothing is left of the file."""
    job = running(store)
    encode(store, job)

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DiskFull) as caught:
            keep_translation(store, job)
    assert caught.value.retry_after_s
    assert files(tmp_path) == {"0.input", "0.encoded"}
    assert store.spool.used_bytes == len(b"points" + b"latent")


@pytest.mark.parametrize("job_id", ["..", "a/b", "A" * 32, "0" * 31])
def test_only_our_own_ids_become_paths(tmp_path, job_id):
    with pytest.raises(ValueError, match="no name in the spool"):
        Spool(tmp_path / "spool").read(job_id, "0.input-0123456789abcdef")


def test_files_are_on_the_disk_before_their_rows(store, tmp_path, monkeypatch):
    """Each is synced whole, and then the folder that names it; not a latent, which can be made again."""
    job, synced, fsync = running(store), list[tuple[str, bytes | None]](), os.fsync

    def noting(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path.name.partition("-")[0], path.read_bytes() if path.is_file() else None))
        assert ("translation", 0) not in store.parts(job.job_id, 0)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    decode(store, job)
    assert synced == [("0.translation", b"translation"), (job.job_id, None)]
    assert ("translation", 0) in store.parts(job.job_id, 0)


def test_the_reserve_is_given_up_for_what_meets_a_full_disk(tmp_path: Path) -> None:
    """Called again with that room; then it is kept again. Another error, or a second one, is raised."""
    reserve, place = Reserve(tmp_path), tmp_path / RESERVE_NAME
    reserve.keep()
    errors: list[Exception] = [OSError(errno.EDQUOT, "full")]

    def act() -> bool:
        if errors:
            raise errors.pop()
        return place.exists()

    assert reserve.making_room(act) is False
    assert place.stat().st_size == RESERVE_BYTES
    errors.append(OSError(errno.EIO, "broken"))
    with pytest.raises(OSError, match="broken"):
        reserve.making_room(act)
    errors += [DiskFull("still full"), DiskFull("full")]
    with pytest.raises(DiskFull, match="still full"):
        reserve.making_room(act)
    assert place.stat().st_size == RESERVE_BYTES
