"""The public DDIB code's network for points: guided-diffusion's UNet with vectors in place of pictures.

Names and shapes in the state dict are those of the public checkpoints.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddib_fed.networks.layers import GroupNorm32, spread, timestep_embedding


class ResBlock(nn.Module):
    """skip(x) + out_layers(in_layers(x) + emb_layers(emb)) on vectors."""

    def __init__(
        self, channels: int, emb_channels: int, dropout: float, out_channels: int | None = None
    ) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.in_layers = nn.Sequential(GroupNorm32(channels), nn.SiLU(), nn.Linear(channels, out_channels))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        last = nn.Linear(out_channels, out_channels)
        self.out_layers = nn.Sequential(GroupNorm32(out_channels), nn.SiLU(), nn.Dropout(dropout), last)
        self.skip_connection = (
            nn.Identity() if out_channels == channels else nn.Linear(channels, out_channels)
        )
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor, emb: Tensor, rows: Tensor | None = None) -> Tensor:
        """Pass x (N, channels) through the block; emb (K, emb_channels), rows as in `spread`: (N, out_channels)."""
        h = self.in_layers(x) + spread(self.emb_layers(emb), rows)
        out: Tensor = self.skip_connection(x) + self.out_layers(h)
        return out


class SyntheticModel(nn.Module):
    """Predicts eps (or x0) of points from (x, timestep)."""

    def __init__(
        self,
        in_channels: int = 2,
        out_channels: int = 2,
        num_channels: int = 256,
        num_res_blocks: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_channels = ch = num_channels

        def blocks(count: int, width: int) -> nn.ModuleList:
            return nn.ModuleList(ResBlock(width, ch, dropout) for _ in range(count))

        self.time_embed = nn.Sequential(nn.Linear(ch, ch), nn.SiLU(), nn.Linear(ch, ch))
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([nn.Linear(in_channels, ch)]), blocks(num_res_blocks, ch)]
        )
        self.middle_block = blocks(2, ch)
        self.output_blocks = nn.ModuleList([blocks(num_res_blocks, 2 * ch)])
        leave = nn.Linear(2 * ch, out_channels)
        self.out = nn.Sequential(GroupNorm32(2 * ch), nn.SiLU(), leave)
        nn.init.zeros_(leave.weight)
        nn.init.zeros_(leave.bias)

    def forward(self, x: Tensor, times: Tensor, rows: Tensor | None = None) -> Tensor:
        """The prediction at x (N, in_channels): times (1,) or (N,), or (K,) with rows (N,) pointing into them."""
        features = timestep_embedding(times, self.num_channels).to(x.dtype)
        emb = self.time_embed(features)
        h = self._modules["input_blocks"][0][0](x)  # type: ignore[index]
        for block in self.input_blocks[1]:  # type: ignore[attr-defined]
            h = block(h, emb, rows)
        skip = h
        for block in self.middle_block:
            h = block(h, emb, rows)
        h = torch.cat([h, skip], dim=1)
        for block in self.output_blocks[0]:  # type: ignore[attr-defined]
            h = block(h, emb, rows)
        out: Tensor = self.out(h)
        return out
