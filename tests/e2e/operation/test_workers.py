"""A node whose work is done by processes of its own: killed workers, a killed node, and a drain."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

import pytest

from ddib_fed.node.admin import AdminClient
from ddib_fed.protocol.messages import Settings
from tests.e2e.harness import Node, Pair, wait_until
from tests.e2e.operation.test_durability import ITEMS, check_finished_once, first_progress
from tests.e2e.translation.test_translate import TARGET

pytestmark = pytest.mark.e2e


@pytest.fixture
def pair(fresh_pair: Pair) -> Pair:
    fresh_pair.north.edit('# executor = "inline" ', 'executor = "processes" ')
    fresh_pair.north.edit("# workers = 0 ", "workers = 1 ")
    return fresh_pair.start()


def workers(node: Node) -> list[int]:
    return [
        int(re.search(r"process (\d+)", line)[1]) for line in AdminClient(node.config).status().workers.ready
    ]


def lives(process: int) -> bool:
    """Whether it runs; one that nobody has reaped does not."""
    if not sys.platform.startswith("linux"):
        return os.system(f"kill -0 {process}") == 0
    try:
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


def test_a_job_outlives_its_worker_and_its_node(pair: Pair) -> None:
    """A killed worker's work is done by another, and a killed node's by the next, whose worker it is not."""
    north = pair.north
    with pair.client() as client:
        job = client.submit(ITEMS, TARGET, Settings(evaluations=192))
        first_progress(client, job.job_id, "encode")
        (first,) = workers(north)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: workers(north) not in ([], [first]), what="another worker")
        (second,) = workers(north)
        assert AdminClient(north.config).status().workers.replaced == 1
        north.kill()
        wait_until(lambda: not lives(second), seconds=10, what="the worker's end")
        north.start()
        check_finished_once(pair, client, job.job_id, len(ITEMS))
    (third,) = workers(north)
    os.kill(third, signal.SIGTERM)  # a service manager signals all processes
    assert north.terminate() == 0
    wait_until(lambda: not lives(third), seconds=10, what="the worker's end")
