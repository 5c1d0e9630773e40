"""Ten thousand items through two nodes, as jobs of ten and as one job: neither grows, and both are quiet afterwards.

    python -m benchmarks.speed.soak

Items of 40 points, moons to checkerboards, 8 evaluations a leg, so that what is done for each item dominates; each job
is submitted, watched, fetched, acknowledged and deleted. 2,000 items of the same form come before and are not counted:
caches, threads and heaps fill. Anonymous resident memory, open descriptors and threads of each node are read every 100
items; a slope is the median of those between all pairs of samples (Theil and Sen).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import numpy as np

from benchmarks.command import Rows, Run, command
from benchmarks.speed.shared.figures import bound, figure, slope
from benchmarks.speed.shared.nodes import held, npy_file, pid_of, two_nodes
from ddib_fed import Client, Request, Settings
from ddib_fed.datasets import draw
from ddib_fed.testing import cpu_seconds

POINTS, SMALL = 40, 10
REQUEST = Request(Settings(evaluations=8))  # the least that a node's policy allows by default
Samples = list[tuple[int, list[dict[str, float]]]]


class Soak:
    """Work for two nodes, and what each held at every `every` items of it."""

    def __init__(self, client: Client, target: str, pids: Sequence[int], every: int) -> None:
        self._client, self._target, self._pids, self._every = client, target, pids, every
        self._files = [npy_file(draw("moons", POINTS, seed)) for seed in range(every)]
        self.done = 0
        self.samples: Samples = []

    def run(self, items: int, in_job: int) -> None:
        """Do so many items, of which so many are a job, and sample anew."""
        self.done, self.samples = 0, []
        for _ in range(items // in_job):
            self._job(in_job)

    def _job(self, items: int) -> None:
        client, taken, total = self._client, list[tuple[int, bytes]](), 0
        files = [self._files[number % self._every] for number in range(items)]
        job_id = client.submit(files, self._target, REQUEST).job_id
        for result in client.results(job_id):
            taken.append((result.item, result.sha256))
            total += 1
            if len(taken) == self._every or total == items:
                client.acknowledge(job_id, taken)
                self.done += len(taken)
                taken = []
                if self.done % self._every == 0:
                    self.samples.append((self.done, [held(pid) for pid in self._pids]))
        if total != items:
            raise SystemExit(f"{total} of {items} items arrived")
        client.delete(job_id)


def measure(run: Run) -> Rows:
    """Memory, descriptors and threads of both nodes over many items, and their processor time afterwards."""
    items, warm = run.pick(smoke=40, long=10_000), run.pick(smoke=20, long=2_000)
    limits, every = {"max_items_per_job": items}, run.pick(smoke=10, long=100)
    with two_nodes(run, "moons", "checkerboards", limits) as pair, pair.client() as client:
        pids = dict(zip(("source", "target"), map(pid_of, pair.both), strict=True))
        soak = Soak(client, pair.to, list(pids.values()), every)
        # Small jobs first: what a heap keeps after a large one is given back slowly, which would hide a leak.
        for name, small in (("small jobs", True), ("one job", False)):
            soak.run(warm, SMALL if small else warm)
            started = time.monotonic()
            soak.run(items, SMALL if small else items)
            yield figure(f"items, {name}", [items / (time.monotonic() - started)], "a second")
            at = np.array([done for done, _ in soak.samples], dtype=float)
            for column, node in enumerate(pids):
                samples = [parts[column] for _, parts in soak.samples]
                resident = np.array([one["resident"] for one in samples])
                yield figure(f"resident memory of the {node}, {name}", list(resident), "MB")
                what = f"growth of the {node}, {name}, MB for 1,000 items"
                yield bound(run, what, [slope(at / 1_000, resident)], at_most=1.0)
                for kind in ("descriptors", "threads") if small else ():
                    counts = np.array([one[kind] for one in samples])
                    what = f"{kind} of the {node}, more for 1,000 jobs"
                    yield bound(run, what, [slope(at / SMALL / 1_000, counts)], at_most=1.0)
        quiet_s = run.pick(smoke=0.2, long=10.0)
        time.sleep(quiet_s / 2)  # threads that end by themselves
        before = {node: cpu_seconds(pid) for node, pid in pids.items()}
        time.sleep(quiet_s)
        for node, pid in pids.items():
            busy = 1_000 * (cpu_seconds(pid) - before[node]) / quiet_s
            yield bound(run, f"processor time of the {node} without work, ms a second", [busy], at_most=10)


if __name__ == "__main__":
    sys.exit(command(measure, "speed/soak"))
