"""What one client, or a full disk, can take of a source: a share of it for a while, and nothing that was accepted."""

import shutil
import socket
import threading
import time
from collections.abc import Callable

import pytest

from ddib_fed.errors import DiskFull, QueueFull, QuotaSpent
from ddib_fed.v1 import translation_pb2 as pb
from source_node.submission import Receiving, Staging
from tests import audit_rows
from tests.e2e.harness import wait_until
from tests.node.tiny_nodes import make_institution, npy
from tests.small_disks import small_disk
from tests.source_node.jobs.job_examples import ALICE, BOB, LIMITS, add, close_jobs, header, open_jobs, submit
from tests.source_node.scripted_target import hang
from tests.source_node.served import Served, job_header

LONG_S = 120.0
"""Of a call to a peer that is away; who does not wait for it needs a fraction."""


def again_and_again(submit_one: Callable[[], object]) -> None:
    for _ in range(20):
        submit_one()


@pytest.fixture
def gone(tmp_path, institutions):
    """A peer whose machine takes connections and says nothing: each try takes as long as a call may."""
    north, _ = institutions
    made = make_institution(tmp_path / "gone", "gone.example")
    made.admit(north)
    with socket.create_server(("127.0.0.1", 0)) as hole:
        north.admit(made, f"127.0.0.1:{hole.getsockname()[1]}")
        yield made


def test_jobs_for_a_peer_that_is_away_keep_no_worker_from_others(open_source, gone, monkeypatch) -> None:
    monkeypatch.setattr("source_node.remote.UNARY_TIMEOUT_S", LONG_S)
    source = open_source(running_jobs=4)
    absent = [source.submit(target_institution="gone.example") for _ in range(30)]
    source.start()
    started = time.monotonic()
    for owner in (BOB, ALICE):
        assert source.ended(source.submit(owner=owner), LONG_S).state == "FINISHED"
    assert time.monotonic() - started < LONG_S
    running = [job for job in absent if source.store.get(job).state == "RUNNING"]
    assert len(running) <= 1, "one tries whether it is back"


def test_one_client_cannot_have_all_workers(open_source, target) -> None:
    """Of six she has four, whatever she submits; another's job is taken up at once, and next."""
    target.decodes = [hang] * 4
    source = open_source(running_jobs=6).start()
    hers = [source.submit() for _ in range(12)]
    wait_until(lambda: not target.decodes)  # the calls that hang are hers
    assert sum(source.store.get(job).state == "RUNNING" for job in hers) == 4
    assert source.ended(source.submit(owner=BOB)).state == "FINISHED"
    target.release.set()
    for job in hers:
        source.ended(job)


def test_jobs_that_wait_for_a_peer_take_no_place_of_those_that_can_run(tmp_path) -> None:
    """Each peer has places of its own, of which a client has a share."""
    store = open_jobs(tmp_path, LIMITS.model_copy(update={"max_open_jobs": 12}))

    def send(owner: str, institution: str) -> None:
        with Receiving(store).stage(owner, header(target_institution=institution)) as staging:
            add(staging, b"points")
            staging.commit()

    with pytest.raises(QueueFull, match="are open"):
        again_and_again(lambda: send(ALICE, "gone.example"))
    send(BOB, "gone.example")
    for owner in (ALICE, BOB):
        send(owner, "south.example")
    close_jobs(store)


def test_one_client_cannot_fill_the_spool(tmp_path) -> None:
    """Files of jobs that nobody fetches count as well."""
    store = open_jobs(tmp_path, LIMITS.model_copy(update={"max_open_jobs": 64, "max_spool_bytes": 9_000}))
    with pytest.raises(QueueFull, match="share of the spool"):
        again_and_again(lambda: submit(store, bytes(1_000)))
    submit(store, bytes(1_000), owner=BOB)
    close_jobs(store)


@pytest.fixture
def served(tmp_path, institutions, target, engine):
    made = Served(tmp_path, institutions[0], engine, client_evaluations_per_day=1_000)
    yield made
    made.close()


def test_a_client_has_a_quota_of_its_own_nodes_work(served) -> None:
    served.submit(npy(40))
    served.submit(npy(30), cycle=True)
    with pytest.raises(QuotaSpent) as refused:
        served.submit(npy(26))
    assert refused.value.facts["quota"] == "client_evaluations_per_day"
    assert refused.value.facts["left"] == "200"
    assert refused.value.hop == "source north.example"
    served.submit(npy(25))


def test_a_client_without_quota_is_refused_before_its_bytes(served) -> None:
    """It would send gigabytes first, and the node would keep them."""
    served.submit(npy(125))
    answered = threading.Event()

    def header_alone():
        yield job_header(1)
        answered.wait(20)

    with pytest.raises(QuotaSpent):
        served.ask("SubmitJob", header_alone(), timeout=60)
    answered.set()


def test_a_job_that_could_not_be_kept_is_not_charged(served, monkeypatch) -> None:
    def full(_staging: Staging) -> None:
        raise DiskFull

    with monkeypatch.context() as patch:
        patch.setattr(Staging, "commit", full)
        with pytest.raises(DiskFull):
            served.submit(npy(100))
    served.submit(npy(125))


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
