"""Two nodes, one core each, against the same work in two processes, and against stop-and-wait.

python -m benchmarks.speed.federated [--short]
"""

from __future__ import annotations

import time
from contextlib import closing

import numpy as np

from benchmarks.speed.shared.harness import Form, Report, interleaved, main, ratio
from benchmarks.speed.shared.two_nodes import (
    InProcess,
    Pair,
    arrived,
    npy_file,
    png_files,
    processor_seconds,
    two_nodes,
)
from ddib_fed.datasets.synthetic import sample

BATCH = 16
"""Pictures of a network call in both processes: the best setting measured on the machine of docs/benchmarks.md."""
POINTS_TOGETHER = 5_000


def measure(form: Form) -> Report:
    """Pictures and points through two nodes over mutual TLS, each pinned to its core, beside two pinned processes."""
    report = Report(
        "The shipped models satellite to relief (32 px) and moons to checkerboards, 48 evaluations a leg. Baseline: "
        "two processes, each pinned to a core, translate one half each with both models, without files. "
        "Candidate: a source's and a target's node, started by their commands and pinned to the same two cores, one "
        "thread each, over mutual TLS; from submitting the files to the last result at the client, with everything "
        "that a job is: files decoded and written, durable steps, audit. Stop and wait: each batch is a job of its "
        "own, submitted after the results of the previous one arrived."
    )
    _pictures(form, report)
    _points(form, report)
    return report


def _pictures(form: Form, report: Report) -> None:
    count = form.pick(64, 512)
    files, samples = png_files(count)
    batches = count // BATCH
    with closing(InProcess("satellite", "relief", BATCH)) as alone, two_nodes("satellite", "relief") as pair:
        arrived(pair, files[:BATCH], "relief")
        times = interleaved(
            {
                f"{count} pictures, two processes": lambda: alone.translate(samples),
                f"{count} pictures, two nodes": lambda: arrived(pair, files, "relief"),
                f"{count} pictures, two nodes, stop and wait": lambda: _stop_and_wait(pair, files),
            },
            repeats=form.pick(1, 3),
        )
        before = _processor_seconds(pair)
        arrived(pair, files, "relief")
        used = [after - at for after, at in zip(_processor_seconds(pair), before, strict=True)]
    report.add_times(times)
    for name, seconds in zip(("source", "target"), used, strict=True):
        report.add(f"CPU of the {name}'s node for each picture", [1000 * seconds / count], "ms")
    names = list(times)
    report.bound(
        f"{count} pictures: two nodes / two processes", ratio(times, names[1], names[0]), at_most=1.10
    )
    most = 2 * batches / (batches + 1)
    report.bound(
        f"overlap: stop and wait / two nodes, of the {most:.2f} that {batches} batches allow",
        [each / most for each in ratio(times, names[2], names[1])],
        at_least=0.9,
    )
    if form.short:
        report.note(
            f"The short form sends {batches} batches: filling and draining the pipeline alone is "
            f"{100 / batches:.0f} % of its time, so the bound of 1.10 is that of the long form (32 batches)."
        )


def _points(form: Form, report: Report) -> None:
    count = form.pick(20_000, 100_000)
    points = sample("moons", count, 0).astype(np.float32)
    file = npy_file(points)
    with (
        closing(InProcess("moons", "checkerboards", POINTS_TOGETHER)) as alone,
        two_nodes("moons", "checkerboards") as pair,
    ):
        arrived(pair, [npy_file(points[:2_000])], "checkerboards")
        times = interleaved(
            {
                f"{count:,} points in one file, two processes": lambda: alone.translate(points),
                f"{count:,} points in one file, two nodes": lambda: arrived(pair, [file], "checkerboards"),
            },
            repeats=form.pick(1, 3),
        )
    report.add_times(times)
    names = list(times)
    report.bound(
        f"{count:,} points in one file: two nodes / two processes",
        ratio(times, names[1], names[0]),
        at_most=1.10,
    )


def _stop_and_wait(pair: Pair, files: list[bytes]) -> float:
    """Seconds for one batch after the other, each begun when the one before is back."""
    started = time.perf_counter()
    for start in range(0, len(files), BATCH):
        arrived(pair, files[start : start + BATCH], "relief")
    return time.perf_counter() - started


def _processor_seconds(pair: Pair) -> list[float]:
    """Of both nodes so far."""
    return [
        processor_seconds(node.process.pid) for node in (pair.north, pair.south) if node.process is not None
    ]


if __name__ == "__main__":
    raise SystemExit(main("federated", measure))
