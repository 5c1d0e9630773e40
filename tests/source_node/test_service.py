"""The clients' service behind its real port: jobs from submission to deletion, their watchers, and who decodes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ddib_fed.client.client import ENDED, Client
from ddib_fed.errors import (
    DeadlineExceeded,
    MessageInvalid,
    QueueFull,
    TooManyStreams,
)
from ddib_fed.v1 import translation_pb2 as pb
from source_node.service import MAX_LISTINGS
from tests.node.tiny_nodes import npy
from tests.source_node.conftest import wait_until
from tests.source_node.scripted_target import hang
from tests.source_node.served import Served


def test_a_job_goes_from_submission_to_acknowledged(served) -> None:
    """Accepted, watched to its end, fetched, acknowledged, deleted."""
    job_id = served.submit(npy())
    events = served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
    assert events[-1].state == pb.JOB_STATE_FINISHED
    (listed,) = served.ask("ListJobs", pb.ListJobsRequest()).jobs
    whole = served.ask("GetJob", pb.GetJobRequest(job_id=job_id)).job
    assert [(job.items_done, job.item_count, len(job.items)) for job in (listed, whole)] == [
        (1, 1, 0),
        (1, 1, 1),
    ]
    fetched = served.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id))
    digest = fetched[0].result.file.sha256
    written = pb.Acknowledgement(item=0, sha256=digest)
    done = pb.AcknowledgeItemsRequest(job_id=job_id, items=[written])
    assert served.ask("AcknowledgeItems", done).remaining == 0
    served.ask("DeleteJob", pb.DeleteJobRequest(job_id=job_id))
    assert served.ask("ListJobs", pb.ListJobsRequest()).jobs == []


@pytest.mark.slow
def test_a_watch_of_a_job_that_does_not_move_is_ended_and_a_client_watches_on(
    tmp_path, institutions, target, engine
) -> None:
    """The call ends, with the reason; `Client.watch` makes the next one and sees the job's end."""
    target.decodes = [hang]
    served = Served(tmp_path, institutions[0], engine, idle_s=0.5)
    try:
        job_id = served.submit(npy())
        with pytest.raises(DeadlineExceeded) as idle:
            served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
        assert idle.value.facts == {"idle_s": "0.5"}
        with Client(served.profile) as client:
            threading.Timer(1.2, target.release.set).start()
            assert list(client.watch(job_id))[-1].state in ENDED
    finally:
        target.release.set()
        served.close()


def test_listing_domains_cannot_take_every_thread(served, target, monkeypatch) -> None:
    """While peers are silent, few callers wait for them; the next must try again later, and others are served."""
    monkeypatch.setattr("source_node.service.DESCRIBE_TIMEOUT_S", 20.0)
    entered = threading.Semaphore(0)
    target.negotiation = lambda: (entered.release(), target.release.wait(20))
    with ThreadPoolExecutor(MAX_LISTINGS) as pool:
        waiting = [
            pool.submit(served.ask, "ListDomains", pb.ListDomainsRequest()) for _ in range(MAX_LISTINGS)
        ]
        assert all(entered.acquire(timeout=10) for _ in waiting)
        with pytest.raises(TooManyStreams):
            served.ask("ListDomains", pb.ListDomainsRequest())
        served.ask("ListJobs", pb.ListJobsRequest())
        target.release.set()
        assert [future.result().domains[0].status for future in waiting] == ["ready"] * MAX_LISTINGS


def test_the_janitor_outlives_a_full_disk(tmp_path, institutions, target, engine, monkeypatch) -> None:
    """What nobody fetched is removed at start and later, also after a removal failed."""
    monkeypatch.setattr("source_node.service.EXPIRE_EVERY_S", 0.01)
    tries: list[int] = []

    def expire(store) -> int:
        tries.append(1)
        raise QueueFull("full")

    monkeypatch.setattr("source_node.store.JobStore.expire", expire)
    served = Served(tmp_path, institutions[0], engine)
    wait_until(lambda: len(tries) > 2)
    served.close()


def test_an_item_is_asked_for_once_in_a_call(served) -> None:
    """A few bytes for each name would have its file sent again, and be a line of the audit log."""
    job_id = served.submit(npy())
    served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
    with pytest.raises(MessageInvalid):
        served.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id, items=[0, 0]))
    twice = [pb.Acknowledgement(item=0, sha256=bytes(32))] * 2
    with pytest.raises(MessageInvalid):
        served.ask("AcknowledgeItems", pb.AcknowledgeItemsRequest(job_id=job_id, items=twice))
