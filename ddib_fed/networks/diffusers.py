"""Networks of the diffusers library, called as those here; importing this module needs the library."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from ddib_fed.errors import extra

with extra("diffusers", "diffusers", "networks of diffusers need the diffusers library"):
    from diffusers.models.embeddings import Timesteps
    from diffusers.models.unets.unet_2d import UNet2DModel


class DiffusersUNet(UNet2DModel):  # type: ignore[misc]
    """`UNet2DModel`: predicts eps, x0 or v of pictures, as its weights were trained."""

    to = nn.Module.to  # the library's logs a warning whenever a dtype is given

    def forward(
        self, x: Tensor, times: Tensor, rows: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        own = times.expand(len(x)) if rows is None else times.index_select(0, rows)
        return cast("Tensor", super().forward(x, own, y, return_dict=False)[0])


class ExactTimesteps(Timesteps):  # type: ignore[misc]
    """The library's features of times, in float64 for float64 times, which the library rounds to float32."""

    def forward(self, timesteps: Tensor) -> Tensor:
        """Sines and cosines of times (K,): (K, num_channels)."""
        if timesteps.dtype != torch.float64:
            return cast("Tensor", super().forward(timesteps))
        half = self.num_channels // 2
        exponent = torch.arange(half, dtype=torch.float64, device=timesteps.device)
        rate = -math.log(10000) / (half - self.downscale_freq_shift)
        angle = self.scale * timesteps[:, None] * torch.exp(rate * exponent)
        parts = [torch.sin(angle), torch.cos(angle)]
        features = torch.cat(parts[::-1] if self.flip_sin_to_cos else parts, dim=-1)
        return nn.functional.pad(features, (0, self.num_channels % 2))


def diffusers_unet(*, image_size: int, mid_block: bool, **arguments: Any) -> DiffusersUNet:
    middle = "UNetMidBlock2D" if mid_block else None
    network = DiffusersUNet(sample_size=image_size, mid_block_type=middle, **arguments)
    of = network.time_proj
    network.time_proj = ExactTimesteps(of.num_channels, of.flip_sin_to_cos, of.downscale_freq_shift, of.scale)
    return network
