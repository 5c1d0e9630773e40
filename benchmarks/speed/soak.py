"""Ten thousand items through two nodes, as one job and as jobs of ten: neither grows, and both are quiet afterwards.

python -m benchmarks.speed.soak [--short]
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from benchmarks.speed.shared.harness import Form, Report, main
from benchmarks.speed.shared.two_nodes import Held, held, two_nodes
from ddib_fed import Request
from ddib_fed.client.client import Client
from ddib_fed.data.points import to_npy
from ddib_fed.datasets import sample
from ddib_fed.record import Part, Settings
from ddib_fed.testing import cpu_seconds

POINTS = 40
EVALUATIONS = 8
"""The least that a node's policy allows by default."""
SMALL = 10
"""Items of a small job."""
TOGETHER = 100
"""Items between two samples; of a large job, as many are acknowledged at once."""
WARM_UP = 2_000
"""Items. After 1,000 the heap of a target still grew by 2 MB under a large job, after 2,000 by less than 0.2 MB."""
QUIET_S = 10.0
NODES = ("source", "target")
MB = 1e6


@dataclass(frozen=True, slots=True)
class Slope:
    """Of a straight line through samples, with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def theil_sen(x: NDArray[np.float64], y: NDArray[np.float64]) -> Slope:
    """The median of the slopes between all pairs of samples: single peaks and one step hardly move it."""
    first, second = np.triu_indices(len(x), 1)
    slopes = np.sort((y[second] - y[first]) / (x[second] - x[first]))
    count = len(x)
    spread = NormalDist().inv_cdf(0.975) * (count * (count - 1) * (2 * count + 5) / 18) ** 0.5
    low, high = int((len(slopes) - spread) / 2), int((len(slopes) + spread) / 2) + 1
    last = len(slopes) - 1
    return Slope(float(np.median(slopes)), float(slopes[max(0, low)]), float(slopes[min(last, high)]))


class Soak:
    """Work for two nodes, and what each held at every `TOGETHER` items of it."""

    def __init__(self, client: Client, pids: Sequence[int]) -> None:
        self._client = client
        self._pids = pids
        self._files = [to_npy(sample("moons", POINTS, seed)) for seed in range(TOGETHER)]
        self._done = 0
        self._samples: list[tuple[int, tuple[Held, ...]]] = []

    def one_job(self, items: int) -> None:
        self._job(items)

    def small_jobs(self, items: int) -> None:
        for _ in range(items // SMALL):
            self._job(SMALL)

    def measured(self, work: Callable[[int], None], items: int) -> list[tuple[int, tuple[Held, ...]]]:
        self._done, self._samples = 0, []
        work(items)
        return self._samples

    def _job(self, items: int) -> None:
        """Submit, watch, fetch, acknowledge and delete."""
        client, settings = self._client, Settings(evaluations=EVALUATIONS)
        files = [self._files[number % TOGETHER] for number in range(items)]
        job_id = client.submit(files, "south.example/checkerboards", Request(settings)).job_id
        fetched: list[tuple[int, bytes]] = []
        total = 0
        for result in client.results(job_id):
            fetched.append((result.item, result.files[Part.TRANSLATION].sha256))
            total += 1
            if len(fetched) == TOGETHER or total == items:
                client.acknowledge(job_id, fetched)
                self._count(len(fetched))
                fetched = []
        if total != items:
            raise SystemExit(f"{total} of {items} items arrived")
        client.delete(job_id)

    def _count(self, items: int) -> None:
        self._done += items
        if self._done % TOGETHER == 0:
            self._samples.append((self._done, tuple(held(pid) for pid in self._pids)))


def measure(form: Form) -> Report:
    """Memory, descriptors and threads of both nodes over many items, and their processor time afterwards."""
    items = form.pick(2_500, 10_000)
    report = Report(
        f"Twice {items:,} items of {POINTS} points, moons to checkerboards, {EVALUATIONS} evaluations a leg (the "
        f"shipped models; few evaluations, so that what is done for each item dominates): as jobs of {SMALL}, and as "
        f"one job; each is submitted, watched, fetched, acknowledged and deleted. {WARM_UP:,} items of the same form "
        "come before and are not counted: caches, threads and heaps fill. Anonymous resident memory, open descriptors "
        f"and threads of each node are read every {TOGETHER} items; a slope is the median of those between all pairs "
        "of samples (Theil and Sen)."
    )
    limits = {"max_items_per_job": items}
    with two_nodes("moons", "checkerboards", limits) as pair, pair.client() as client:
        pids = [node.process.pid for node in pair.both]
        soak = Soak(client, pids)
        # Small jobs first: what a heap keeps after a large one is given back slowly, which would hide a leak.
        forms: dict[str, Callable[[int], None]] = {"small jobs": soak.small_jobs, "one job": soak.one_job}
        for name, work in forms.items():
            work(WARM_UP)
            started = time.monotonic()
            samples = soak.measured(work, items)
            report.add(f"items, {name}", [items / (time.monotonic() - started)], "a second")
            _memory(report, name, samples)
            if name == "small jobs":
                _counts(report, samples)
        _quiet(report, pids)
    return report


def _memory(report: Report, name: str, samples: Sequence[tuple[int, tuple[Held, ...]]]) -> None:
    """Growth of both nodes during one form of the work."""
    at = np.array([done for done, _ in samples], dtype=float)
    for column, node in enumerate(NODES):
        resident = np.array([nodes[column].resident_bytes for _, nodes in samples]) / MB
        found = theil_sen(at / 1_000, resident)
        report.add(f"resident memory of the {node}, {name}", list(resident), "MB")
        report.bound(f"growth of the {node}, {name}, MB for 1,000 items", [found.value], at_most=1.0)
        report.note(
            f"Growth of the {node}, {name}: {found.value:.2f} MB for 1,000 items (95 % interval {found.low:.2f} to "
            f"{found.high:.2f}), from {len(samples)} samples."
        )


def _counts(report: Report, samples: Sequence[tuple[int, tuple[Held, ...]]]) -> None:
    """Descriptors and threads of both nodes over the small jobs."""
    jobs = np.array([done / SMALL for done, _ in samples])
    for column, node in enumerate(NODES):
        for what in ("descriptors", "threads"):
            counts = np.array([getattr(nodes[column], what) for _, nodes in samples], dtype=float)
            report.add(f"{what} of the {node}", list(counts), "")
            slope = theil_sen(jobs / 1_000, counts).value
            report.bound(f"{what} of the {node}, more for 1,000 jobs", [slope], at_most=1.0)


def _quiet(report: Report, pids: Sequence[int]) -> None:
    """What the nodes compute when nothing is left to do."""
    time.sleep(QUIET_S / 2)  # threads that end by themselves
    before = [cpu_seconds(pid) for pid in pids]
    time.sleep(QUIET_S)
    for node, pid, spent in zip(NODES, pids, before, strict=True):
        busy = 1_000 * (cpu_seconds(pid) - spent) / QUIET_S
        report.bound(f"processor time of the {node} without work, ms a second", [busy], at_most=10.0)


if __name__ == "__main__":
    raise SystemExit(main("soak", measure))
