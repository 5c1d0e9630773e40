"""Steps of training beside a plain loop of the same network, batch, optimiser, average and autocast.

    python -m benchmarks.speed.training

Moons with the defaults of `ddib model train` (396,834 parameters, batch 2,048), and tiny-32 on pictures of noise of
32 px (two million parameters, batch 64), in float32 and bfloat16. Each runs in a process of its own on one thread,
pinned to one core, and all take turns of a few steps. Figures are CPU seconds a step, all threads counted, so that
neither another core nor a busy machine decides.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks.command import ROOT, Rows, Run, command
from benchmarks.speed.shared.figures import bound, figures, interleaved, ratio

WARM = 3
STEPS = {"points": 20, "pictures": 3}  # of a turn: about a second of a core


def start(stack: ExitStack, core: int, words: Sequence[str]) -> Callable[[int], float]:
    """Start a training on a core; return what takes steps, and the CPU seconds of one."""
    process = subprocess.Popen(
        ["taskset", "-c", str(core), sys.executable, "-m", "benchmarks.speed.shared.trainee", *words],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    stack.enter_context(process)
    stack.callback(process.kill)
    steps_wanted, answers = process.stdin, process.stdout
    assert steps_wanted is not None
    assert answers is not None

    def turn(steps: int) -> float:
        steps_wanted.write(f"{steps}\n")
        steps_wanted.flush()
        return float(answers.readline()) / steps

    turn(WARM)
    return turn


def measure(run: Run) -> Rows:
    """Our trainer and a plain loop, points and pictures, float32 and bfloat16."""
    core = min(os.sched_getaffinity(0))
    precisions = run.pick(smoke=("float32",), long=("float32", "bfloat16"))
    with tempfile.TemporaryDirectory(prefix="ddib-training-") as name:
        folder = Path(name) / "pictures"
        folder.mkdir()
        for number in range(run.pick(smoke=0, long=2_000)):
            Image.effect_noise((32, 32), 64).convert("RGB").save(folder / f"{number}.png")
        for kind in run.pick(smoke=("points",), long=("points", "pictures")):
            steps = run.pick(smoke=1, long=STEPS[kind])
            with ExitStack() as stack:
                turns = {
                    f"{kind}, {who}, {precision}": start(stack, core, (kind, who, precision, str(folder)))
                    for precision in precisions
                    for who in ("plain", "ours")
                }
                candidates = {name: partial(turn, steps) for name, turn in turns.items()}
                times = interleaved(candidates, run.pick(smoke=1, long=25))
            yield from figures(times)
            for precision in precisions:
                plain, ours = (f"{kind}, {who}, {precision}" for who in ("plain", "ours"))
                what = f"{kind}, {precision}: steps of ours / steps of the plain loop"
                yield bound(run, what, ratio(times, plain, ours), at_least=1.0)


if __name__ == "__main__":
    sys.exit(command(measure, "speed/training"))
