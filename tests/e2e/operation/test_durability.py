"""Kills, drains, cancels: an accepted job is finished once, or refused with a reason; also by workers."""

import os
import re
import signal
import sqlite3
import sys
import threading
import time
from pathlib import Path

import pytest

from ddib_fed import Request
from ddib_fed.client.client import Client
from ddib_fed.errors import DdibError, JobNotFound
from ddib_fed.record import Settings
from ddib_fed.security.audit import lines_of, verify
from ddib_fed.testing import NodeProcess, TwoNodes, ddib
from tests.client.scripted_source import TARGET, npy
from tests.e2e import clocks
from tests.e2e.harness import START_S, moons, wait_until
from tests.e2e.processes import PLANT

pytestmark = [pytest.mark.e2e, pytest.mark.promise("jobs")]

# Enough work that a kill falls into the middle: a few seconds on one core.
ITEMS = [npy(moons(1_000, seed=n)) for n in range(4)]


def first_progress(client: Client, job_id: str, stage: str) -> None:
    """Return once the job has reported from `stage`."""
    for event in client.watch(job_id):
        if event.stage == stage:
            return
    raise AssertionError(f"the job ended before it reported {stage}")


def check_finished_once(pair: TwoNodes, client: Client, job_id: str, items: int) -> None:
    """Every item has one result, the database is intact, and the audit's chain is whole."""
    for _ in client.watch(job_id):
        pass
    job = client.get(job_id)
    assert job.state == "FINISHED", job
    assert [item.state for item in job.items] == ["DECODED"] * items
    results = list(client.fetch(job_id))
    assert sorted(result.item for result in results) == list(range(items))
    database = sqlite3.connect(pair.source.config.paths.store)
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
    assert [j.job_id for j in client.list()].count(job_id) == 1
    assert verify(lines_of(pair.source.config.paths.store)).ok


@pytest.mark.parametrize(("victim", "stage"), [("source", "encode"), ("target", "decode")])
def test_a_killed_node_goes_on_after_its_restart(fresh_pair: TwoNodes, victim: str, stage: str) -> None:
    """kill -9 in the middle of a job; after a restart it is finished, and each item once."""
    pair = fresh_pair.start()
    node: NodeProcess = getattr(pair, victim)
    with pair.client() as client:
        job = client.submit(ITEMS, TARGET, Request(Settings(evaluations=96)))
        first_progress(client, job.job_id, stage)
        node.kill()
        node.start(wait=False)
        check_finished_once(pair, client, job.job_id, len(ITEMS))


def test_a_machine_that_slept_for_8_days_loses_neither_results_nor_jobs(fresh_pair: TwoNodes) -> None:
    """Killed with a result that nobody fetched and a job that waits for its peer; more than `result_days` later."""
    pair = fresh_pair.start()
    with pair.client() as client:
        ended = client.submit([npy(moons(5))], TARGET, Request(Settings(evaluations=8)))
        for _ in client.watch(ended.job_id):
            pass
        pair.target.kill()
        waiting = client.submit([npy(moons(5))], TARGET, Request(Settings(evaluations=8)))
        first_progress(client, waiting.job_id, "wait")
        pair.source.kill()
        pair.source.environment = {PLANT: clocks.PLANTED, clocks.AHEAD: str(8 * 86_400)}
        pair.source.start()
        assert client.get(ended.job_id).expires - time.time() > 14 * 86_400
        pair.target.start()
        for job in (ended, waiting):
            check_finished_once(pair, client, job.job_id, 1)


def test_sigterm_drains_and_exits_zero(fresh_pair: TwoNodes) -> None:
    """A draining source finishes what runs, refuses what comes, and exits 0."""
    pair = fresh_pair.start()
    with pair.client() as client:
        job = client.submit([npy(moons(1_000))], TARGET, Request(Settings(evaluations=200)))
        first_progress(client, job.job_id, "encode")
        code: list[int | None] = []
        stopper = threading.Thread(target=lambda: code.append(pair.source.stop(START_S)))
        stopper.start()
        wait_until(lambda: pair.source.state() in {"draining", "down"}, what="draining")
        with pair.client(patience_s=0) as hasty, pytest.raises(DdibError) as refused:
            hasty.submit([npy(moons(5))], TARGET)
        assert refused.value.reason in {"DRAINING", "PEER_UNREACHABLE"}
        stopper.join()
        assert code == [0]
        pair.source.start()
        check_finished_once(pair, client, job.job_id, 1)


