"""Thirty kill -9 of either node at random moments during jobs: every accepted job is finished once.

    python -m benchmarks.kills [--kills 30] [--seed 0]

Two real processes over real mutual TLS; a client submits jobs all the while (again with the same request id when it
got no answer). Afterwards every accepted job must be finished with one result an item, no job may be there twice, the
database must pass its integrity check, and the audit chains must be whole. Ends with 1 otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sqlite3
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from pathlib import Path

from ddib_fed.errors import DdibError, ExhaustedError, QueueFull, UnavailableError
from ddib_fed.trust.audit.verification import verify
from ddib_fed.wire.jobs import Settings
from tests.e2e.harness import Pair, moons, wait_until
from tests.e2e.translation.test_translate import TARGET, npy

ITEMS = 3
POINTS = 1_000
EVALUATIONS = 96


class Feeder:
    """A client that submits until it is stopped; it remembers what was accepted."""

    def __init__(self, pair: Pair) -> None:
        self.accepted: dict[str, str] = {}
        self.unanswered: tuple[str, list[bytes]] | None = None
        self.tries = 0
        self._pair = pair
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        number = 0
        with self._pair.client(patience_s=0) as client:
            while not self._stop.is_set():
                number += 1
                request_id = str(uuid.UUID(int=number, version=4))
                files = [npy(moons(POINTS, seed=1000 * number + item)) for item in range(ITEMS)]
                while not self._stop.is_set():
                    self.tries += 1
                    try:
                        job = client.submit(
                            files, TARGET, Settings(evaluations=EVALUATIONS), request_id=request_id
                        )
                    except (UnavailableError, ExhaustedError):
                        self._stop.wait(0.2)
                        continue
                    self.accepted[request_id] = job.job_id
                    break
                else:
                    # Stopped while an answer was due: the node may have accepted it, and says so when asked again.
                    self.unanswered = (request_id, files)
                self._stop.wait(1.0)

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def ask_again(self) -> None:
        """Settle the last request, whose answer may have been lost."""
        if self.unanswered is None:
            return
        request_id, files = self.unanswered
        with (
            self._pair.client() as client,
            contextlib.suppress(QueueFull),
        ):  # full: it was not accepted before
            job = client.submit(files, TARGET, Settings(evaluations=EVALUATIONS), request_id=request_id)
            self.accepted[request_id] = job.job_id


def run(kills: int, seed: int, folder: Path) -> list[str]:
    """The problems found; none when all held."""
    chance = random.Random(seed)
    pair = Pair.create(folder).start()
    feeder = Feeder(pair)
    victims: Counter[str] = Counter()
    try:
        for number in range(kills):
            node = chance.choice((pair.north, pair.south))
            threading.Event().wait(chance.uniform(0.2, 3.0))
            node.kill()
            victims[node.institution] += 1
            print(
                f"kill {number + 1:2}: {node.institution}; {len(feeder.accepted)} jobs accepted", flush=True
            )
            # Now and then the node is killed again while it starts.
            node.start(wait=chance.random() < 0.8)
        feeder.stop()
        for node in (pair.north, pair.south):
            node.wait_serving()
        feeder.ask_again()
        print("kills:", dict(victims), "accepted:", len(feeder.accepted), "tries:", feeder.tries)
        return problems(pair, feeder)
    finally:
        feeder.stop()
        pair.stop()


def problems(pair: Pair, feeder: Feeder) -> list[str]:
    found: list[str] = []
    with pair.client() as client:
        for job_id in feeder.accepted.values():
            wait_until(
                lambda job_id=job_id: client.get(job_id).state not in {"QUEUED", "RUNNING"},
                seconds=300,
                what=f"job {job_id}",
            )
            results = Counter(result.item for result in client.fetch(job_id))
            if client.get(job_id).state != "FINISHED" or results != Counter(range(ITEMS)):
                found.append(f"job {job_id}: {client.get(job_id).state}, results {dict(results)}")
        listed = Counter(job.job_id for job in client.list(1_000))
    if listed != Counter(feeder.accepted.values()):
        found.append(f"accepted {len(feeder.accepted)}, listed {sum(listed.values())}")
    database = sqlite3.connect(pair.north.config.paths.jobs)
    if database.execute("PRAGMA integrity_check").fetchone() != ("ok",):
        found.append("the database is damaged")
    finished = Counter(row[0] for row in database.execute("SELECT request_id FROM jobs"))
    if any(count != 1 for count in finished.values()):
        found.append("a request id is there twice")
    database.close()
    found += [
        f"{node.institution}: the audit chain is broken"
        for node in (pair.north, pair.south)
        if not verify(node.config.paths.audit).ok
    ]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ddib-kills-") as folder:
        try:
            found = run(options.kills, options.seed, Path(folder))
        except DdibError as error:
            found = [f"{error.reason}: {error.detail}"]
    print("\n".join(found) or "every accepted job finished once; database and audit intact")
    print(f"{time.monotonic() - started:.0f} s")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
