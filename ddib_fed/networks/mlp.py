"""The default network for points: a residual MLP whose blocks are scaled and shifted by the level (FiLM).

h = W_in x;   h += W_2 silu((1 + s) * W_1 silu(h) + b) with (s, b) = F e(lambda), for each block;
out = W_out silu(h)
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddib_fed.networks.config import MlpConfig, SyntheticConfig
from ddib_fed.networks.placement import Kept, remembered, spread
from ddib_fed.networks.unet import Embedded, GroupNorm32, activated, joined, timestep_embedding, zeroed

# Rows computed together on a CPU without gradients: the activations of 1,024 x 160 floats stay in a core's cache.
INFERENCE_ROWS = 1024


class LambdaEmbedding(nn.Module):
    """Features of lambda: cosines and sines of frequencies 0.1 to 1 rad per unit, then a small MLP.

    A flow map adds that of a `span`: of the level asked to, and of how far it is; 0 at first.
    """

    frequencies: Tensor

    def __init__(self, features: int, width: int, *, span: bool = False) -> None:
        super().__init__()
        # On the CPU also where the network is built on the meta device: torch would import its compiler for this `exp`.
        ends = math.log(0.1), math.log(1.0)
        ladder = torch.linspace(*ends, features // 2, dtype=torch.float64, device="cpu").exp().float()
        self.register_buffer("frequencies", ladder, persistent=False)
        self.inner = nn.Linear((1 + span) * features, width)
        self.outer = nn.Linear(width, width)
        if span:
            zeroed(self.outer)

    def forward(self, lam: Tensor, to: Tensor | None = None) -> Tensor:
        """Embed lam (K,), or spans from lam to `to` (K,): (K, width)."""
        told = lam[:, None] if to is None else torch.stack([to, to - lam], dim=1)
        angle = told[:, :, None] * self.frequencies.to(lam.dtype)
        features = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1).flatten(1)
        out: Tensor = self.outer(functional.silu(self.inner(features.to(self.inner.weight.dtype))))
        return functional.silu(out) if to is None else out


class FilmBlock(nn.Module):
    """One residual block: h + W_2 silu((1 + s) * W_1 silu(h) + b)."""

    def __init__(self, width: int, embedding: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.film = nn.Linear(embedding, 2 * width)
        zeroed(self.second)
        zeroed(self.film)

    def forward(self, h: Tensor, embedded: Embedded) -> Tensor:
        """Pass h (N, width) through the block, at the embedded levels."""
        inner = functional.silu(h)
        if embedded.shared and len(h) > len(self.first.weight):
            # One level: scale and shift go into the small weight instead of over all rows.
            gain, shift = (each[0] for each in self.gains(embedded))
            inner = functional.linear(
                inner, self.first.weight * gain[:, None], self.first.bias * gain + shift
            )
        else:
            gain, shift = (spread(each, embedded.rows) for each in self.gains(embedded))
            inner = torch.addcmul(shift, self.first(inner), gain)
        return joined(h, self.second(activated(inner)))

    def gains(self, embedded: Embedded) -> tuple[Tensor, Tensor]:
        def make() -> tuple[Tensor, Tensor]:
            scale, shift = embedded.through(self.film).chunk(2, dim=-1)
            # Each in one piece: rows are looked up faster there than in halves of a wider table.
            return 1.0 + scale, shift.contiguous()

        return remembered(embedded.kept, self, make)


class ResidualMLP(nn.Module):
    """Predicts v (or eps, x0) of points from (x, lambda); 396,834 parameters with the defaults."""

    remembers = True  # whether calls may keep what they derive from times alone; see `kept` of `forward`
    remembers_tables = True  # the same of times that rows point into: a few numbers a level

    def __init__(self, config: MlpConfig) -> None:
        super().__init__()
        self.flow_map = config.flow_map
        features, width, embedding = config.features, config.width, config.embedding
        self.embed = LambdaEmbedding(features, embedding)
        self.embed_span = LambdaEmbedding(features, embedding, span=True) if self.flow_map else None
        self.enter = nn.Linear(config.dim, width)
        self.blocks = nn.ModuleList(FilmBlock(width, embedding) for _ in range(config.blocks))
        self.leave = nn.Linear(width, config.dim)

    def forward(
        self,
        x: Tensor,
        times: Tensor,
        rows: Tensor | None = None,
        to: Tensor | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        emb = remembered(kept, self.embed, lambda: self._embedded(times, to))
        if rows is None and len(times) > 1:
            rows = torch.arange(len(times), device=x.device)
        if torch.is_grad_enabled() or len(x) <= INFERENCE_ROWS or x.device.type != "cpu":
            return self._rows(x, Embedded(emb, rows, kept))
        pieces = [slice(i, i + INFERENCE_ROWS) for i in range(0, len(x), INFERENCE_ROWS)]
        embedded = (Embedded(emb, None if rows is None else rows[piece], kept) for piece in pieces)
        return torch.cat([self._rows(x[piece], each) for piece, each in zip(pieces, embedded, strict=True)])

    def _embedded(self, times: Tensor, to: Tensor | None) -> Tensor:
        emb: Tensor = self.embed(times)
        return emb if self.embed_span is None else emb + self.embed_span(times, times if to is None else to)

    def _rows(self, x: Tensor, embedded: Embedded) -> Tensor:
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, embedded)
        out: Tensor = self.leave(activated(h))
        return out


class _VectorBlock(nn.Module):
    """x + out_layers(in_layers(x) + emb_layers(emb)) on vectors."""

    def __init__(self, channels: int, emb_channels: int, dropout: float) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(GroupNorm32(channels), nn.SiLU(), nn.Linear(channels, channels))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, channels))
        last = zeroed(nn.Linear(channels, channels))
        self.out_layers = nn.Sequential(GroupNorm32(channels), nn.SiLU(), nn.Dropout(dropout), last)

    def forward(self, x: Tensor, emb: Tensor, rows: Tensor | None = None) -> Tensor:
        out: Tensor = x + self.out_layers(self.in_layers(x) + spread(self.emb_layers(emb), rows))
        return out


class SyntheticModel(nn.Module):
    """Predicts eps (or x0) of points from (x, timestep)."""

    def __init__(self, config: SyntheticConfig) -> None:
        super().__init__()
        self.num_channels = ch = config.num_channels

        def blocks(count: int, width: int) -> nn.ModuleList:
            return nn.ModuleList(_VectorBlock(width, ch, config.dropout) for _ in range(count))

        self.time_embed = nn.Sequential(nn.Linear(ch, ch), nn.SiLU(), nn.Linear(ch, ch))
        self.input_blocks = nn.ModuleList(
            [nn.ModuleList([nn.Linear(config.in_channels, ch)]), blocks(config.num_res_blocks, ch)]
        )
        self.middle_block = blocks(2, ch)
        self.output_blocks = nn.ModuleList([blocks(config.num_res_blocks, 2 * ch)])
        last = zeroed(nn.Linear(2 * ch, config.out_channels))
        self.out = nn.Sequential(GroupNorm32(2 * ch), nn.SiLU(), last)

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
