"""How a job is accepted, once, whole and only when there is room; and the private files of the spool."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from ddib_fed.errors import RequestIdConflict
from ddib_fed.v1.common_pb2 import SolverSettings
from source_node.spool import Spool
from source_node.submission import Receiving
from tests.source_node.jobs.job_examples import (
    ALICE,
    LIMITS,
    add,
    decode,
    encode,
    files,
    header,
    running,
    submit,
)


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


def test_files_and_folders_are_private(store, tmp_path):
    old = os.umask(0)
    try:
        encode(store, running(store))
    finally:
        os.umask(old)
    everything = list((tmp_path / "spool").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in everything if path.is_file()} == {0o600}
    folders = [tmp_path / "spool", *filter(Path.is_dir, everything)]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}


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
