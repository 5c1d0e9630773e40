"""A client that keeps submitting whatever the nodes go through, and the books that must be right afterwards."""

import contextlib
import sqlite3
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from ddib_fed import Request
from ddib_fed.client.client import Client
from ddib_fed.errors import DdibError
from ddib_fed.models.bundle import save_bundle
from ddib_fed.record import Settings
from ddib_fed.security.audit import lines_of, verify
from ddib_fed.testing import START_S, NodeProcess, TwoNodes, cpu_seconds
from tests.audit_rows import records
from tests.e2e import impatience
from tests.e2e.harness import two_nodes, wait_until
from tests.e2e.processes import PLANT
from tests.node.tiny_nodes import manifest, npy, state

STUB_TARGET = "south.example/moons"
ITEMS = 3


def stub_pair(folder: Path) -> TwoNodes:
    """North and south, impatient, with networks so small that a kill falls into what is around them; not started."""
    save_bundle(folder / "tiny", manifest(), state())
    pair = two_nodes(folder, folder / "tiny", folder / "tiny")
    for node in pair.both:
        node.environment = {PLANT: impatience.PLANTED}
    return pair


class Feeder:
    """A client that submits until it is stopped, again with the same request id when it got no answer."""

    def __init__(
        self,
        pair: TwoNodes,
        *,
        target: str = STUB_TARGET,
        files: Callable[[int], list[bytes]] | None = None,
        settings: Settings | None = None,
        pause_s: float = 0.1,
    ) -> None:
        self.accepted: dict[str, str] = {}
        self.tries = 0
        self.refused: Counter[str] = Counter()
        self._unanswered: str | None = None
        self._pair, self._target, self._pause_s = pair, target, pause_s
        self._files = files or (lambda number: [npy(40, ITEMS * number + item) for item in range(ITEMS)])
        self._settings = settings or Settings(evaluations=8)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        with self._pair.client(patience_s=0) as client:
            while not self._stop.is_set():
                number += 1
                request_id = str(uuid.UUID(int=number, version=4))
                self._unanswered = request_id
                while not self._stop.is_set() and not self._submit(client, request_id):
                    self._stop.wait(0.1)
                self._stop.wait(self._pause_s)

    def _submit(self, client: Client, request_id: str) -> bool:
        self.tries += 1
        try:
            files = self._files(uuid.UUID(request_id).int % 1_000_000)
            job = client.submit(files, self._target, Request(self._settings), request_id=request_id)
        except DdibError as error:  # if it is a failure of the node, the books say so
            self.refused[error.reason] += 1
            return False
        self.accepted[request_id] = job.job_id
        self._unanswered = None
        return True

    def stop(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    __exit__ = stop

    def settle(self) -> None:
        """Ask once more for the request whose answer may have been lost: the node may have accepted it."""
        if self._unanswered is not None:
            with self._pair.client() as client:
                wait_until(
                    lambda: self._unanswered is None or self._submit(client, self._unanswered),
                    seconds=300.0,  # a node with a long queue refuses until there is room
                    what="an answer to the last submission",
                )


def check_books(pair: TwoNodes, feeder: Feeder, *, seconds: float = 300.0, items: int = ITEMS) -> None:
    """Every accepted job is finished once, with one result an item, and every file, row and line agrees."""
    with pair.client() as client:
        for job_id in feeder.accepted.values():
            wait_until(
                lambda job_id=job_id: client.get(job_id).state.ended, seconds=seconds, what=f"job {job_id}"
            )
            job = client.get(job_id)
            results = Counter(result.item for result in client.fetch(job_id))
            assert (job.state, results) == ("FINISHED", Counter(range(items))), job
        listed = [job.job_id for job in client.list(1_000)]
    if len(feeder.accepted) < 1_000:
        assert sorted(listed) == sorted(feeder.accepted.values())
    check_disk(pair, set(feeder.accepted))


def check_disk(pair: TwoNodes, requests: set[str]) -> None:
    """The database is whole and has each request once; each latent was sent and received as one and the same."""
    with contextlib.closing(sqlite3.connect(pair.source.config.paths.store)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
        found = Counter(row[0] for row in database.execute("SELECT request_id FROM jobs"))
    assert found == Counter(requests)
    for node in pair.both:
        assert verify(lines_of(node.config.paths.store)).ok, f"{node.institution}: the audit chain is broken"
    check_lines(pair)


def check_lines(pair: TwoNodes) -> None:
    """By the audit logs: each act on a job was done at most once, and an item crossed as one latent however often."""
    acts: Counter[tuple[str, object, object]] = Counter()
    latents: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for node in pair.both:
        for line in records(node.config.paths.store):
            job, act = line.get("job") or line.get("request"), line["act"]
            if act in {"job_accepted", "job_finished", "job_failed", "job_deleted"}:
                acts[act, job, None] += 1
            if act == "items_delivered":
                acts.update((act, job, item) for item in line["items"])
            if act in {"latent_sent", "latent_received"}:
                latents[act, job, str(line["item"])].add(line["latent"])
    assert not [key for key, count in acts.items() if count > 1], acts
    assert not [key for key in acts if key[0] == "job_failed"]
    assert not [key for key, digests in latents.items() if len(digests) > 1]


def check_told(node: NodeProcess, jobs: Iterable[str]) -> None:
    """The audit log has a line for the acceptance and one for the end of each job, whatever was killed in between."""
    wanted = Counter((act, job) for job in jobs for act in ("job_accepted", "job_finished"))
    assert not wanted - Counter((line["act"], line.get("job")) for line in records(node.config.paths.store))


def restart(node: NodeProcess) -> float:
    return cpu_seconds(node.start().process.pid)


def gone(node: NodeProcess, seconds: float = START_S) -> int:
    assert node.process is not None
    return node.process.wait(timeout=seconds)
