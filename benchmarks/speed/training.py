"""Steps of training beside a plain loop of the same network, batch, optimiser, average and autocast.

    python -m benchmarks.speed.training

Moons with the defaults of `ddib model train` (396,834 parameters, batch 2,048), and tiny-32 on pictures of noise of
32 px (two million parameters, batch 64), in float32 and bfloat16. Each runs in a process of its own on one thread,
pinned to one core, and all take turns of a few steps. The bound is on CPU seconds a step, all threads counted, so that
neither another core nor a busy machine decides it; two processes are judged by wall seconds.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from PIL import Image

from benchmarks.command import Rows, Run, command
from benchmarks.speed.shared.figures import bound, figure, figures, ratio
from benchmarks.speed.shared.trainees import by_turns, pictures

STEPS = {"points": 20, "pictures": 3}  # of a turn: about a second of a core


def measure(run: Run) -> Rows:
    """Our trainer and a plain loop, points and pictures, float32 and bfloat16; then two processes."""
    cores = sorted(os.sched_getaffinity(0))[:2]
    precisions = run.pick(smoke=("float32",), long=("float32", "bfloat16"))
    with tempfile.TemporaryDirectory(prefix="ddib-training-") as name:
        folder = Path(name) / "pictures"
        folder.mkdir()
        for number, picture in enumerate(pictures(run.pick(smoke=0, long=2_000))):
            Image.fromarray(picture).save(folder / f"{number}.png")
        for kind in run.pick(smoke=("points",), long=("points", "pictures")):
            steps = run.pick(smoke=1, long=STEPS[kind])
            words = {
                f"{kind}, {who}, {precision}": ((kind, who, precision, str(folder)), cores[:1])
                for precision in precisions
                for who in ("plain", "ours")
            }
            times = by_turns(words, "cpu", steps, run.pick(smoke=1, long=25))
            yield from figures(times)
            for precision in precisions:
                plain, ours = (f"{kind}, {who}, {precision}" for who in ("plain", "ours"))
                what = f"{kind}, {precision}: steps of ours / steps of the plain loop"
                yield bound(run, what, ratio(times, plain, ours), at_least=1.0)
            if run.smoke or len(cores) < 2:
                continue
            one, two = f"{kind}, one process", f"{kind}, two processes"
            share = (kind, "ours", "float32", str(folder))
            times = by_turns({one: (share, cores[:1]), two: (share, cores)}, "wall", steps, 15)
            yield from figures(times, "s of wall")
            yield figure(f"{kind}: one process / two", ratio(times, one, two), "x")


if __name__ == "__main__":
    sys.exit(command(measure, "speed/training"))
