"""The UNet of ADM (Dhariwal, Nichol, Diffusion Models Beat GANs, arXiv 2105.05233): from (x_t, t, class) to eps.

emb = W_2 silu(W_1 features(t)) + E[y];   h = up(middle(down(x)), skips);   out = conv(silu(norm(h)))
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from ddib_fed.networks.layers import (
    BlockSettings,
    Embedded,
    GroupNorm32,
    Kept,
    Timed,
    TimeEmbed,
    activated,
    descend,
    middle,
    remembered,
    spread,
    without_autocast,
    zeroed,
)
from ddib_fed.networks.spectrum import Spectrum

SMALL_SPECTRUM = 4_096
"""Numbers of a picture whose terms of many levels may be remembered: 100 kB a level."""


class UNet(nn.Module):
    """Predicts eps, x0 or v of pictures (and the variance, when `out_channels` is twice `in_channels`)."""

    remembers = True
    """Whether calls may keep what they derive from times alone; see `kept` of `forward`."""

    def __init__(
        self,
        image_size: int,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        dropout: float = 0.0,
        channel_mult: Sequence[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        num_classes: int | None = None,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
        patch: int = 1,
        class_dropout: bool = False,
        norm_groups: int = 32,
        global_mean: bool = False,
        spectral: bool = False,
        flow_map: bool = False,
    ) -> None:
        super().__init__()
        self.image_size = image_size
        self.in_channels = in_channels
        self.num_classes = num_classes
        self.patch = patch
        self.global_mean = global_mean
        self.flow_map = flow_map
        self.checkpointing = False
        self.spectrum = Spectrum(in_channels, image_size) if spectral else None
        self.remembers_tables = self.spectrum is None or self.spectrum.mean.numel() <= SMALL_SPECTRUM
        emb_channels = 4 * model_channels
        widths = [int(mult * model_channels) for mult in channel_mult]
        settings = BlockSettings(
            emb_channels,
            dropout,
            use_scale_shift_norm,
            num_head_channels,
            use_new_attention_order,
            conv_resample,
            resblock_updown,
            norm_groups,
        )
        self.time_embed = TimeEmbed(model_channels)
        self.span_embed = TimeEmbed(model_channels, span=True) if flow_map else None
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes + class_dropout, emb_channels)
        entering = in_channels * (patch**2 * (1 + spectral) + global_mean)
        way = descend(settings, entering, widths, num_res_blocks, attention_resolutions, num_heads)
        self.input_blocks = way.blocks
        self.middle_block = middle(settings, widths[-1], num_heads)
        heads = num_heads if num_heads_upsample == -1 else num_heads_upsample
        self.output_blocks = nn.ModuleList()
        channels, skips, factor = widths[-1], list(way.widths), way.factor
        for level, width in reversed(list(enumerate(widths))):
            for index in range(num_res_blocks + 1):
                layers: list[nn.Module] = [settings.residual(channels + skips.pop(), width)]
                channels = width
                if factor in attention_resolutions:
                    layers.append(settings.attention(channels, heads))
                if level and index == num_res_blocks:
                    layers.append(settings.up(channels))
                    factor //= 2
                self.output_blocks.append(Timed(*layers))
        self.out = nn.Sequential(
            GroupNorm32(channels, norm_groups),
            nn.SiLU(),
            zeroed(nn.Conv2d(channels, out_channels * patch**2, 3, padding=1)),
        )

    def forward(
        self,
        x: Tensor,
        times: Tensor,
        rows: Tensor | None = None,
        y: Tensor | None = None,
        to: Tensor | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        if (y is None) != (self.num_classes is None):
            raise ValueError("classes are given if and only if the network has classes")
        embedded = self._embedded(times, rows, y, to, kept)
        if self.spectrum is None:
            return self._predict(x, embedded)
        # The linear estimate keeps its digits where autocast has the layers in half precision.
        with without_autocast(x.device.type):
            asked = self.spectrum.ask(x, times, rows, to, kept)
        found = self._predict(asked.inputs, embedded)
        found = found.to(torch.promote_types(found.dtype, x.dtype))
        channels = x.shape[1]
        with without_autocast(x.device.type):
            answer = asked.answer(found[:, :channels])
        if found.shape[1] == channels:
            return answer
        return torch.cat([answer, found[:, channels:]], dim=1)  # a learned variance

    def _embedded(
        self, times: Tensor, rows: Tensor | None, y: Tensor | None, to: Tensor | None, kept: Kept | None
    ) -> Embedded:
        emb = remembered(kept, self.time_embed, lambda: self._of_times(times, to))
        return Embedded(emb, rows, kept) if y is None else Embedded(spread(emb, rows) + self.label_emb(y))

    def _of_times(self, times: Tensor, to: Tensor | None) -> Tensor:
        emb: Tensor = self.time_embed(times)
        return emb if self.span_embed is None else emb + self.span_embed(times, times if to is None else to)

    def _predict(self, x: Tensor, embedded: Embedded) -> Tensor:
        """The output of the layers for x (N, in_channels, H, W); of a spectrum, (N, 2 in_channels, H, W)."""
        mean = None
        if self.global_mean:
            mean = x[:, : self.in_channels].mean(dim=(2, 3), keepdim=True) * math.sqrt(x[0, 0].numel())
        if self.patch > 1:
            x = functional.pixel_unshuffle(x, self.patch)
        if mean is not None:
            x = torch.cat([x, mean.expand(-1, -1, *x.shape[2:])], dim=1)
        h = x
        skips = []
        for block in self.input_blocks:
            h = self._through(block, h, embedded)
            skips.append(h)
        h = self._through(self.middle_block, h, embedded)
        for block in self.output_blocks:
            h = self._through(block, torch.cat([h, skips.pop()], dim=1), embedded)
        norm, _, leave = self.out
        out: Tensor = leave(activated(norm(h)))
        return functional.pixel_shuffle(out, self.patch) if self.patch > 1 else out

    def _through(self, block: nn.Module, h: Tensor, embedded: Embedded) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return cast("Tensor", checkpoint(block, h, embedded, use_reentrant=False))
        return cast("Tensor", block(h, embedded))
