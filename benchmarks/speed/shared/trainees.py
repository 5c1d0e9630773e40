"""Trainings in processes of their own, pinned, which take turns of some steps; for `benchmarks.speed.training`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.command import ROOT
from benchmarks.speed.shared.figures import Times, interleaved
from ddib_fed.testing import free_port

WARM = 3  # steps


def pictures(count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


class Trainee:
    """The processes of one training; the first answers."""

    def __init__(self, words: Sequence[str], cores: Sequence[int]) -> None:
        command = [sys.executable, "-m", "benchmarks.speed.shared.trainee", *words]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(cores))}
        shared["LOCAL_WORLD_SIZE"] = shared["WORLD_SIZE"]
        self._processes = []
        for rank, core in enumerate(cores):
            ranks = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if len(cores) > 1 else {}
            process = subprocess.Popen(
                ["taskset", "-c", str(core), *command], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", **ranks},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            self._processes.append(process)

    def turn(self, steps: int) -> dict[str, float]:
        """Return the seconds of one step, wall and CPU (of the first process)."""
        first = self._processes[0]
        assert first.stdin is not None
        assert first.stdout is not None
        first.stdin.write(f"{steps}\n")
        first.stdin.flush()
        return {name: spent / steps for name, spent in json.loads(first.stdout.readline()).items()}

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.communicate()


def by_turns(
    trainees: Mapping[str, tuple[Sequence[str], Sequence[int]]], clock: str, steps: int, repeats: int
) -> Times:
    """Return the seconds of a step of each, by their names."""
    with ExitStack() as stack:
        turns = {}
        for name, (words, cores) in trainees.items():
            trainee = Trainee(words, cores)
            stack.callback(trainee.close)
            trainee.turn(WARM)
            turns[name] = partial(seconds, trainee, clock, steps)
        return interleaved(turns, repeats)


def seconds(trainee: Trainee, clock: str, steps: int) -> float:
    return trainee.turn(steps)[clock]
