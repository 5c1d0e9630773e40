"""A denoiser of small pictures that works on a larger scene, in overlapping tiles.

    v(x, level) = sum_k w_k v_k(x_k, level),    sum_k w_k = 1 in each pixel

x_k is the part of the scene that tile k shows, v_k what the model answers there, w_k a window that falls to 0 towards
the tile's sides. The mean is taken of the velocities at each step (Bar-Tal et al., MultiDiffusion, arXiv 2302.08113),
not of finished tiles. So the scene follows one ODE and has one latent, neighbouring tiles get the same colours, and
encoding and decoding are inverse as for one tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from ddib_fed.diffusion.denoiser import Condition, Denoiser, Places, on_device
from ddib_fed.diffusion.guidance import Wrapped
from ddib_fed.errors import SettingsInvalid

OVERLAP = 0.5
"""Part of a tile's side that the next tile shows too, at least."""
PIXELS_AT_ONCE = 1 << 17
"""Of the tiles in one network call: 32 tiles of 64 x 64."""


def starts(length: int, tile: int, overlap: float = OVERLAP) -> list[int]:
    """First pixels of the tiles along a side: from 0 to `length - tile`, evenly."""
    if length < tile:
        raise SettingsInvalid(
            f"a scene of {length} pixels a side is smaller than the model's pictures, {tile} pixels",
            hint="leave the scene out: a smaller picture is fitted to the model's size",
        )
    step = tile - math.floor(overlap * tile)
    count = 1 + -(-(length - tile) // step)
    return [round(index * (length - tile) / max(1, count - 1)) for index in range(count)]


def window(tile: int) -> Tensor:
    return torch.sin(math.pi * (torch.arange(tile, dtype=torch.float64) + 0.5) / tile).square()


class Tiled(Wrapped):
    """A denoiser of scenes (N, C, H, W)."""

    def __init__(
        self, denoiser: Denoiser, tile: tuple[int, int], scene: tuple[int, int], overlap: float = OVERLAP
    ) -> None:
        super().__init__(denoiser)
        self._tile, self._scene = tile, scene
        down, across = (starts(length, size, overlap) for length, size in zip(scene, tile, strict=True))
        self.corners = list(product(down, across))
        whole = torch.outer(window(tile[0]), window(tile[1]))
        total = torch.zeros(scene, dtype=torch.float64)
        for corner in self.corners:
            total[self._part(corner)] += whole
        weights = [(whole / total[self._part(corner)]).to(torch.float32) for corner in self.corners]
        self._weights = on_device(torch.stack(weights), self.device)

    def at(self, x: Tensor, places: Places, cond: Condition = None) -> Tensor:
        if tuple(x.shape[2:]) != self._scene:
            raise ValueError(f"a scene {tuple(x.shape[2:])} where {self._scene} is expected")
        blended = torch.zeros_like(x)
        for numbers, rows in self._calls(len(x)):
            parts = [x[rows, :, *self._part(self.corners[number])] for number in numbers]
            which = torch.arange(rows.start, rows.stop).repeat(len(numbers))
            found = self.inner.at(torch.cat(parts), places.chosen(which), _chosen(cond, which))
            for number, v in zip(numbers, found.chunk(len(numbers)), strict=True):
                weight = self._weights[number].to(x.dtype)
                blended[rows, :, *self._part(self.corners[number])] += weight * v
        return blended

    def _part(self, corner: tuple[int, int]) -> tuple[slice, slice]:
        (top, left), (height, width) = corner, self._tile
        return slice(top, top + height), slice(left, left + width)

    def _calls(self, scenes: int) -> Iterator[tuple[range, slice]]:
        """Tiles, and scenes, that one network call evaluates."""
        most = max(1, PIXELS_AT_ONCE // math.prod(self._tile))
        rows = min(scenes, most)
        tiles = max(1, most // rows)
        for start in range(0, scenes, rows):
            for first in range(0, len(self.corners), tiles):
                last = min(first + tiles, len(self.corners))
                yield range(first, last), slice(start, min(start + rows, scenes))


def _chosen(cond: Condition, which: Tensor) -> Condition:
    if cond is None:
        return None
    return {key: value[on_device(which, value.device)] for key, value in cond.items()}
