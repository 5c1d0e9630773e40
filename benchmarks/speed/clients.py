"""Sixteen clients of one person with two pictures each, against one client with all of them.

    python -m benchmarks.speed.clients

Pictures of 32 px, satellite to relief, 48 evaluations a leg, through two nodes, each pinned to its core: one client
with all, and clients of the same identity, all at once, each on a connection of its own, until every one has its
results. Jobs of many clients at once share network calls at both nodes.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.command import Rows, Run, command
from benchmarks.speed.shared.figures import bound, compared
from benchmarks.speed.shared.nodes import arrived, png_files, two_nodes
from ddib_fed import Client, Profile, Request, Settings
from ddib_fed.errors import DdibError
from ddib_fed.testing import TwoNodes

PICTURES = 2
"""Of one of many clients."""


def measure(run: Run) -> Rows:
    """One client and many, by turns."""
    clients, evaluations = run.pick(smoke=2, long=16), run.pick(smoke=8, long=48)
    files = png_files(run, clients * PICTURES)
    waits = 0
    with two_nodes(run, "satellite", "relief") as pair:
        arrived(pair, files, evaluations)

        def many() -> float:
            nonlocal waits
            seconds, waited = at_once(pair, files, evaluations)
            waits += waited
            return seconds

        candidates = {f"{clients} clients": many, "one client": lambda: arrived(pair, files, evaluations)}
        yield from compared(run, f"{clients} clients / one client", candidates, repeats=9, at_most=1.15)
    what = "calls that the node put off, in all rounds (each client tries again by itself)"
    yield bound(run, what, [waits], at_most=0, always=True)


def at_once(pair: TwoNodes, files: Sequence[bytes], evaluations: int) -> tuple[float, int]:
    """Return the seconds until all clients have their results, and how many calls were put off at a limit."""
    clients, waits = len(files) // PICTURES, list[DdibError]()
    ready = threading.Barrier(clients + 1)

    def work(number: int) -> int:
        with Client(Profile.load(pair.profile), on_wait=lambda error, _: waits.append(error)) as client:
            client.list(1)  # connected, as a client is that has worked before
            ready.wait()
            mine = files[number * PICTURES : (number + 1) * PICTURES]
            job = client.submit(mine, pair.to, Request(Settings(evaluations=evaluations)))
            return len(list(client.results(job.job_id)))

    with ThreadPoolExecutor(clients) as pool:
        futures = [pool.submit(work, number) for number in range(clients)]
        ready.wait()
        started = time.perf_counter()
        counts = [future.result() for future in futures]
    if counts != [PICTURES] * clients:
        raise SystemExit(f"results of the clients: {counts}")
    return time.perf_counter() - started, len(waits)


if __name__ == "__main__":
    sys.exit(command(measure, "speed/clients"))
