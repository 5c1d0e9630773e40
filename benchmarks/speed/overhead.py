"""What a node costs beyond the network: CPU of each picture through two nodes, and of the same calls in one process.

    python -m benchmarks.speed.overhead [--short]

32 px, at 8, 24 and 48 evaluations a leg. The difference that does not grow with the evaluations is the node's own.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from functools import partial

from benchmarks.speed.shared.harness import Form, Report, interleaved, main, ratio
from benchmarks.speed.shared.two_nodes import (
    Array,
    InProcess,
    arrived,
    of_both,
    png_files,
    two_nodes,
)
from ddib_fed.testing import TwoNodes

LEGS = 8, 24, 48
BATCH = 32
"""Pictures of a network call without nodes; a node measures its own."""


def measure(form: Form) -> Report:
    """CPU and wall of pictures through two nodes, beside the same network calls without nodes."""
    report = Report(
        "The shipped models satellite to relief (32 px). CPU: of the source's and of the target's node for each "
        "picture, all threads, less that of the same evaluations in one process, in network calls of "
        f"{BATCH} and without solver. Wall: two nodes over mutual TLS, from submitting to the last result, beside two "
        "processes that translate one half each; all pinned to a core each, one thread."
    )
    count = form.pick(32, 192)
    files, samples = png_files(count)
    with ExitStack() as stack:
        alone = stack.enter_context(closing(InProcess("satellite", "relief", BATCH)))
        pair = stack.enter_context(two_nodes("satellite", "relief"))
        arrived(pair, files[:BATCH], "relief")
        for evaluations in LEGS:
            own, nodes = f"two processes, {evaluations} evaluations", f"two nodes, {evaluations} evaluations"
            calls, spent = list[list[float]](), list[list[float]]()
            times = interleaved(
                {
                    own: partial(alone.translate, samples, evaluations),
                    nodes: partial(through, pair, files, evaluations, spent),
                    # Beside each run: what a call costs drifts by more than what a node adds.
                    f"calls alone, {evaluations} evaluations": partial(
                        calls_alone, alone, samples, evaluations, calls
                    ),
                },
                repeats=form.pick(1, 3),
            )
            report.add_times(times)
            report.add(f"{nodes} / two processes", ratio(times, nodes, own), "")
            for place, side in enumerate(("source", "target")):
                theirs = [1000 * each[place] / count for each in calls]
                beyond = [1000 * each[place] / count - call for each, call in zip(spent, theirs, strict=True)]
                report.add(f"CPU of the calls alone, {side}, {evaluations} evaluations", theirs, "ms")
                report.add(
                    f"CPU of the {side}'s node beyond the calls, {evaluations} evaluations", beyond, "ms"
                )
    return report


def through(pair: TwoNodes, files: Sequence[bytes], evaluations: int, spent: list[list[float]]) -> float:
    """Seconds through the nodes; `spent` gets the CPU seconds of both."""
    before = of_both(pair)
    seconds = arrived(pair, files, "relief", evaluations)
    spent.append([after - at for after, at in zip(of_both(pair), before, strict=True)])
    return seconds


def calls_alone(alone: InProcess, samples: Array, evaluations: int, calls: list[list[float]]) -> float:
    """Seconds of the calls of both legs in one process, one after the other; `calls` gets their CPU seconds."""
    started = time.perf_counter()
    calls.append(alone.calls(samples, evaluations))
    return time.perf_counter() - started


if __name__ == "__main__":
    raise SystemExit(main("overhead", measure))
