"""Sixteen clients of one person with two pictures each, against one client with all of them.

python -m benchmarks.speed.clients [--short]
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.speed.shared.harness import Form, Report, interleaved, main, ratio
from benchmarks.speed.shared.two_nodes import EVALUATIONS, arrived, png_files, two_nodes
from ddib_fed import Request
from ddib_fed.client.client import Client
from ddib_fed.client.profile import Profile
from ddib_fed.errors import DdibError
from ddib_fed.record import Settings
from ddib_fed.testing import TwoNodes

CLIENTS = 16
EACH = 2
TARGET = "south.example/relief"


def measure(form: Form) -> Report:
    """Jobs of many clients at once share network calls at both nodes."""
    report = Report(
        f"{CLIENTS * EACH} pictures of 32 px, satellite to relief, {EVALUATIONS} evaluations a leg, through two "
        f"nodes, each pinned to its core: one client with all of them, and {CLIENTS} clients of the same identity with "
        f"{EACH} each, all at once, each on a connection of its own. Until every client has its results."
    )
    files, _ = png_files(CLIENTS * EACH)
    waits = 0
    with two_nodes("satellite", "relief") as pair:
        arrived(pair, files, "relief")

        def many() -> float:
            nonlocal waits
            seconds, waited = at_once(pair, files)
            waits += waited
            return seconds

        times = interleaved(
            {"one client": lambda: arrived(pair, files, "relief"), f"{CLIENTS} clients": many},
            repeats=form.pick(2, 5),
        )
    report.add_times(times)
    names = list(times)
    report.bound(f"{CLIENTS} clients / one client", ratio(times, names[1], names[0]), at_most=1.15)
    report.bound(
        "calls that the node put off, in all rounds (each client tries again by itself)", [waits], at_most=0
    )
    return report


def at_once(pair: TwoNodes, files: list[bytes]) -> tuple[float, int]:
    """Seconds until all clients have their results, and how many calls were refused at a limit and tried again."""
    waits: list[DdibError] = []
    ready = threading.Barrier(CLIENTS + 1)

    def work(number: int) -> int:
        profile = Profile.load(pair.profile)
        with Client(profile, on_wait=lambda error, _: waits.append(error)) as client:
            client.list(1)  # connected, as a client is that has worked before
            ready.wait()
            own = files[number * EACH : (number + 1) * EACH]
            job = client.submit(own, TARGET, Request(Settings(evaluations=EVALUATIONS)))
            return len(list(client.results(job.job_id)))

    with ThreadPoolExecutor(CLIENTS) as pool:
        futures = [pool.submit(work, number) for number in range(CLIENTS)]
        ready.wait()
        started = time.perf_counter()
        found = [future.result() for future in futures]
    if found != [EACH] * CLIENTS:
        raise SystemExit(f"results of the clients: {found}")
    return time.perf_counter() - started, len(waits)


if __name__ == "__main__":
    raise SystemExit(main("clients", measure))
