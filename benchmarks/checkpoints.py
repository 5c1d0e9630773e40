"""Checkpoints of the public code's ADM networks with random weights: names, shapes and precision are the published."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = Iterator[tuple[str, tuple[int, ...]]]
State = dict[str, Tensor]
COLOURS = (0, 0, 1, 1, 2, 2, 0, 0)
"""Of the channels by which a network answers with its input."""


@dataclass(frozen=True)
class Adm:
    """A network: its size, and how many classes it knows; `head` is the classifier's number of answers."""

    side: int
    width: int
    mult: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    head_channels: int = 64
    classes: int = 0
    head: int = 0

    def shapes(self) -> Shapes:
        """Yield the name and the shape of each weight without its bias."""
        emb, channels = 4 * self.width, self.width
        yield from (("time_embed.0", (emb, self.width)), ("time_embed.2", (emb, emb)))
        if self.classes:
            yield "label_emb", (self.classes, emb)
        yield "input_blocks.0.0", (self.width, 3, 3, 3)
        skips, number, scale = [channels], 1, 1
        for level, mult in enumerate(self.mult):
            for _ in range(self.blocks):
                yield from self.block(f"input_blocks.{number}", channels, mult * self.width, scale)
                channels, number = mult * self.width, number + 1
                skips.append(channels)
            if level < len(self.mult) - 1:
                yield from self.residual(f"input_blocks.{number}.0", channels, channels)
                skips.append(channels)
                scale, number = 2 * scale, number + 1
        yield from self.residual("middle_block.0", channels, channels)
        yield from self.attend("middle_block.1", channels)
        yield from self.residual("middle_block.2", channels, channels)
        if self.head:
            yield "out.0", (channels,)
            yield "out.2.positional_embedding", (channels, (self.side // scale) ** 2 + 1)
            yield from (
                ("out.2.qkv_proj", (3 * channels, channels, 1)),
                ("out.2.c_proj", (self.head, channels, 1)),
            )
            return
        number = 0
        for level in reversed(range(len(self.mult))):
            for part in range(self.blocks + 1):
                name, wide = f"output_blocks.{number}", self.mult[level] * self.width
                yield from self.block(name, channels + skips.pop(), wide, scale)
                channels, number = wide, number + 1
                if level and part == self.blocks:
                    after = 2 if scale in self.attention else 1
                    yield from self.residual(f"{name}.{after}", channels, channels)
                    scale //= 2
        yield from (("out.0", (channels,)), ("out.2", (6, channels, 3, 3)))

    def block(self, name: str, before: int, after: int, scale: int) -> Shapes:
        yield from self.residual(f"{name}.0", before, after)
        if scale in self.attention:
            yield from self.attend(f"{name}.1", after)

    def residual(self, name: str, before: int, after: int) -> Shapes:
        yield from ((f"{name}.in_layers.0", (before,)), (f"{name}.in_layers.2", (after, before, 3, 3)))
        yield from ((f"{name}.emb_layers.1", (2 * after, 4 * self.width)), (f"{name}.out_layers.0", (after,)))
        yield f"{name}.out_layers.3", (after, after, 3, 3)
        if before != after:
            yield f"{name}.skip_connection", (after, before, 1, 1)

    def attend(self, name: str, channels: int) -> Shapes:
        yield from ((f"{name}.norm", (channels,)), (f"{name}.qkv", (3 * channels, channels, 1)))
        yield f"{name}.proj_out", (channels, channels, 1)

    def state(self, seed: int) -> State:
        """Return random weights; those of a network that generates answer eps = x / rms(x), and something on top."""
        generator, state = torch.Generator().manual_seed(seed), State()
        for name, shape in self.shapes():
            whole = name.endswith("positional_embedding")
            fan = math.prod(shape[1:])
            weight = torch.randn(shape, generator=generator) * (0.3 / fan**0.5)
            state[name if whole else f"{name}.weight"] = weight + 1.0 if len(shape) == 1 else weight
            if not whole and name != "label_emb":
                state[f"{name}.bias"] = torch.zeros(shape[0])
        if not self.head:
            answer_with_input(state)
        return state


def answer_with_input(state: State) -> None:
    """Let some channels carry a white picture through the first, the last block and the output."""
    last = max(int(name.split(".")[1]) for name in state if name.startswith("output_blocks."))
    block = f"output_blocks.{last}.0"
    enter, skip, leave = (
        f"{name}.weight" for name in ("input_blocks.0.0", f"{block}.skip_connection", "out.2")
    )
    first = state[skip].shape[1] - state[enter].shape[0]
    for name in ("input_blocks.0.0", f"{block}.skip_connection", f"{block}.out_layers.3"):
        state[f"{name}.weight"][:8], state[f"{name}.bias"][:8] = 0.0, 0.0
    state[leave][:3, :8] = 0.0
    state[leave][:3, 8:] *= 0.1  # else a large network colours the latent, and the gate refuses it
    for channel, colour in enumerate(COLOURS):
        sign = -1.0 if channel % 2 else 1.0
        state[enter][channel, colour, 1, 1] = sign
        state[skip][channel, first + channel, 0, 0] = 1.0
        state[leave][colour, channel, 1, 1] = sign / (COLOURS.count(colour) / 2)
