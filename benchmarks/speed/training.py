"""Training against a plain loop, with bfloat16, and in two processes.

python -m benchmarks.speed.training [--short]

Each trainer runs in a process of its own on one thread, pinned to one core, and all take turns of a few steps. The
bound is on CPU seconds a step, all threads counted, so that neither another core nor a busy machine decides it; two
processes are judged by wall seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from benchmarks.speed.shared.harness import ROOT, Form, Report, Times, interleaved, main, ratio
from ddib_fed.testing import free_port

STEPS: Final = {"points": 20, "pictures": 3}
"""Steps of a turn: about a second of a core."""
PRECISIONS: Final = ("float32", "bfloat16")


class Trainee:
    """Trainer processes; each takes a given number of steps."""

    def __init__(self, kind: str, who: str, precision: str, cores: Sequence[int]) -> None:
        self._steps = STEPS[kind]
        asked = json.dumps({"kind": kind, "who": who, "precision": precision})
        command = [sys.executable, "-m", "benchmarks.speed.shared.training_worker", asked]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self._processes = []
        for rank, core in enumerate(cores):
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            own |= {"WORLD_SIZE": str(len(cores)), "LOCAL_WORLD_SIZE": str(len(cores))}
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **(own if len(cores) > 1 else {})}
            self._processes.append(
                subprocess.Popen(
                    ["taskset", "-c", str(core), *command],
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )

    def turn(self) -> dict[str, float]:
        """Seconds of one step, wall and CPU (of the first process)."""
        leader = self._processes[0]
        assert leader.stdin is not None
        assert leader.stdout is not None
        leader.stdin.write(f"{self._steps}\n")
        leader.stdin.flush()
        return {name: spent / self._steps for name, spent in json.loads(leader.stdout.readline()).items()}

    def close(self) -> None:
        """Let the processes end."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            process.wait(60)


@contextmanager
def trainees(asked: dict[str, tuple[str, str, str, Sequence[int]]]) -> Iterator[dict[str, Trainee]]:
    """Trainers by their names, warm."""
    with ExitStack() as stack:
        found = {}
        for name, one in asked.items():
            found[name] = Trainee(*one)
            stack.callback(found[name].close)
            found[name].turn()
        yield found


def by_turns(found: dict[str, Trainee], clock: str, repeats: int) -> Times:
    return interleaved({name: lambda one=one: one.turn()[clock] for name, one in found.items()}, repeats)


def measure(form: Form) -> Report:
    """Our trainer and a plain loop, points and pictures, float32 and bfloat16; then two processes."""
    report = Report(
        "Steps of `ddib model train`: moons with its defaults (396,834 parameters, batch 2,048) and tiny-32 on "
        "pictures of 32 px (1,965,164 parameters, batch 64), against a plain loop of the same network, batch, "
        "optimiser, average and autocast. One thread, one core each; CPU seconds a step but where wall is said."
    )
    cores = sorted(os.sched_getaffinity(0))
    for kind in STEPS:
        _against_plain(report, kind, cores[0], form.pick(4, 15))
        _together(report, kind, cores, form.pick(3, 10))
    return report


def _against_plain(report: Report, kind: str, core: int, repeats: int) -> None:
    asked = {
        f"{kind}, {who}, {precision}": (kind, who, precision, [core])
        for precision in PRECISIONS
        for who in ("plain", "ours")
    }
    asked[f"{kind}, the batch alone"] = (kind, "batches", "float32", [core])
    with trainees(asked) as found:
        times = by_turns(found, "cpu", repeats)
    report.add_times(times, "s")
    for precision in PRECISIONS:
        plain, ours = f"{kind}, plain, {precision}", f"{kind}, ours, {precision}"
        report.bound(
            f"{kind}, {precision}: steps of ours / steps of the plain loop",
            ratio(times, plain, ours),
            at_least=1.0,
        )
    for who in ("plain", "ours"):
        names = (f"{kind}, {who}, float32", f"{kind}, {who}, bfloat16")
        report.add(f"{kind}, {who}: float32 / bfloat16", ratio(times, *names), "x")
    share = ratio(times, f"{kind}, the batch alone", f"{kind}, ours, float32")
    report.add(f"{kind}: share of a step that making its batch takes", share, "")


def _together(report: Report, kind: str, cores: Sequence[int], repeats: int) -> None:
    if len(cores) < 2:
        report.note(f"{kind}: one core, so no two processes")
        return
    asked = {
        f"{kind}, one process": (kind, "ours", "float32", cores[:1]),
        f"{kind}, two processes": (kind, "ours", "float32", cores[:2]),
    }
    with trainees(asked) as found:
        times = by_turns(found, "wall", repeats)
    report.add_times(times, "s of wall")
    one, two = asked
    report.add(f"{kind}: one process / two", ratio(times, one, two), "x")


if __name__ == "__main__":
    raise SystemExit(main("training", measure))
