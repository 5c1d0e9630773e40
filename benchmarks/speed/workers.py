"""`executor = "processes"`: two worker processes beside one and beside none, and one that is killed.

    python -m benchmarks.speed.workers

Files of 2,048 points through a source node, moons, 48 evaluations, one thread a worker. The target has a model so small
that its node computes next to nothing.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.command import Rows, Run, command
from benchmarks.speed.shared.figures import Row, bound, figure, figures, interleaved, ratio
from benchmarks.speed.shared.nodes import arrived, npy_file
from ddib_fed import Request, Settings, TrainConfig, train
from ddib_fed.datasets import draw
from ddib_fed.testing import TwoNodes

LEAST_SPEEDUP = 1.7
ROWS = 2_048
"""Points of a file: what goes to a worker at once."""


def measure(run: Run) -> Rows:
    """Encode points with worker processes."""
    with tempfile.TemporaryDirectory(prefix="ddib-workers-") as place, ExitStack() as stack:
        folder = Path(place)
        target = TrainConfig(kind="points", domain="checkerboards", width=8, blocks=1, steps=1, samples=16)
        train(target, folder / "tiny")
        files = [npy_file(draw("moons", ROWS, seed)) for seed in range(run.pick(smoke=2, long=48))]
        evaluations = run.pick(smoke=8, long=48)
        counts = run.pick(smoke={"two workers": 2}, long={"no worker": 0, "one worker": 1, "two workers": 2})
        pairs = {}
        for name, count in counts.items():
            settings = {"threads": 1, "merge_pixels": ROWS}
            pair = TwoNodes.create(folder / name, "moons", folder / "tiny", settings=settings)
            pair.source.configure({"executor": "processes", "workers": count} if count else {})
            pairs[name] = stack.enter_context(pair)
            while len(pair.source.node.status().workers.ready) < count:
                time.sleep(0.05)
            arrived(pair, files[:2], evaluations)
        candidates = {name: partial(arrived, pair, files, evaluations) for name, pair in pairs.items()}
        times = interleaved(candidates, run.pick(smoke=1, long=3))
        yield from figures(times)
        if not run.smoke:
            speedup = ratio(times, "one worker", "two workers")
            yield bound(run, "one worker / two workers", speedup, at_least=LEAST_SPEEDUP)
            yield figure("one worker / no worker", ratio(times, "one worker", "no worker"), "x")
        yield from killed(run, pairs["two workers"], files, evaluations)


def killed(run: Run, pair: TwoNodes, files: list[bytes], evaluations: int) -> Iterator[Row]:
    """Kill a worker in the middle of a job, and count what is lost."""
    words = pair.source.node.status().workers.ready[0]
    match = re.search(r"process (\d+)", words)
    if match is None:
        raise SystemExit(f"no process in {words!r}")
    with pair.client() as client:
        job = client.submit(files, pair.to, Request(Settings(evaluations=evaluations))).job_id
        while not any(item.state.name != "RECEIVED" for item in client.get(job).items):
            time.sleep(0.01)
        os.kill(int(match[1]), signal.SIGKILL)
        items = [result.item for result in client.results(job)]
    replaced = pair.source.node.status().workers.replaced
    sys.stderr.write(f"{words} was killed; {replaced} replaced\n")
    yield figure("workers that the node replaced", [replaced], "")
    lost = len(files) - len(set(items))
    yield bound(run, "files lost by SIGKILL of a worker", [lost], at_most=0, always=True)


if __name__ == "__main__":
    sys.exit(command(measure, "speed/workers"))
