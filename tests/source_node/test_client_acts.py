"""What clients have a node do is in its audit log before it is done, whole, and once."""

from __future__ import annotations

import pytest

from ddib_fed.errors import DdibError
from ddib_fed.protocol.messages import ItemState
from ddib_fed.v1 import translation_pb2 as pb
from tests import audit_rows
from tests.node.tiny_nodes import npy
from tests.source_node.jobs.job_examples import ALICE
from tests.source_node.scripted_target import hang
from tests.source_node.served import Served

ITEMS = 40
"""More than a list of one line holds."""


@pytest.fixture
def served(tmp_path, institutions, target, engine):
    made = Served(tmp_path, institutions[0], engine, max_items_per_job=100, max_evaluations=100)
    yield made
    made.close()


def acts(served: Served, *wanted: str) -> list[dict]:
    return audit_rows.records(served.node.config.paths.store, *wanted)


def finished(served: Served, items: int = 1) -> tuple[str, list[pb.Acknowledgement]]:
    """A job that has ended, and what acknowledges all of it."""
    job_id = served.submit(*(npy(seed=item) for item in range(items)))
    served.ask("WatchJob", pb.WatchJobRequest(job_id=job_id))
    told = served.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id))
    headers = [
        each.result for each in told if isinstance(each, pb.FetchResultsResponse) and each.HasField("result")
    ]
    return job_id, [pb.Acknowledgement(item=each.item, sha256=each.file.sha256) for each in headers]


def acknowledge(served: Served, job_id: str, items: list[pb.Acknowledgement]) -> int:
    return served.ask("AcknowledgeItems", pb.AcknowledgeItemsRequest(job_id=job_id, items=items)).remaining


def test_results_that_are_sent_are_named_though_nobody_acknowledges_them(served) -> None:
    """Each time, with the client; a request for some names those alone."""
    job_id, _ = finished(served, 3)
    served.ask("FetchResults", pb.FetchResultsRequest(job_id=job_id, items=[2, 0]))
    lines = [(line["job"], line["client"], line["items"]) for line in acts(served, "results_sent")]
    assert lines == [(job_id, ALICE, ["0", "1", "2"]), (job_id, ALICE, ["2", "0"])]


def test_nothing_is_done_that_is_not_written_down(served, target, monkeypatch) -> None:
    """While the log cannot be written results and jobs stay, and what runs goes on."""
    job_id, items = finished(served)
    target.decodes = [hang]
    running = served.submit(npy())
    assert target.asked.wait(10)
    store = served.service._store
    with monkeypatch.context() as patched:
        audit_rows.full_disk(patched)
        for name, request in (
            ("FetchResults", pb.FetchResultsRequest(job_id=job_id)),
            ("AcknowledgeItems", pb.AcknowledgeItemsRequest(job_id=job_id, items=items)),
            ("DeleteJob", pb.DeleteJobRequest(job_id=job_id)),
            ("CancelJob", pb.CancelJobRequest(job_id=running)),
        ):
            with pytest.raises(DdibError):
                served.ask(name, request)
    assert [item.state for item in store.get(job_id).items] == [ItemState.DECODED]
    assert list(served.node.config.paths.spool.glob(f"{job_id}/*"))
    assert not store.is_cancelled(running)
    assert acknowledge(served, job_id, items) == 0


def test_a_job_that_was_accepted_stays_charged_though_it_cannot_be_read_back(served, monkeypatch) -> None:
    """The client gets an error, and its job is done all the same."""

    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(served.service._store, "get", fails)
        with pytest.raises(DdibError):
            served.submit(npy())
    (account,) = served.node.quotas._accounts.values()
    assert account.spent > 0
