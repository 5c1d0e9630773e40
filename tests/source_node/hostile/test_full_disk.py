"""A full disk is named wherever it is met, refuses what is new, and loses nothing that was accepted."""

from __future__ import annotations

import shutil

import pytest

from ddib_fed.errors import DiskFull
from ddib_fed.v1 import translation_pb2 as pb
from tests import audit_rows
from tests.node.tiny_nodes import npy
from tests.small_disks import small_disk
from tests.source_node.conftest import Source, wait_until
from tests.source_node.served import Served


def moved(state, disk, place: str) -> None:
    """One of a node's files, or its spool, lies on the small disk."""
    there = disk.folder / place
    if place == "spool":
        there.mkdir(mode=0o700)
    else:
        there.touch(mode=0o600)
    (state / place).symlink_to(there)


def submit_many(served: Served) -> None:
    for seed in range(1, 40):
        served.submit(npy(2_000, seed=seed))


@pytest.mark.parametrize("place", ["spool", "node.sqlite"])
def test_a_call_that_meets_a_full_disk_says_so(tmp_path, institutions, target, engine, place) -> None:
    """Wherever it is written: the client reads DISK_FULL with a time to come back, and no internal error."""
    with small_disk(tmp_path / "disk", 1) as disk:
        moved(tmp_path / "north" / "state", disk, place)
        served = Served(tmp_path, institutions[0], engine)
        try:
            first = served.submit(npy())
            disk.fill()
            with pytest.raises(DiskFull) as caught:
                submit_many(served)
            assert caught.value.retry_after_s
            disk.free()
            assert served.submit(npy(seed=50)) != first
            assert len(served.ask("ListJobs", pb.ListJobsRequest()).jobs) >= 2
        finally:
            served.close()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["spool", "node.sqlite"])
def test_an_accepted_job_outlives_a_full_disk(tmp_path, institutions, target, engine, place, caplog) -> None:
    """It fills before the job begins; with room again the job is finished, once."""
    with small_disk(tmp_path / "disk", 2) as disk:
        moved(tmp_path / "north" / "state", disk, place)
        source = Source(tmp_path / "north", institutions[0], engine)
        try:
            job_id = source.submit(npy(2_000), deadline_s=120)
            disk.fill()
            source.start()
            wait_until(lambda: source.store.get(job_id).error or "cannot be used now" in caplog.text)
            disk.free()
            job = source.ended(job_id, 60.0)
            assert (str(job.state), source.states(job)) == ("FINISHED", ["DECODED"]), job.error
            assert len(target.latents) == 1
        finally:
            source.stop()


def write_on(served: Served) -> None:
    for _ in range(100):
        served.node.audit.write("padding", text="x" * 200)


@pytest.mark.slow
def test_what_makes_room_is_done_on_a_full_disk(tmp_path, institutions, target, engine) -> None:
    """Deliveries and deletions are written down first: a reserve is kept for that, and then there is room again."""
    with small_disk(tmp_path / "disk", 16) as disk:
        state = tmp_path / "north" / "state"
        shutil.copytree(state, disk.folder, dirs_exist_ok=True)
        shutil.rmtree(state)
        state.symlink_to(disk.folder)
        served = Served(tmp_path, institutions[0], engine)
        try:
            job_id = served.submit(npy(2_000))
            served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
            told = served.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id))
            written = pb.Acknowledgement(item=0, sha256=told[0].result.file.sha256)
            for name, request in (
                ("AcknowledgeItems", pb.AcknowledgeItemsRequest(job_id=job_id, items=[written])),
                ("DeleteJob", pb.DeleteJobRequest(job_id=job_id)),
            ):
                disk.fill()
                with pytest.raises(OSError, match="full"):
                    write_on(served)
                served.ask(name, request)
            log = str(audit_rows.lines(served.node.config.paths.store))
            assert all(f'"act":"{act}"' in log for act in ("items_delivered", "job_deleted"))
            assert "not_done" not in log
        finally:
            served.close()
