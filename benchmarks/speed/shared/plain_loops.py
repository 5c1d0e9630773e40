"""Training as a good engineer would write it in an afternoon, without a trainer: what ours is held against.

Same network, batch, levels, target, optimiser, clipping, average of the weights and autocast as a run of
`ddib model train`; random numbers from torch's own generator; no records, no checkpoints, no resuming, no processes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ddib_fed import datasets
from ddib_fed.diffusion.denoiser import LAMBDA_SCALE
from ddib_fed.training.config import RunPlan, TrainConfig, learning_rate
from ddib_fed.training.objective import LambdaSampler

Step = Callable[[], None]


class Loop:
    """Network, optimiser and average of a plain loop."""

    def __init__(self, config: TrainConfig, network: nn.Module) -> None:
        self.config, self.network, self.step = config, network, 0
        self.plan = RunPlan(total=config.steps or config.usual_steps())
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.averages = [p.detach().clone() for p in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=float(config.learning_rate or 0.0),
            betas=(0.9, config.beta2),
            weight_decay=0.0,
            fused=True,
        )

    def take(self, x: Tensor, target: Tensor, *times: Tensor) -> None:
        """One step on noisy samples."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(config, self.plan, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            answer = self.network(x, *times)
        loss = torch.mean((answer.float() - target) ** 2)
        loss.backward()  # type: ignore[no-untyped-call]
        if config.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, config.clip)
        self.optimizer.step()
        kept = min(float(config.ema or 0.0), (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.averages, self.parameters, 1.0 - kept)
        self.step += 1


def scales(lams: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(2 * lams).sqrt().float(), torch.sigmoid(-2 * lams).sqrt().float()


def points(config: TrainConfig, network: nn.Module, sampler: LambdaSampler) -> Step:
    """A step on a synthetic domain; the posterior of the targets as products and a softmax."""
    loop, rng = Loop(config, network), np.random.default_rng(0)
    rows = torch.arange(config.batch) % config.levels
    spread = torch.arange(config.levels, dtype=torch.float64)

    def step() -> None:
        uniforms = rng.random((config.batch, datasets.UNIFORMS_PER_POINT))
        x0 = torch.from_numpy(datasets.from_uniforms(str(config.domain), uniforms))
        lams = sampler((spread + torch.rand(config.levels, dtype=torch.float64)) / config.levels)
        alpha, sigma = (scale[rows, None] for scale in scales(lams))
        x = alpha * x0 + sigma * torch.randn_like(x0)
        sets = x0.view(-1, config.reference, 2)
        asked = ((alpha / sigma**2) * x).view(-1, config.reference, 2)
        curb = (-0.5 * (alpha / sigma) ** 2).view(-1, config.reference, 1)
        logits = torch.baddbmm(curb * sets.square().sum(-1)[:, None], asked, sets.transpose(1, 2))
        mean = torch.bmm(torch.softmax(logits, dim=-1), sets).view(-1, 2)
        loop.take(x, (alpha * x - mean) / sigma, lams.float(), rows)

    return step


def pictures(
    config: TrainConfig, network: nn.Module, sampler: LambdaSampler, train: Tensor, normal: Any
) -> Step:
    """A step on pictures (N, C, H, W) uint8 in memory: mirrored, dequantised, normalised, predicting v."""
    loop, batch = Loop(config, network), int(config.batch or 1)
    mean, std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (normal.mean, normal.std))
    spread = torch.arange(batch, dtype=torch.float64)
    order, place = torch.randperm(len(train)), 0

    def step() -> None:
        nonlocal order, place
        if place + batch > len(train):
            order, place = torch.randperm(len(train)), 0
        found = train[order[place : place + batch]].float()
        place += batch
        found = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, found.flip(3), found)
        x0 = ((found + torch.rand_like(found) - 0.5) * (2 / 255) - 1 - mean) / std
        lams = sampler((spread + torch.rand(batch, dtype=torch.float64)) / batch)
        alpha, sigma = (scale.view(-1, 1, 1, 1) for scale in scales(lams))
        eps = torch.randn_like(x0)
        x = (alpha * x0 + sigma * eps).contiguous(memory_format=torch.channels_last)
        loop.take(x, alpha * eps - sigma * x0, lams.float() * LAMBDA_SCALE)

    return step
