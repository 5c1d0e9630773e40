"""`ddib peer suspend` between two running nodes: streams end at once, accepted jobs wait, new ones are refused."""

import time
from pathlib import Path

import pytest

from ddib_fed import Request
from ddib_fed.client.client import Client
from ddib_fed.errors import PeerSuspended
from ddib_fed.record import Settings
from ddib_fed.testing import NodeProcess, TwoNodes, ddib
from tests.chaos.load import STUB_TARGET, check_disk, restart, stub_pair
from tests.e2e.harness import wait_until
from tests.e2e.operation.test_durability import first_progress
from tests.node.tiny_nodes import npy

pytestmark = [pytest.mark.e2e, pytest.mark.promise("rotation")]


@pytest.mark.parametrize(
    ("where", "other"),
    [("target", "north.example"), pytest.param("source", "south.example", marks=pytest.mark.long)],
)
def test_a_live_stream_ends_and_its_job_waits_until_the_peer_is_resumed(
    tmp_path: Path, where: str, other: str, amount, evidence
) -> None:
    """At the target or at the source; both say so, also after a restart, and the job is finished once afterwards."""
    with stub_pair(tmp_path) as pair:
        node: NodeProcess = getattr(pair, where)
        with pair.client() as client:
            job = client.submit([npy(20_000)], STUB_TARGET, Request(Settings(evaluations=300)))
            first_progress(client, job.job_id, "decode")
            assert pair.target.node.status().jobs["decoding"] == 1
            begun = time.monotonic()
            ddib("peer", "list", "--config", node.config_path)
            usual_s, begun = time.monotonic() - begun, time.monotonic()
            said = ddib("peer", "suspend", other, "--reason", "audit", "--config", node.config_path)
            wait_until(lambda: pair.target.node.status().jobs.get("decoding", 0) == 0, what="the end")
            took = time.monotonic() - begun
            assert "the running node has applied it" in said
            assert waits(client, job.job_id)
            refused(pair, client)
            assert "suspended" in ddib("peer", "list", "--config", node.config_path)
            assert "suspended since" in ddib("status", "--config", node.config_path)
            node.kill()
            tries = pair.source.log.read_text().count("PEER_SUSPENDED (")
            restart(node)
            if where == "target":  # until its job is tried again north knows only that south was away
                wait_until(
                    lambda: pair.source.log.read_text().count("PEER_SUSPENDED (") > tries, what="another try"
                )
            refused(pair, client)
            ddib("peer", "suspend", "--undo", other, "--config", node.config_path)
            for _ in client.watch(job.job_id):
                pass
            ended = client.get(job.job_id)
            assert ended.state == "FINISHED"
            assert len(list(client.fetch(job.job_id))) == 1
        check_disk(pair, {ended.request_id})
        evidence.figure(
            f"the stream ended {took:.2f} s after the command began; `ddib peer list` took {usual_s:.2f} s"
        )
        assert took < amount(100, 20) * max(usual_s, 0.05), (
            "a stream ends at once: in seconds of `ddib peer list`"
        )


def waits(client: Client, job_id: str) -> bool:
    return any(event.stage == "wait" and event.reason == "PEER_SUSPENDED" for event in client.watch(job_id))


def refused(pair: TwoNodes, client: Client) -> None:
    """A new job is refused at once, with the reason and whose node suspended whom; the list of domains says so too."""
    wait_until(
        lambda: [each.status for each in client.domains().domains] == ["PEER_SUSPENDED"],
        what="nodes that talk to each other",
    )
    with pair.client(patience_s=0) as hasty, pytest.raises(PeerSuspended) as error:
        hasty.submit([npy(5)], STUB_TARGET)
    assert set(error.value.facts) == {"peer", "by"}
