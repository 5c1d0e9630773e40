"""Kill -9 in the middle of everything: what was acknowledged is still true, and every job is finished once."""

import hashlib
import json
import random
import signal
import sqlite3
import subprocess
import sys

import pytest

from ddib_fed.protocol.messages import ItemState, JobState
from source_node.records import Part
from source_node.store import JobStore
from tests.source_node.jobs.job_examples import ALICE, LIMITS
from tests.source_node.jobs.killed_store import ITEMS, item_bytes, request_id

pytestmark = pytest.mark.slow

KILLS = 20
ORDER = [*ItemState]
LAST = 10_000


class Ledger:
    """What the killed processes said, and what the store must therefore know."""

    def __init__(self) -> None:
        self.jobs: dict[str, int] = {}
        self.items: dict[tuple[str, int], str] = {}
        self.finished: set[str] = set()
        self.boots: list[int] = []

    def hear(self, line: str) -> None:
        fact = json.loads(line)
        if "boot" in fact:
            self.boots.append(fact["boot"])
        elif "number" in fact:
            assert self.jobs.setdefault(fact["job"], fact["number"]) == fact["number"]
        elif "item" in fact:
            self.items[fact["job"], fact["item"]] = fact["state"]
        else:
            assert fact["job"] not in self.finished, "a job was finished twice"
            self.finished.add(fact["job"])

    @property
    def next_request(self) -> int:
        return max(self.jobs.values(), default=-1) + 1


def start(folder, ledger: Ledger, last: int = LAST) -> subprocess.Popen:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.source_node.jobs.killed_store",
            str(folder),
            str(ledger.next_request),
            str(last),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )


def run_and_kill(folder, ledger: Ledger, facts: int) -> None:
    """Hear some facts, kill the process wherever it is by then, and hear what was still in the pipe."""
    with start(folder, ledger) as process:
        for _ in range(facts):
            ledger.hear(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        for line in process.stdout:
            if line.endswith("\n"):
                ledger.hear(line)
    assert process.returncode == -signal.SIGKILL


def check_database(folder) -> None:
    connection = sqlite3.connect(folder / "jobs.sqlite")
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
    connection.close()


def check_store(store: JobStore, ledger: Ledger) -> None:
    """Every acknowledged fact holds, and every file that a row names is whole."""
    for job_id, number in ledger.jobs.items():
        job = store.get(job_id)
        assert job.request.request_id == request_id(number)
        for item in job.items:
            said = ledger.items.get((job_id, item.index), ItemState.RECEIVED)
            assert ORDER.index(item.state) >= ORDER.index(said)
            for part in store.parts(job_id, item.index):
                assert store.read_part(job_id, item.index, part) == item_bytes(number, item.index, part)
        if job_id in ledger.finished:
            assert job.state == JobState.FINISHED


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A store after all the kills, checked after each, and then brought to its end in peace."""
    folder, ledger, choose = tmp_path_factory.mktemp("killed"), Ledger(), random.Random(2)
    for _ in range(KILLS):
        run_and_kill(folder, ledger, choose.randint(1, 25))
        check_database(folder)
        store = JobStore(folder / "jobs.sqlite", folder / "spool", LIMITS)
        check_store(store, ledger)
        store.close()
    with start(folder, ledger, last=ledger.next_request) as process:
        for line in process.stdout:
            ledger.hear(line)
    assert process.returncode == 0
    store = JobStore(folder / "jobs.sqlite", folder / "spool", LIMITS)
    yield store, ledger, folder
    store.close()


def test_every_accepted_job_is_finished(killed):
    """With every item decoded."""
    store, ledger, _ = killed
    check_store(store, ledger)
    for job_id in ledger.jobs:
        job = store.get(job_id)
        assert [job.state, *(item.state for item in job.items)] == [
            JobState.FINISHED,
            *[ItemState.DECODED] * ITEMS,
        ]


def test_no_job_is_there_twice(killed):
    """A request that was sent again after the kill is the same job, and none is there that nobody asked for."""
    store, ledger, _ = killed
    requests = [job.request.request_id for job in store.list(ALICE, 1_000)]
    assert sorted(requests) == sorted({request_id(number) for number in ledger.jobs.values()})


def test_the_spool_holds_the_results_and_nothing_else(killed):
    """Everything that a kill left was swept."""
    _, ledger, folder = killed
    there = [path.relative_to(folder / "spool").as_posix() for path in (folder / "spool").rglob("*.*")]
    kept = {name.partition("-")[0] for name in there}
    assert len(kept) == len(there)
    assert kept == {f"{job}/{item}.translation" for job in ledger.jobs for item in range(ITEMS)}


def test_every_start_had_a_number_of_its_own(killed):
    """Higher than all before it, so that sequences of events rise."""
    _, ledger, _ = killed
    assert len(ledger.boots) == KILLS + 1
    assert sorted(set(ledger.boots)) == ledger.boots


def test_results_are_delivered_after_all_that(killed):
    """The client's acknowledgement empties the spool."""
    store, ledger, _ = killed
    for job_id, number in ledger.jobs.items():
        digests = [
            (item, hashlib.sha256(item_bytes(number, item, Part.TRANSLATION)).digest())
            for item in range(ITEMS)
        ]
        assert store.acknowledge(job_id, ALICE, digests) == 0
    assert store.spool_bytes == 0
