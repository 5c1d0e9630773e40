"""Files of the spool: private, whole, counted; and the room that is kept for what makes room."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ddib_fed.errors import DiskFull
from source_node.spool import RESERVE_BYTES, RESERVE_NAME, Reserve, Spool
from tests.source_node.jobs.job_examples import encode, files, running


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

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(DiskFull) as caught:
            encode(store, job)
    assert caught.value.retry_after_s
    assert files(tmp_path) == {"0.input"}
    assert store.spool.used_bytes == len(b"points")


@pytest.mark.parametrize("job_id", ["..", "a/b", "A" * 32, "0" * 31])
def test_only_our_own_ids_become_paths(tmp_path, job_id):
    """Whatever a caller passes."""
    with pytest.raises(ValueError, match="no name in the spool"):
        Spool(tmp_path / "spool").read(job_id, "0.input-0123456789abcdef")


def test_files_are_on_the_disk_before_their_rows(store, tmp_path, monkeypatch):
    """Each file is synced whole, and then the folder that names it."""
    job, synced, fsync = running(store), list[tuple[str, bytes | None]](), os.fsync

    def noting(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path.name.partition("-")[0], path.read_bytes() if path.is_file() else None))
        assert (job.job_id, ("encoded", 0)) not in {(job.job_id, key) for key in store.parts(job.job_id, 0)}
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    encode(store, job)
    assert synced == [("0.encoded", b"latent"), (job.job_id, None)]
    assert len(store.parts(job.job_id, 0)) == 2


@pytest.mark.parametrize("error", [DiskFull("full"), OSError(errno.EDQUOT, "full")])
def test_the_reserve_is_given_up_for_what_meets_a_full_disk(tmp_path: Path, error: Exception) -> None:
    """Called again with that room; then it is kept again. Another error, or a second one, is raised."""
    reserve, place = Reserve(tmp_path), tmp_path / RESERVE_NAME
    reserve.keep()
    errors, there = [error], []

    def act() -> str:
        there.append(place.exists())
        if errors:
            raise errors.pop()
        return "done"

    assert reserve.making_room(act) == "done"
    assert (there, place.stat().st_size) == ([True, False], RESERVE_BYTES)
    errors.append(OSError(errno.EIO, "broken"))
    with pytest.raises(OSError, match="broken"):
        reserve.making_room(act)
    errors += [DiskFull("still full"), error]
    with pytest.raises(DiskFull, match="still full"):
        reserve.making_room(act)
    assert (len(there), place.stat().st_size) == (5, RESERVE_BYTES)
