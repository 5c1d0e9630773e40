"""The clients' service behind its real port: jobs from submission to deletion, their watchers, and who decodes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ddib_fed.client.client import Client
from ddib_fed.errors import (
    DdibError,
    DeadlineExceeded,
    ItemNotFound,
    MessageInvalid,
    QueueFull,
    TooManyStreams,
)
from ddib_fed.protocol.messages import Settings
from ddib_fed.v1 import translation_pb2 as pb
from source_node.service import MAX_LISTINGS
from tests.node.tiny_nodes import npy
from tests.source_node.conftest import wait_until
from tests.source_node.scripted_target import hang
from tests.source_node.served import Served


@pytest.mark.slow
def test_a_client_waits_for_a_stream_when_all_of_its_own_are_taken(
    tmp_path, institutions, target, engine
) -> None:
    """The real limiter refuses the third stream of one person; the client comes back until one is free."""
    target.decodes = [hang]
    served = Served(tmp_path, institutions[0], engine, per_identity=2)
    try:
        job_id = served.submit(npy())
        told: list[DdibError] = []
        with served.called() as stub:
            held = [stub.WatchJob(pb.WatchJobRequest(job_id=job_id), timeout=30) for _ in range(2)]
            for watching in held:
                next(watching)

            def on_wait(error: DdibError, delay_s: float) -> None:
                told.append(error)
                held[0].cancel()

            with Client(served.profile, on_wait=on_wait) as client:
                assert client.submit([npy()], "south.example/checkerboards", Settings(evaluations=8)).job_id
            again = stub.WatchJob(pb.WatchJobRequest(job_id=job_id), timeout=30)
            next(again)
            with Client(served.profile, busy_s=0) as hasty, pytest.raises(TooManyStreams):
                next(hasty.watch(job_id))
        assert {(error.reason, error.retry_after_s) for error in told} == {("TOO_MANY_STREAMS", 1.0)}
    finally:
        target.release.set()
        served.close()


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


def test_a_watcher_is_told_the_end_of_a_job_that_ended_while_it_was_told_the_start(
    served, target, monkeypatch
) -> None:
    """A state that is published late is followed by the one that is true: nobody watches for ever."""
    target.decodes = [hang]
    job_id = served.submit(npy())
    assert target.asked.wait(10)
    events, store, publish = served.service._events, served.service._store, served.service._events.publish
    raced: list[bool] = []
    teller = threading.current_thread()

    def late(job: str, state, **said):
        if threading.current_thread() is teller and not raced:  # the engine's thread publishes too
            raced.append(True)
            served.ask("CancelJob", pb.CancelJobRequest(job_id=job))
            wait_until(lambda: store.get(job).state.ended and events.last(job).state.ended)
        return publish(job, state, **said)

    monkeypatch.setattr(events, "publish", late)
    served.service._servicer._tell(job_id)
    assert raced
    assert served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))[-1].state == pb.JOB_STATE_CANCELLED


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
            assert list(client.watch(job_id))[-1].state.ended
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


def test_results_that_are_not_there_are_not_found(served) -> None:
    """An item that does not exist, of a job that does."""
    job_id = served.submit(npy())
    served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
    with pytest.raises(ItemNotFound):
        served.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id, items=[5]))


def test_an_item_is_asked_for_once_in_a_call(served) -> None:
    """A few bytes for each name would have its file sent again, and be a line of the audit log."""
    job_id = served.submit(npy())
    served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
    with pytest.raises(MessageInvalid):
        served.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id, items=[0, 0]))
    twice = [pb.Acknowledgement(item=0, sha256=bytes(32))] * 2
    with pytest.raises(MessageInvalid):
        served.ask("AcknowledgeItems", pb.AcknowledgeItemsRequest(job_id=job_id, items=twice))
