"""Two nodes, one core each, against the same work in two processes, and against stop-and-wait.

    python -m benchmarks.speed.federated

The shipped models satellite to relief (32 px) and moons to checkerboards, 48 evaluations a leg. Baseline: two
processes, each pinned to a core, translate one half each with both models, without files, in network calls of 32 or 64
pictures, whichever is faster. Candidate: a source's and a target's node, by their commands, pinned to the same
cores, one thread each, over mutual TLS; from submitting the files to the last result at the client, with everything
that a job is. Stop and wait: one of the two processes encodes a batch of 16, then the other decodes it, then the next.
"""

from __future__ import annotations

import statistics
import sys
from contextlib import closing
from functools import partial

from benchmarks.command import Rows, Run, command
from benchmarks.speed.shared.alone import Alone
from benchmarks.speed.shared.figures import bound, figure, figures, interleaved, ratio
from benchmarks.speed.shared.nodes import arrived, npy_file, of_both, png_files, test_pictures, two_nodes
from ddib_fed.datasets import draw

BATCHES = 32, 64
WAITING = 16
POINTS_TOGETHER = 5_000
EVALUATIONS = 48


def measure(run: Run) -> Rows:
    """Pictures, then points."""
    yield from pictures(run)
    if not run.smoke:  # the same again, with another two pairs of processes
        yield from points(run)


def pictures(run: Run) -> Rows:
    count, steps = run.pick(smoke=4, long=384), run.pick(smoke=8, long=EVALUATIONS)
    batches, waiting = run.pick(smoke=(2,), long=BATCHES), run.pick(smoke=2, long=WAITING)
    files, samples = png_files(run, count), test_pictures(run, count)
    names = {batch: f"{count} pictures, two processes, {batch} in a call" for batch in batches}
    nodes, slow = f"{count} pictures, two nodes", f"{count} pictures, stop and wait"
    with closing(Alone("satellite", "relief")) as alone, two_nodes(run, "satellite", "relief") as pair:
        for batch in batches:
            alone.translate(samples[:batch], batch, 8)
        arrived(pair, files[:waiting], steps)
        candidates = {names[batch]: partial(alone.translate, samples, batch, steps) for batch in batches}
        candidates |= {nodes: partial(arrived, pair, files, steps)}
        candidates |= {slow: partial(alone.stop_and_wait, samples, waiting, steps)}
        times = interleaved(candidates, run.pick(smoke=1, long=3))
        before = of_both(pair)
        arrived(pair, files, steps)
        used = [after - at for after, at in zip(of_both(pair), before, strict=True)]
    yield from figures(times)
    for name, seconds in zip(("source", "target"), used, strict=True):
        yield figure(f"CPU of the {name}'s node for each picture", [1000 * seconds / count], "ms")
    best = min(names.values(), key=lambda name: statistics.median(times[name]))
    yield bound(run, f"{count} pictures: two nodes / two processes", ratio(times, nodes, best), at_most=1.10)
    parts = count // waiting
    most = 2 * parts / (parts + 1)
    shares = [value / most for value in ratio(times, slow, nodes)]
    what = f"overlap: stop and wait / two nodes, of the {most:.2f} that {parts} batches allow"
    yield bound(run, what, shares, at_least=0.9)


def points(run: Run) -> Rows:
    count = 100_000
    cloud = draw("moons", count, 0)
    file = npy_file(cloud)
    alone_name, nodes = (f"{count:,} points in one file, two {which}" for which in ("processes", "nodes"))
    with closing(Alone("moons", "checkerboards")) as alone, two_nodes(run, "moons", "checkerboards") as pair:
        alone.translate(draw("moons", 2_000, 1), POINTS_TOGETHER)
        arrived(pair, [npy_file(draw("moons", 2_000, 1))])
        candidates = {
            alone_name: partial(alone.translate, cloud, POINTS_TOGETHER),
            nodes: partial(arrived, pair, [file]),
        }
        times = interleaved(candidates, 3)
    yield from figures(times)
    what = f"{count:,} points in one file: two nodes / two processes"
    yield bound(run, what, ratio(times, nodes, alone_name), at_most=1.10)


if __name__ == "__main__":
    sys.exit(command(measure, "speed/federated"))
