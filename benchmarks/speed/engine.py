"""What a node's engine makes of many requests: beside one merged job, one job at a time, and idle nodes.

    python -m benchmarks.speed.engine

Two nodes, pinned to a core each, with the shipped models. *Staggered*: sixteen clients with 8 pictures each, who ask
again once answered and do not begin at once; pictures a second beside one job of the same pictures. *Mixes*: fifteen
small jobs and a large one, handed in at once, beside one after another. *Small beside large*: small jobs while a large
one is always there, beside the same on idle nodes.
"""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.command import Rows, Run, command
from benchmarks.speed.shared.figures import compared
from benchmarks.speed.shared.nodes import arrived, npy_file, png_files, two_nodes
from ddib_fed.datasets import draw
from ddib_fed.testing import TwoNodes

STEPS = 12
Job = list[bytes]


def measure(run: Run) -> Rows:
    with two_nodes(run, "satellite", "relief") as pair:
        small, large = png_files(run, 1), png_files(run, run.pick(smoke=2, long=64))
        yield from mixed(run, "pictures", pair, small, large)
        yield from beside(run, "pictures", pair, small, large)
        yield from staggered(run, pair, png_files(run, run.pick(smoke=1, long=8)))
    if run.smoke:
        return
    with two_nodes(run, "moons", "checkerboards") as pair:
        small, large = ([npy_file(draw("moons", count, 0))] for count in (64, 20_000))
        yield from mixed(run, "points", pair, small, large)
        yield from beside(run, "points", pair, small, large)


def staggered(run: Run, pair: TwoNodes, job: Job) -> Rows:
    clients, rounds = run.pick(smoke=2, long=16), run.pick(smoke=2, long=4)

    def apart() -> float:
        ends, first_s = list[float](), arrived(pair, job, STEPS)

        def work(number: int) -> None:
            time.sleep(first_s * number / clients)
            for _ in range(rounds):
                arrived(pair, job, STEPS)
                ends.append(time.perf_counter())

        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(work, range(clients)))
        steady = sorted(ends)[: clients * (rounds - 1) + 1]
        return (steady[-1] - steady[0]) * clients / (len(steady) - 1)  # seconds of a job of each

    candidates = {"one job": lambda: arrived(pair, job * clients, STEPS), "staggered clients": apart}
    yield from compared(run, "pictures: one job / a job of each staggered client", candidates, at_least=0.85)


def mixed(run: Run, kind: str, pair: TwoNodes, small: Job, large: Job) -> Rows:
    jobs = [small] * run.pick(smoke=1, long=15) + [large]

    def together() -> None:
        with ThreadPoolExecutor(len(jobs)) as pool:
            list(pool.map(lambda job: arrived(pair, job, STEPS), jobs))

    def alone() -> float:
        return sum(arrived(pair, job, STEPS) for job in jobs)

    candidates = {f"{kind}, {len(jobs)} jobs, one by one": alone, f"{kind}, together": together}
    yield from compared(run, f"{kind}, a mix of jobs: one by one / together", candidates, at_least=0.95)


def beside(run: Run, kind: str, pair: TwoNodes, small: Job, large: Job) -> Rows:
    def slowest() -> float:
        return max(arrived(pair, small, STEPS) for _ in range(run.pick(smoke=1, long=20)))

    def busy() -> float:
        stop = threading.Event()

        def keep_busy() -> None:
            while not stop.is_set():
                arrived(pair, large, STEPS)

        with ThreadPoolExecutor() as pool:
            pool.submit(keep_busy)
            try:
                return slowest()
            finally:
                stop.set()

    candidates = {f"{kind}, slowest of small jobs beside a large one": busy, f"{kind}, alone": slowest}
    yield from compared(run, f"{kind}: a small job beside a large one / idle", candidates, at_most=3)


if __name__ == "__main__":
    sys.exit(command(measure, "speed/engine"))
