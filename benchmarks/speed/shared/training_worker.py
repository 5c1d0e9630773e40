"""One trainer in its own process, which takes a given number of steps; for `benchmarks.speed.training`.

    python -m benchmarks.speed.shared.training_worker '{"kind": "points", "who": "ours", "precision": "float32"}'

It answers each line N on stdin with a line of JSON: wall and CPU seconds of N steps, all threads counted. With RANK and
WORLD_SIZE in the environment it is one of several; the first alone reads and answers.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.shared import plain_loops
from ddib_fed.diffusion.schedule import ScheduleConfig, schedule_from_config
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.objective import LambdaSampler
from ddib_fed.training.pictures import PictureTask, open_start
from ddib_fed.training.points import PointTask, open_points
from ddib_fed.training.sources import array_source
from ddib_fed.training.trainer import Piece, Trainer, World, open_world

STEPS = 100_000
WARM = 3
AnyTask = PointTask | PictureTask


def make_task(kind: str, precision: Any) -> AnyTask:
    """The run that all of them take: the defaults on moons, or tiny-32 on 2,000 pictures of noise, mirrored."""
    if kind == "points":
        points = TrainConfig(kind="points", domain="moons", steps=STEPS, precision=precision)
        return PointTask(points, open_points(points))
    rng = np.random.default_rng(0)
    train, held_out = (rng.integers(0, 256, (n, 3, 32, 32), dtype=np.uint8) for n in (2_000, 64))
    source = array_source("noise", train, held_out)
    config = TrainConfig(kind="pictures", steps=STEPS, precision=precision, flip=True)
    return PictureTask(config, source, open_start(config, source))


def make_step(who: str, task: AnyTask, world: World) -> Callable[[], object]:
    """What takes one step."""
    if who == "plain":
        network = task.initial_network()
        sampler = LambdaSampler(schedule_from_config(ScheduleConfig(name="cosine")))
        if isinstance(task, PointTask):
            return plain_loops.points(task.config, network, sampler)
        train = torch.from_numpy(task.source.train)
        return plain_loops.pictures(task.config, network, sampler, train, task.normal)
    if who == "batches":
        return _batches_alone(task)
    return Trainer(task, world).advance


def _batches_alone(task: AnyTask) -> Callable[[], object]:
    step = 0

    def fetch() -> None:
        nonlocal step
        task.fetch(Piece(step, 0, int(task.config.batch or 1)), torch.device("cpu"))
        step += 1

    return fetch


def serve(step: Callable[[], object], world: World) -> None:
    """Take the steps that stdin asks for until stdin ends."""
    for _ in range(WARM):
        step()
    while True:
        asked = world.decide(lambda: int(sys.stdin.readline() or 0))
        if not asked:
            return
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(asked):
            last = step()
        if isinstance(last, Tensor):
            float(last)
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        if world.leads:
            print(json.dumps(spent), flush=True)


def main() -> None:
    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with open_world("cpu") as world:
        task = make_task(asked["kind"], asked["precision"])
        serve(make_step(asked["who"], task, world), world)


if __name__ == "__main__":
    main()
