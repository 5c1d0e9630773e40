"""Files of the spool: private, whole, counted, swept."""

import errno
import os
from pathlib import Path

import pytest

from ddib_fed.errors import DiskFull
from source_node.spool import Spool, ToWrite


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "state" / "spool"


@pytest.fixture
def spool(folder):
    return Spool(folder)


@pytest.fixture
def job(spool):
    """A job that was received with one input."""
    job_id = spool.new_job_id()
    stage(spool, job_id, b"points")
    spool.adopt(job_id, ["0.input"])
    return job_id


def stage(spool, job_id: str, data: bytes) -> None:
    file = spool.stage(job_id, "0.input")
    file.write(data)
    file.close()


def put(spool, job_id: str, name: str, data: bytes) -> None:
    for error in spool.put_together([ToWrite(job_id, name, data)]).values():
        raise error


def names(folder) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_files_and_folders_are_private(spool, job, folder):
    """0600 and 0700, whatever the umask."""
    old = os.umask(0)
    try:
        other = spool.new_job_id()
        stage(spool, other, b"x")
        spool.adopt(other, ["0.input"])
        put(spool, other, "0.encoded", b"x")
    finally:
        os.umask(old)
    modes = {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()}
    folders = {path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*")) if path.is_dir()}
    assert (modes, folders) == ({0o600}, {0o700})


def test_the_sweep_removes_what_no_row_names(spool, job, folder):
    """Staged leftovers, torn writes, parts and jobs without a row; nothing else."""
    left = spool.new_job_id()
    stage(spool, left, b"x")
    put(spool, job, "0.encoded", b"x")
    (folder / job / ".0.translation-abcd").write_bytes(b"torn")
    (folder / ("0" * 32)).mkdir()
    (folder / "stray").write_bytes(b"x")
    assert spool.sweep({(job, "0.input")}) == 4
    assert names(folder) == {f"{job}/0.input"}
    assert [path.name for path in folder.iterdir()] == [job]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named(spool, job, folder, monkeypatch, code):
    """The error asks the client to retry; nothing is left of the file."""

    def full(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskFull) as caught:
        put(spool, job, "0.encoded", b"x")
    assert caught.value.retry_after_s
    assert names(folder) == {f"{job}/0.input"}
    assert spool.used_bytes == len(b"points")


@pytest.mark.parametrize("job_id", ["..", "a/b", "A" * 32, "0" * 31])
def test_only_our_own_ids_become_paths(spool, job_id):
    """Whatever a caller passes."""
    with pytest.raises(ValueError, match="no name in the spool"):
        spool.get(job_id, "0.input")


def test_files_are_on_the_disk_before_anybody_is_told(spool, folder, monkeypatch):
    """Each file is synced whole, and then the folder that names it."""
    synced: list[tuple[str, bytes | None]] = []
    fsync = os.fsync

    def noting(descriptor):
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append((path.name, path.read_bytes() if path.is_file() else None))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noting)
    job_id = spool.new_job_id()
    stage(spool, job_id, b"input")
    spool.adopt(job_id, ["0.input"])
    staged, by_name, spool_folder = synced
    assert staged[1] == b"input"
    assert by_name[0].endswith(job_id)
    assert spool_folder[0] == folder.name
    synced.clear()
    put(spool, job_id, "0.latent", b"latent")
    assert [content for _, content in synced] == [b"latent", None]
    assert synced[1][0] == job_id