def test_a_second_sigterm_stops_at_once(fresh_pair: TwoNodes) -> None:
    """Two signals: the node does not wait for its jobs, and they go on at the next start."""
    pair = fresh_pair.start()
    with pair.client() as client:
        job = client.submit([npy(moons(5_000))], TARGET, Request(Settings(evaluations=2_000)))
        first_progress(client, job.job_id, "encode")
        assert pair.source.process is not None
        pair.source.process.terminate()
        wait_until(lambda: pair.source.state() == "draining", what="draining")
        pair.source.process.terminate()
        pair.source.process.wait(timeout=START_S)  # its job takes about 80 s of CPU
        pair.source.start()
        assert client.get(job.job_id).state.ended is False
        client.cancel(job.job_id)


def test_a_cancelled_job_stops_at_the_next_step(pair: TwoNodes) -> None:
    """Cancelling ends a long job at once, and a finished item cannot be had from it."""
    with pair.client() as client:
        job = client.submit([npy(moons(5_000))], TARGET, Request(Settings(evaluations=2_000)))
        first_progress(client, job.job_id, "encode")
        client.cancel(job.job_id)
        wait_until(lambda: client.get(job.job_id).state == "CANCELLED", what="cancelled")
        assert not list(client.fetch(job.job_id))
        client.delete(job.job_id)


def test_jobs_of_another_client_do_not_exist(pair, tmp_path):
    """Bob cannot see, fetch or cancel what Alice submitted."""
    ddib("init", "client", "--config", pair.source.config_path, "--name", "bob", "--out", tmp_path / "bob")
    with pair.client() as alice, Client.from_profile(tmp_path / "bob" / "client.toml") as bob:
        job = alice.submit([npy(moons(3))], TARGET)
        with pytest.raises(JobNotFound):
            bob.get(job.job_id)
        with pytest.raises(JobNotFound):
            bob.cancel(job.job_id)
        assert job.job_id not in {j.job_id for j in bob.list()}


def workers(node: NodeProcess) -> list[int]:
    return [int(re.search(r"process (\d+)", line)[1]) for line in node.node.status().workers.ready]


def lives(process: int) -> bool:
    """Whether the process runs; a zombie does not."""
    if not sys.platform.startswith("linux"):
        return os.system(f"kill -0 {process}") == 0
    try:
        return ") Z" not in Path(f"/proc/{process}/stat").read_text()
    except FileNotFoundError:
        return False


def test_a_job_outlives_its_worker_and_its_node(fresh_pair: TwoNodes) -> None:
    """A killed worker's work is done by another, and a killed node's by the next, whose worker it is not."""
    pair, north = fresh_pair, fresh_pair.source
    north.configure({"executor": "processes", "workers": 1})
    pair.start()
    with pair.client() as client:
        job = client.submit(ITEMS, TARGET, Request(Settings(evaluations=96)))
        first_progress(client, job.job_id, "encode")
        (first,) = workers(north)
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: workers(north) not in ([], [first]), what="another worker")
        (second,) = workers(north)
        assert north.node.status().workers.replaced == 1
        north.kill()
        wait_until(lambda: not lives(second), what="the worker's end")
        north.start()
        check_finished_once(pair, client, job.job_id, len(ITEMS))
    (third,) = workers(north)
    os.kill(third, signal.SIGTERM)  # a service manager signals all processes
    assert north.stop(START_S) == 0
    wait_until(lambda: not lives(third), what="the worker's end")


def test_a_deadline_ends_a_job(pair: TwoNodes) -> None:
    """A job past its deadline fails with that reason."""
    with pair.client() as client:
        job = client.submit([npy(moons(5_000))], TARGET, Request(Settings(evaluations=2_000)), deadline_s=1)
        wait_until(lambda: client.get(job.job_id).state == "FAILED", what="deadline")
        assert client.get(job.job_id).error.reason == "DEADLINE_EXCEEDED"
