"""An autoencoder between samples in its units and the latents that the ODE runs on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ddib_fed.diffusion.guidance import Part, Tiling, scaled
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.manifest import LatentSpace

WHOLE = 1 << 18
"""Pixels or voxels of one call, such as 512 x 512 or 64^3; what is larger, and than what it was trained on, is encoded
and decoded in overlapping tiles of that, so that memory has a bound."""


class Codec:
    """Computes in float32: half precision costs more than the round trip of the ODE loses."""

    def __init__(self, autoencoder: Bundle, latents: LatentSpace, device: torch.device) -> None:
        self._network: Any = autoencoder.network(torch.float32, device)
        self._factor = autoencoder.factor
        self._tile = tuple(side // self._factor for side in autoencoder.manifest.sample_shape[1:])
        self._channels = latents.shape[0], autoencoder.manifest.sample_shape[0]
        units, axes = latents.normalisation, (1,) * len(self._tile)
        self._mean, self._std = (
            torch.tensor(part, dtype=torch.float32, device=device).reshape(-1, *axes)
            for part in (units.mean, units.std)
        )

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Latents (N, c, *sides) of samples (N, C, *sides), whose sides are filled up to what the autoencoder takes."""
        room = [(-side) % self._factor for side in reversed(x.shape[2:])]
        if any(room):
            x = functional.pad(x, [each for side in room for each in (0, side)], mode="replicate")
        found = self._each(x, self._network.encode, self._channels[0], self._factor, 1)
        return (found - self._mean) / self._std

    @torch.no_grad()
    def decode(self, z: Tensor, sides: tuple[int, ...]) -> Tensor:
        """Samples (N, C, *sides) of latents."""
        z = z * self._std + self._mean
        found = self._each(z, self._network.decode, self._channels[1], 1, self._factor)
        for axis, side in enumerate(sides, start=2):
            found = found.narrow(axis, 0, side)
        return found

    def _each(
        self, x: Tensor, call: Callable[[Tensor], Tensor], channels: int, given: int, made: int
    ) -> Tensor:
        """What `call` makes of the rows of x, by tiles where they are large; `given`, `made` are pixels of a place."""
        latent = tuple(side // given for side in x.shape[2:])
        pixels, trained = math.prod(latent) * self._factor ** len(latent), math.prod(self._tile)
        if pixels <= max(WHOLE, trained * self._factor ** len(latent)):
            rows = max(1, WHOLE // pixels)
            return torch.cat([call(part) for part in torch.split(x, rows)])
        tile = tuple(min(side, length) for side, length in zip(self._tile, latent, strict=True))
        tiling = Tiling(latent, tile, made)
        found = x.new_zeros(len(x), channels, *(made * side for side in latent))
        for part, weight in zip(tiling.parts, tiling.weights, strict=True):
            own = weight.to(x.device)
            taken: Part = (slice(None), *scaled(part, given))
            put: Part = (slice(None), *scaled(part, made))
            for row, into in zip(x, found, strict=True):
                into[put] += own * call(row[taken][None])[0]
        return found
