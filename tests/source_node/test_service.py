"""The clients' service behind its real port, from submission to deletion, and its audit log of clients and peers."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from ddib_fed.client.client import Client
from ddib_fed.errors import DdibError, DeadlineExceeded, MessageInvalid, QueueFull, TooManyStreams
from ddib_fed.node.role import NodeContext
from ddib_fed.protocol.streams import file_header, stream
from ddib_fed.security.audit import digest
from ddib_fed.v1 import common_pb2, decoding_pb2
from ddib_fed.v1 import translation_pb2 as pb
from source_node.service import MAX_LISTINGS
from tests import audit_rows
from tests.e2e.harness import wait_until
from tests.node.tiny_nodes import npy
from tests.source_node.jobs.job_examples import ALICE
from tests.source_node.scripted_target import ScriptedTarget, hang
from tests.source_node.served import Served


def test_a_job_goes_from_submission_to_acknowledged(served) -> None:
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
        assert all(entered.acquire(timeout=60) for _ in waiting)
        with pytest.raises(TooManyStreams):
            served.ask("ListDomains", pb.ListDomainsRequest())
        served.ask("ListJobs", pb.ListJobsRequest())
        target.release.set()
        assert [future.result().domains[0].status for future in waiting] == ["ready"] * MAX_LISTINGS


def test_an_item_is_asked_for_once_in_a_call(served) -> None:
    """A few bytes for each name would have its file sent again, and be a line of the audit log."""
    job_id = served.submit(npy())
    served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
    with pytest.raises(MessageInvalid):
        served.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id, items=[0, 0]))
    twice = [pb.Acknowledgement(item=0, sha256=bytes(32))] * 2
    with pytest.raises(MessageInvalid):
        served.ask("AcknowledgeItems", pb.AcknowledgeItemsRequest(job_id=job_id, items=twice))


def acts(node: NodeContext, act: str) -> list[dict]:
    return audit_rows.records(node.config.paths.store, act)


def finished(served: Served, items: int = 1) -> str:
    job_id = served.submit(*(npy(seed=item) for item in range(items)))
    served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
    return job_id


def test_results_that_are_sent_are_named_though_nobody_acknowledges_them(served) -> None:
    """Each time, with the client; a request for some names those alone."""
    job_id = finished(served, 3)
    served.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id))
    served.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id, items=[2, 0]))
    lines = [(line["job"], line["client"], line["items"]) for line in acts(served.node, "results_sent")]
    assert lines == [(job_id, ALICE, ["0", "1", "2"]), (job_id, ALICE, ["2", "0"])]


def test_no_result_is_sent_that_is_not_written_down(served, monkeypatch) -> None:
    """While the log cannot be written the client gets an error; afterwards it has the result."""
    request = pb.FetchResultsRequest(job_id=finished(served))
    with monkeypatch.context() as patched:
        audit_rows.full_disk(patched)
        with pytest.raises(DdibError):
            served.ask("FetchResults", request)
    assert served.ask("FetchResults", request)


THREE = [npy(seed=n) for n in range(3)]


def telling(lines: int):
    """Honest, and with each answer the end of its own log, one line longer each time."""

    def behave(target: ScriptedTarget, header, items, context):
        for number, (item, latent) in enumerate(items):
            file = target.translation(latent)
            head = common_pb2.AuditHead(lines=lines + number, sha256=bytes([number]) * 32)
            named = decoding_pb2.DecodedHeader(
                item=item, file=file_header(target.media_type, file), audit=head
            )
            yield from stream(decoding_pb2.DecodeResponse, "result", named, file)
            target.answered += 1

    return behave


def test_the_receipt_has_the_bytes_and_the_end_of_the_peers_log(source, target):
    """One for each call, with what came last."""
    target.decodes = [telling(70)]
    job = source.start().ended(source.submit(*THREE))
    wait_until(lambda: acts(source.node, "receipt"))
    (receipt,) = acts(source.node, "receipt")
    assert (receipt["job"], receipt["peer"]) == (job.job_id, "south.example")
    assert (receipt["sent_items"], receipt["sent_bytes"]) == (
        3,
        sum(latent.size_bytes for _, latent in target.latents),
    )
    files = sum(len(target.translation(latent)) for _, latent in target.latents)
    assert (receipt["received_items"], receipt["received_bytes"]) == (3, files)
    assert (receipt["peer_lines"], receipt["peer_head"]) == (72, "02" * 32)


def test_each_latent_goes_with_the_end_of_the_log_that_has_its_line(source, target):
    """The peer can show that this log had the line of the latent that it got."""
    job = source.start().ended(source.submit(*THREE))
    assert source.states(job) == ["DECODED"] * 3
    lines = audit_rows.lines(source.config.paths.store)
    assert len(target.anchors) == 3
    for item, anchor in target.anchors.items():
        assert digest(lines[anchor.lines - 1]) == anchor.sha256.hex()
        before = [json.loads(line) for line in lines[: anchor.lines]]
        assert item in {record["item"] for record in before if record["act"] == "latent_sent"}


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
