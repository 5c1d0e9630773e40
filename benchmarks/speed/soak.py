"""Ten thousand items through two nodes: the memory of neither grows.

python -m benchmarks.speed.soak [--short]
"""

from __future__ import annotations

import time

import numpy as np

from benchmarks.speed.shared.harness import Form, Report, main
from benchmarks.speed.shared.two_nodes import ResidentMemory, npy_file, two_nodes
from ddib_fed.datasets.synthetic import sample
from ddib_fed.wire.jobs import Settings

POINTS = 40
ITEMS_PER_JOB = 250
EVALUATIONS = 4
WARM_UP = 0.2
"""Share of the items before which memory may still grow: caches, threads and buffers fill."""
SAMPLE_EVERY_S = 1.0
MB = 1e6


def measure(form: Form) -> Report:
    """Resident memory of both nodes over many jobs, the slope by regression after a warm-up."""
    items = form.pick(2_000, 10_000)
    report = Report(
        f"{items:,} items of {POINTS} points, moons to checkerboards, {EVALUATIONS} evaluations a leg (the shipped "
        f"models; few evaluations, so that what is done for each item dominates), in jobs of {ITEMS_PER_JOB}, each "
        "submitted, watched, fetched, acknowledged and deleted. Anonymous resident memory of each node, sampled each "
        "second against the items done; the slope is that of a straight line through the samples after the first "
        f"{WARM_UP:.0%} of the items."
    )
    files = [npy_file(sample("moons", POINTS, seed).astype(np.float32)) for seed in range(ITEMS_PER_JOB)]
    done: list[tuple[float, int]] = []
    with two_nodes("moons", "checkerboards") as pair:
        pids = [node.process.pid for node in (pair.north, pair.south) if node.process is not None]
        started = time.monotonic()
        with pair.client() as client, ResidentMemory(pids, SAMPLE_EVERY_S) as memory:
            for job in range(items // ITEMS_PER_JOB):
                done.append((time.monotonic(), job * ITEMS_PER_JOB))
                settings = Settings(evaluations=EVALUATIONS)
                submitted = client.submit(files, "south.example/checkerboards", settings)
                results = list(client.results(submitted.job_id))
                client.acknowledge(submitted.job_id, [(r.item, r.translation.sha256) for r in results])
                client.delete(submitted.job_id)
            done.append((time.monotonic(), items))
    report.add("items", [items / (time.monotonic() - started)], "a second")
    times, counts = np.array(done).T
    at = np.interp([moment for moment, _ in memory.samples], times, counts)
    for column, name in enumerate(("source", "target")):
        bytes_ = np.array([resident[column] for _, resident in memory.samples], dtype=float)
        kept = at >= WARM_UP * items
        slope = np.polyfit(at[kept], bytes_[kept], 1)[0] * 1_000 / MB
        report.add(f"resident memory of the {name} after the warm-up", list(bytes_[kept] / MB), "MB")
        report.bound(f"growth of the {name}, MB for 1,000 items", [float(slope)], at_most=1.0)
    if form.short:
        report.note(
            "The short form's slope has the noise of few samples; the bound is meant for the long form."
        )
    return report


if __name__ == "__main__":
    raise SystemExit(main("soak", measure))
