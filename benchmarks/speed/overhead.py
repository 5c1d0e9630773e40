"""What a node costs beyond the network: CPU of each picture through two nodes, and of the same calls in one process.

    python -m benchmarks.speed.overhead

Satellite to relief (32 px), at 8, 24 and 48 evaluations a leg. CPU: of the source's and of the target's node for each
picture, all threads, less that of the same evaluations by `Model.velocity`, without solver. Wall: two nodes over mutual
TLS, from submitting to the last result, beside two processes that translate one half each; all pinned, one thread. The
difference that does not grow with the evaluations is the node's own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial

from benchmarks.command import Rows, Run, command
from benchmarks.speed.shared.alone import Alone, Array
from benchmarks.speed.shared.figures import figure, figures, interleaved, ratio
from benchmarks.speed.shared.nodes import arrived, of_both, png_files, test_pictures, two_nodes
from ddib_fed.testing import TwoNodes

BATCH = 32
"""Pictures of a network call without nodes; a node measures its own."""


def measure(run: Run) -> Rows:
    """CPU and wall of pictures through two nodes, beside the same network calls without nodes."""
    count = run.pick(smoke=4, long=192)
    files, samples = png_files(run, count), test_pictures(run, count)
    with closing(Alone("satellite", "relief")) as alone, two_nodes(run, "satellite", "relief") as pair:
        arrived(pair, files[:BATCH], 8)
        alone.translate(samples[:BATCH], BATCH, 8)
        for evaluations in run.pick(smoke=(8,), long=(8, 24, 48)):
            processes, nodes = (f"two {what}, {evaluations} evaluations" for what in ("processes", "nodes"))
            calls, spent = list[list[float]](), list[list[float]]()
            candidates = {
                processes: partial(alone.translate, samples, BATCH, evaluations),
                nodes: partial(through, pair, files, evaluations, spent),
                # Beside each run: what a call costs drifts by more than what a node adds.
                f"calls alone, {evaluations} evaluations": partial(
                    calls_alone, alone, samples, evaluations, calls
                ),
            }
            times = interleaved(candidates, run.pick(smoke=1, long=3))
            yield from figures(times)
            yield figure(f"{nodes} / two processes", ratio(times, nodes, processes), "")
            for place, side in enumerate(("source", "target")):
                network = [1000 * one[place] / count for one in calls]
                yield figure(f"CPU of the calls alone, {side}, {evaluations} evaluations", network, "ms")
                beyond = [1000 * one[place] / count - own for one, own in zip(spent, network, strict=True)]
                yield figure(f"CPU of the {side}'s node beyond them, {evaluations} evaluations", beyond, "ms")


def through(pair: TwoNodes, files: Sequence[bytes], evaluations: int, spent: list[list[float]]) -> float:
    """Return the seconds through the nodes; `spent` gets the CPU seconds of both."""
    before = of_both(pair)
    seconds = arrived(pair, files, evaluations)
    spent.append([after - at for after, at in zip(of_both(pair), before, strict=True)])
    return seconds


def calls_alone(alone: Alone, samples: Array, evaluations: int, calls: list[list[float]]) -> float:
    """Return the seconds of the calls of both legs in one process; `calls` gets the CPU seconds of each."""
    started = time.perf_counter()
    calls.append(alone.calls(samples, BATCH, evaluations))
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(command(measure, "speed/overhead"))
