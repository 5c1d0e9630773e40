"""Steps of training in a process of its own, by `ddib_fed.train` or by a plain loop; for `benchmarks.speed.training`.

    python -m benchmarks.speed.shared.trainee KIND WHO PRECISION FOLDER

It answers each line N on stdin with the CPU seconds of N steps, all threads counted. The plain loop is written as a
good engineer would in an afternoon: the same network, batch, levels, targets, optimiser, clipping, average of the
weights and autocast, random numbers from torch's own generator; no records, no checkpoints, no resuming.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ddib_fed import Model, TrainConfig, train
from ddib_fed.datasets import draw

LEVELS, REFERENCE = 256, 1024  # noise levels of a batch of points; points that a target's posterior runs over
STEPS = 100_000


class Turns:
    """The steps that stdin asks for: `next` after each step, which waits for the next line when they are taken."""

    def __init__(self) -> None:
        self._left = self._steps = 0
        self._started = 0.0

    def next(self, *_: object) -> None:
        self._left -= 1
        if self._left > 0:
            return
        if self._steps:
            sys.stdout.write(f"{time.process_time() - self._started}\n")
            sys.stdout.flush()
        self._left = self._steps = int(sys.stdin.readline() or 0)
        self._started = time.process_time()
        if not self._steps:
            sys.exit()


def ours(kind: str, precision: Any, folder: Path, turns: Turns) -> None:
    """Train as `ddib model train` does; `folder` has pictures, and gets the run."""
    data: dict[str, Any] = {"domain": "moons"} if kind == "points" else {"images": folder, "flip": True}
    config = TrainConfig(steps=STEPS, precision=precision, checkpoint_every=STEPS, **data)
    train(config, folder.parent / f"{kind}-{precision}", on_progress=turns.next)


def plain(kind: str, precision: str, folder: Path, turns: Turns) -> None:
    """Train by a loop."""
    model = Model.open("moons" if kind == "points" else "satellite")
    network = model.bundle.network().train().requires_grad_(True)
    parameters = list(network.parameters())
    averages = [p.detach().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    question = points if kind == "points" else noisy_pictures(folder)
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 100) * (1 + math.cos(math.pi * step / STEPS)) / 2
        optimizer.zero_grad(set_to_none=True)
        x, target, *times = question(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            answer = network(x, *times)
        loss = torch.mean((answer.float() - target) ** 2)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, [*parameters], 1.0 - min(0.999, (1 + step) / (10 + step)))
        turns.next()


def lambdas(rows: int) -> Tensor:
    """Return log(alpha / sigma) of evenly spread times of the cosine schedule."""
    times = (torch.arange(rows) + torch.rand(rows, dtype=torch.float64)) / rows
    return -torch.log(torch.tan((0.01 + 0.98 * times) * math.pi / 2))


def scales(lams: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(2 * lams).sqrt().float(), torch.sigmoid(-2 * lams).sqrt().float()


def points(step: int, batch: int = 2_048) -> tuple[Tensor, ...]:
    """Return noisy points, what to answer by the posterior of the targets, and their levels."""
    x0, lams, rows = (
        torch.from_numpy(draw("moons", batch, step)),
        lambdas(LEVELS),
        torch.arange(batch) % LEVELS,
    )
    alpha, sigma = (scale[rows, None] for scale in scales(lams))
    x = alpha * x0 + sigma * torch.randn_like(x0)
    sets, seen = x0.view(-1, REFERENCE, 2), ((alpha / sigma**2) * x).view(-1, REFERENCE, 2)
    curb = (-0.5 * (alpha / sigma) ** 2).view(-1, REFERENCE, 1)
    logits = torch.baddbmm(curb * sets.square().sum(-1)[:, None], seen, sets.transpose(1, 2))
    mean = torch.bmm(torch.softmax(logits, dim=-1), sets).view(-1, 2)
    return x, (alpha * x - mean) / sigma, lams.float(), rows


def noisy_pictures(folder: Path, batch: int = 64) -> Callable[[int], tuple[Tensor, ...]]:
    """Return what makes the questions of a step: mirrored, dequantised, predicting v."""
    arrays = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    whole = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()

    def question(step: int) -> tuple[Tensor, ...]:  # noqa: ARG001
        chosen = whole[torch.randint(len(whole), (batch,))].float()
        chosen = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, chosen.flip(3), chosen)
        x0 = (chosen + torch.rand_like(chosen) - 0.5) * (2 / 255) - 1
        lams, eps = lambdas(batch), torch.randn_like(x0)
        alpha, sigma = (scale.view(-1, 1, 1, 1) for scale in scales(lams))
        x = (alpha * x0 + sigma * eps).contiguous(memory_format=torch.channels_last)
        return x, alpha * eps - sigma * x0, lams.float()

    return question


def main() -> None:
    kind, who, precision, folder = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    (ours if who == "ours" else plain)(kind, precision, Path(folder), Turns())


if __name__ == "__main__":
    main()
