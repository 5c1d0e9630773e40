"""A small network from sources to targets, trained on a few true pairs: what the pairs alone would give.

It is a baseline, no part of a bridge: with k pairs an institution could also do this and exchange nothing. A UNet of
three levels (some 0.2 million parameters), mean squared error, flips as augmentation, AdamW with a cosine decay.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ddib_fed.errors import ShapeMismatch
from ddib_fed.metrics.pictures import Pictures

STEPS = 400
BATCH = 16
LEARNING_RATE = 2e-3
WIDTHS = (32, 48, 64)
DIVISOR = 4
"""Height and width are padded to a multiple of it."""


class _Block(nn.Module):
    """Two convolutions with a skip."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(given, made, 3, padding=1)
        self.second = nn.Conv2d(made, made, 3, padding=1)
        self.norm = nn.GroupNorm(8, made)
        self.skip = nn.Conv2d(given, made, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, given, H, W) to (N, made, H, W)."""
        inner = functional.silu(self.norm(self.first(x)))
        found: Tensor = functional.silu(self.second(inner)) + self.skip(x)
        return found


class SmallUNet(nn.Module):
    """Pictures (N, C, H, W) to pictures (N, C', H, W)."""

    def __init__(self, given: int, made: int) -> None:
        super().__init__()
        first, second, third = WIDTHS
        self.down = nn.ModuleList([_Block(given, first), _Block(first, second), _Block(second, third)])
        self.up = nn.ModuleList([_Block(third + second, second), _Block(second + first, first)])
        self.out = nn.Conv2d(first, made, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Height and width as given."""
        height, width = x.shape[2:]
        padding = (0, -width % DIVISOR, 0, -height % DIVISOR)
        first = self.down[0](functional.pad(x, padding, mode="replicate"))
        second = self.down[1](functional.avg_pool2d(first, 2))
        third = self.down[2](functional.avg_pool2d(second, 2))
        second = self.up[0](torch.cat([functional.interpolate(third, scale_factor=2), second], 1))
        first = self.up[1](torch.cat([functional.interpolate(second, scale_factor=2), first], 1))
        found: Tensor = self.out(first)[..., :height, :width]
        return found


def supervised(
    source: Pictures, target: Pictures, asked: Pictures, *, steps: int = STEPS, seed: int = 0
) -> Pictures:
    """The translations of `asked` (N, C, H, W) by a network that is trained on pairs (k, C, H, W) and (k, C', H, W)."""
    if len(source) != len(target) or source.shape[2:] != target.shape[2:] or 0 in source.shape:
        raise ShapeMismatch(f"pictures {source.shape} and {target.shape} are no pairs")
    if asked.shape[1] != source.shape[1]:
        raise ShapeMismatch(f"a network for {source.shape[1]} channels has no answer for {asked.shape}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmallUNet(source.shape[1], target.shape[1])
    _train(network, source, target, steps, torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(asked[start : start + 64].astype(np.float32)))
            for start in range(0, len(asked), 64)
        ]
    return torch.cat(parts).clamp(-1.0, 1.0).numpy()


def _train(
    network: nn.Module, source: Pictures, target: Pictures, steps: int, generator: torch.Generator
) -> None:
    pairs = [torch.from_numpy(np.asarray(stack, np.float32)) for stack in (source, target)]
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)
    decay = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    for _ in range(steps):
        rows = torch.randint(len(pairs[0]), (BATCH,), generator=generator)
        x, y = (stack[rows] for stack in pairs)
        for side in (2, 3):
            if torch.rand((), generator=generator) < 0.5:
                x, y = x.flip(side), y.flip(side)
        optimiser.zero_grad(set_to_none=True)
        functional.mse_loss(network(x), y).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        decay.step()
