"""Two nodes, one core each, against the same work in two processes, and against stop-and-wait.

python -m benchmarks.speed.federated [--short]
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack, closing
from functools import partial

from benchmarks.speed.shared.harness import Form, Report, Times, interleaved, main, ratio
from benchmarks.speed.shared.two_nodes import (
    InProcess,
    arrived,
    of_both,
    png_files,
    two_nodes,
)
from ddib_fed.data.points import to_npy
from ddib_fed.datasets import sample
from source_node.pipeline import RANGE_ROWS

BATCHES = 16, 32, 64
"""Pictures of a network call in both processes; the fastest of them is the baseline."""
BATCH = 16
"""Of stop and wait."""
POINTS_TOGETHER = 5_000


def measure(form: Form) -> Report:
    """Pictures and points through two nodes over mutual TLS, each pinned to its core, beside two pinned processes."""
    report = Report(
        "The shipped models satellite to relief (32 px) and moons to checkerboards, 48 evaluations a leg. Baseline: "
        "two processes, each pinned to a core, translate one half each with both models, without files, in network "
        "calls of 16, 32 or 64 pictures, whichever is fastest. Candidate: a source's and a target's node, started by "
        "their commands and pinned to the same two cores, one thread each, over mutual TLS; from submitting the files "
        "to the last result at the client, with everything that a job is: files decoded and written, durable steps, "
        "audit. Stop and wait: one of the two processes encodes a batch of 16, then the other decodes it, then the "
        "next."
    )
    _pictures(form, report)
    _points(form, report)
    return report


def _pictures(form: Form, report: Report) -> None:
    count = form.pick(128, 512)
    files, samples = png_files(count)
    with ExitStack() as stack:
        alone = {
            batch: stack.enter_context(closing(InProcess("satellite", "relief", batch))) for batch in BATCHES
        }
        pair = stack.enter_context(two_nodes("satellite", "relief"))
        arrived(pair, files[:BATCH], "relief")
        nodes, waiting = f"{count} pictures, two nodes", f"{count} pictures, stop and wait"
        times = interleaved(
            {
                _in_process(count, batch): partial(processes.translate, samples)
                for batch, processes in alone.items()
            }
            | {
                nodes: lambda: arrived(pair, files, "relief"),
                waiting: lambda: alone[BATCH].stop_and_wait(samples),
            },
            repeats=form.pick(1, 3),
        )
        before = of_both(pair)
        arrived(pair, files, "relief")
        used = [after - at for after, at in zip(of_both(pair), before, strict=True)]
    report.add_times(times)
    for name, seconds in zip(("source", "target"), used, strict=True):
        report.add(f"CPU of the {name}'s node for each picture", [1000 * seconds / count], "ms")
    _bound_pictures(form, report, times, count, nodes=nodes, waiting=waiting)


def _bound_pictures(
    form: Form, report: Report, times: Times, count: int, *, nodes: str, waiting: str
) -> None:
    """The nodes beside the fastest setting in two processes, and their overlap over stop and wait."""
    best = min(
        (_in_process(count, batch) for batch in BATCHES), key=lambda name: statistics.median(times[name])
    )
    batches = count // BATCH
    # Of a pipeline: the long form's bound holds for any number of batches, the short form sends few.
    filling = form.pick((batches + 1) / batches, 1.0)
    report.bound(
        f"{count} pictures: two nodes / two processes", ratio(times, nodes, best), at_most=1.10 * filling
    )
    if form.short:
        report.note(
            f"The short form sends {batches} batches, of which a pipeline takes the time of {batches + 1}: its bound "
            "is 1.10 times that, and so for the ranges of points. The bound of 1.10 itself is that of the long form."
        )
    most = 2 * batches / (batches + 1)
    report.bound(
        f"overlap: stop and wait / two nodes, of the {most:.2f} that {batches} batches allow",
        [each / most for each in ratio(times, waiting, nodes)],
        at_least=0.9,
    )


def _in_process(count: int, batch: int) -> str:
    return f"{count} pictures, two processes, {batch} in a call"


def _points(form: Form, report: Report) -> None:
    count = form.pick(20_000, 100_000)
    points = sample("moons", count, 0)
    file = to_npy(points)
    with (
        closing(InProcess("moons", "checkerboards", POINTS_TOGETHER)) as alone,
        two_nodes("moons", "checkerboards") as pair,
    ):
        # Points of the whole domain: the first rows of `points` lie on one moon, whose latents are no N(0, I).
        arrived(pair, [to_npy(sample("moons", 2_000, 1))], "checkerboards")
        times = interleaved(
            {
                f"{count:,} points in one file, two processes": lambda: alone.translate(points),
                f"{count:,} points in one file, two nodes": lambda: arrived(pair, [file], "checkerboards"),
            },
            repeats=form.pick(1, 3),
        )
    report.add_times(times)
    names = list(times)
    ranges = -(-count // RANGE_ROWS)
    report.bound(
        f"{count:,} points in one file: two nodes / two processes",
        ratio(times, names[1], names[0]),
        at_most=1.10 * form.pick((ranges + 1) / ranges, 1.0),
    )


if __name__ == "__main__":
    raise SystemExit(main("federated", measure))
