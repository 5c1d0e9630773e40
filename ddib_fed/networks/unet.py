"""The UNet of ADM (Dhariwal, Nichol, Diffusion Models Beat GANs, arXiv 2105.05233) and the classifier that guides it.

    emb = W_2 silu(W_1 features(t)) + E[y];   h = up(middle(down(x)), skips);   out = conv(silu(norm(h)))
    p(y | x_t) = softmax(pool(middle(down(x_t, t))))

Names and shapes in the state dict are those of the public checkpoints; the computation is our own.
"""

import math
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from ddib_fed.networks.config import ClassifierConfig, PictureNetwork, UNetConfig
from ddib_fed.networks.placement import Kept, remembered, spread, without_autocast
from ddib_fed.networks.spectrum import Spectrum


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal features of guided-diffusion: [cos(t w_k), sin(t w_k)], w_k = 10,000^(-k / (dim // 2))."""
    dtype = torch.float64 if t.dtype == torch.float64 else torch.float32
    half = dim // 2
    exponent = torch.arange(half, dtype=dtype, device=t.device) * (-math.log(10_000.0) / half)
    angle = t.to(dtype)[:, None] * torch.exp(exponent)[None]
    features = torch.cat([torch.cos(angle), torch.sin(angle)], dim=-1)
    return functional.pad(features, (0, dim % 2))


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """The embedding of the levels of a batch on its way through a network's blocks."""

    emb: Tensor
    rows: Tensor | None = None
    kept: Kept | None = None

    @property
    def shared(self) -> bool:
        return self.rows is None and len(self.emb) == 1

    def through(self, layer: nn.Module) -> Tensor:
        return cast("Tensor", remembered(self.kept, layer, lambda: layer(self.emb)))


class GroupNorm32(nn.GroupNorm):
    """Group normalisation, over 32 groups as a rule: statistics in float32 at least, rounded once to the
    input's dtype."""

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x, self.weight, self.bias)

    def scaled(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalise x (N, channels, ...) with other weights and biases than its own, (channels,) or (N, channels)."""
        # Kernels for half precision accumulate in float32, on a GPU without a copy of x in it; those of the CPU take
        # 2 to 3 times as long as a copy and the kernel of float32. Not functional.group_norm: that refuses one row of
        # 32 channels, groups of one number, which are the bias.
        dtype = torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype
        wide, groups = x.to(dtype), self.num_groups
        if weight.ndim == 2:
            # The rows as channels of one row: the kernel then scales and shifts each by its own, in the same pass.
            wide, groups = wide.reshape(1, -1, *x.shape[2:]), groups * len(x)
        normal = torch.group_norm(
            wide, groups, weight.to(dtype).reshape(-1), bias.to(dtype).reshape(-1), self.eps
        )
        return normal.to(x.dtype).view(x.shape)

    def modulated(self, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and biases with which `scaled` computes norm(x) (1 + scale) + shift; all (K, channels)."""
        wide = torch.promote_types(scale.dtype, torch.float32)
        gain = 1.0 + scale.to(wide)
        return self.weight * gain, self.bias * gain + shift


def activated(x: Tensor) -> Tensor:
    return functional.silu(x, inplace=not torch.is_grad_enabled())


def joined(x: Tensor, branch: Tensor) -> Tensor:
    return x + branch if torch.is_grad_enabled() else branch.add_(x)


Layer = TypeVar("Layer", nn.Linear, nn.Conv1d, nn.Conv2d)


def descend(config: PictureNetwork, in_channels: int) -> tuple[nn.ModuleList, list[int]]:
    """The down path, from pictures to the coarsest features, and the channels of each block."""
    channels = config.widths[0]
    blocks, made = nn.ModuleList([Timed(nn.Conv2d(in_channels, channels, 3, padding=1))]), [channels]
    for level, width in enumerate(config.widths):
        for _ in range(config.num_res_blocks):
            layers: list[nn.Module] = [ResBlock(config, channels, width)]
            channels = width
            if 2**level in config.attention_resolutions:
                layers.append(AttentionBlock(config, channels, config.num_heads))
            blocks.append(Timed(*layers))
            made.append(channels)
        if level < len(config.widths) - 1:
            learned = Downsample(channels, learned=config.conv_resample)
            blocks.append(
                Timed(ResBlock(config, channels, resample="down") if config.resblock_updown else learned)
            )
            made.append(channels)
    return blocks, made


def middle(config: PictureNetwork) -> "Timed":
    channels = config.widths[-1]
    attends = AttentionBlock(config, channels, config.num_heads)
    return Timed(ResBlock(config, channels), attends, ResBlock(config, channels))


class TimeEmbed(nn.Sequential):
    """From times to their embeddings: two linear layers on `timestep_embedding`."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Linear(channels, 4 * channels), nn.SiLU(), nn.Linear(4 * channels, 4 * channels))
        self.channels = channels

    def forward(self, times: Tensor) -> Tensor:
        """Embed times (K,): (K, 4 channels)."""
        emb = timestep_embedding(times, self.channels).to(next(self.parameters()).dtype)
        for layer in self:
            emb = layer(emb)
        return emb


class Timed(nn.Sequential):
    """Layers in sequence; those that depend on the time receive its embedding."""

    def forward(self, x: Tensor, embedded: Embedded) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, embedded) if isinstance(layer, ResBlock) else layer(x)
        return x


class Upsample(nn.Module):
    """Doubles height and width by repetition, with a convolution after it when `learned`."""

    def __init__(self, channels: int, *, learned: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if learned else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Downsample(nn.Module):
    """Halves height and width by a convolution of stride 2 when `learned`, else by the mean of four."""

    def __init__(self, channels: int, *, learned: bool = False) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1) if learned else nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class ResBlock(nn.Module):
    """skip(x) + out_layers(in_layers(x), time); with `resample`, both branches double or halve height and width."""

    def __init__(
        self, config: PictureNetwork, channels: int, out_channels: int | None = None, *, resample: str = ""
    ) -> None:
        super().__init__()
        width, groups = out_channels or channels, config.groups
        self.scale_shift = config.use_scale_shift_norm
        self.resamples = bool(resample)
        self.in_layers = nn.Sequential(
            GroupNorm32(channels, groups), nn.SiLU(), nn.Conv2d(channels, width, 3, padding=1)
        )
        self.h_upd, self.x_upd = _resampler(channels, resample), _resampler(channels, resample)
        self.emb_layers = nn.Sequential(
            nn.SiLU(), nn.Linear(4 * config.model_channels, 2 * width if self.scale_shift else width)
        )
        last = zeroed(nn.Conv2d(width, width, 3, padding=1))
        self.out_layers = nn.Sequential(
            GroupNorm32(width, groups), nn.SiLU(), nn.Dropout(config.dropout), last
        )
        self.skip_connection = nn.Identity() if width == channels else nn.Conv2d(channels, width, 1)

    def forward(self, x: Tensor, embedded: Embedded) -> Tensor:
        """Pass x (N, C, H, W) through the block, at the embedded levels."""
        norm, _, enter = self.in_layers
        h = activated(norm(x))
        if self.resamples:
            h, x = self.h_upd(h), self.x_upd(x)
        h = self._modulated(enter(h), embedded)
        _, _, *rest = self.out_layers
        h = activated(h)
        for layer in rest:
            h = layer(h)
        return joined(self.skip_connection(x), h)

    def _modulated(self, h: Tensor, embedded: Embedded) -> Tensor:
        """The second normalisation, with the time before or after it; h (N, C, H, W) is this block's own."""
        norm = cast("GroupNorm32", self.out_layers[0])
        factors = embedded.through(self.emb_layers)
        if not self.scale_shift:
            return cast("Tensor", norm(joined(spread(factors, embedded.rows)[:, :, None, None], h)))
        # Scale and shift go into the normalisation's weights instead of over all pixels.
        made = remembered(embedded.kept, norm, lambda: norm.modulated(*factors.chunk(2, dim=1)))
        weight, bias = (part[0] if embedded.shared else spread(part, embedded.rows) for part in made)
        return norm.scaled(h, weight, bias)


def _resampler(channels: int, resample: str) -> nn.Module:
    if not resample:
        return nn.Identity()
    return Upsample(channels) if resample == "up" else Downsample(channels)


class AttentionBlock(nn.Module):
    """x + proj_out(attention(qkv(norm(x)))) over all positions of a picture; `heads` unless their width is given."""

    def __init__(self, config: PictureNetwork, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads if config.num_head_channels == -1 else channels // config.num_head_channels
        self.new_order = config.use_new_attention_order
        self.norm = GroupNorm32(channels, config.groups)
        # Convolutions of length 1 in name and shape, as in checkpoints; computed as linear layers.
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        # (N, T, C): a view where the memory is channels-last.
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = pointwise(self.qkv, tokens)
        if self.new_order:
            qkv = qkv.reshape(count, -1, 3, self.heads, channels // self.heads).permute(2, 0, 3, 1, 4)
        else:
            qkv = qkv.reshape(count, -1, self.heads, 3, channels // self.heads).permute(3, 0, 2, 1, 4)
        query, key, value = qkv.unbind(0)
        seen = functional.scaled_dot_product_attention(query, key, value)
        out = pointwise(self.proj_out, seen.transpose(1, 2).reshape(count, -1, channels))
        return x + out.transpose(1, 2).reshape(count, channels, height, width)


def pointwise(layer: nn.Conv1d, tokens: Tensor) -> Tensor:
    return functional.linear(tokens, layer.weight.squeeze(-1), layer.bias)


def zeroed(layer: Layer) -> Layer:
    """`layer` with weights and bias 0: a residual branch that starts as zero."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


SMALL_SPECTRUM = 4_096  # numbers of a picture whose terms of many levels may be remembered: 100 kB a level


class UNet(nn.Module):
    """Predicts eps, x0 or v of pictures (and the variance, when `out_channels` is twice `in_channels`)."""

    remembers = True  # whether calls may keep what they derive from times alone; see `kept` of `forward`

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.image_size, self.in_channels = config.image_size, config.in_channels
        self.num_classes, self.patch = config.num_classes, config.patch
        self.global_mean = config.global_mean
        self.spectrum = (
            Spectrum(self.in_channels, self.image_size, self.image_size) if config.spectral else None
        )
        self.remembers_tables = self.spectrum is None or self.spectrum.mean.numel() <= SMALL_SPECTRUM
        self.time_embed = TimeEmbed(config.model_channels)
        if config.num_classes is not None:
            self.label_emb = nn.Embedding(
                config.num_classes + config.class_dropout, 4 * config.model_channels
            )
        entering = self.in_channels * (self.patch**2 * (1 + config.spectral) + self.global_mean)
        self.input_blocks, skips = descend(config, entering)
        self.middle_block = middle(config)
        heads = config.num_heads if config.num_heads_upsample == -1 else config.num_heads_upsample
        self.output_blocks = nn.ModuleList()
        channels = config.widths[-1]
        for level, width in reversed(list(enumerate(config.widths))):
            for index in range(config.num_res_blocks + 1):
                layers: list[nn.Module] = [ResBlock(config, channels + skips.pop(), width)]
                channels = width
                if 2**level in config.attention_resolutions:
                    layers.append(AttentionBlock(config, channels, heads))
                if level and index == config.num_res_blocks:
                    learned = Upsample(channels, learned=config.conv_resample)
                    layers.append(
                        ResBlock(config, channels, resample="up") if config.resblock_updown else learned
                    )
                self.output_blocks.append(Timed(*layers))
        self.out = nn.Sequential(
            GroupNorm32(channels, config.groups),
            nn.SiLU(),
            zeroed(nn.Conv2d(channels, config.out_channels * self.patch**2, 3, padding=1)),
        )

    def forward(
        self,
        x: Tensor,
        times: Tensor,
        rows: Tensor | None = None,
        y: Tensor | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        if (y is None) != (self.num_classes is None):
            raise ValueError("classes are given if and only if the network has classes")
        emb = remembered(kept, self.time_embed, lambda: self.time_embed(times))
        embedded = Embedded(emb, rows, kept) if y is None else Embedded(spread(emb, rows) + self.label_emb(y))
        if self.spectrum is None:
            return self._predict(x, embedded)
        # The linear estimate keeps its digits where autocast has the layers in half precision.
        with without_autocast(x.device.type):
            asked = self.spectrum.ask(x, times, rows, kept)
        predicted = self._predict(asked.inputs, embedded)
        predicted = predicted.to(torch.promote_types(predicted.dtype, x.dtype))
        channels = x.shape[1]
        with without_autocast(x.device.type):
            answer = asked.answer(predicted[:, :channels])
        if predicted.shape[1] == channels:
            return answer
        return torch.cat([answer, predicted[:, channels:]], dim=1)  # a learned variance

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
            h = block(h, embedded)
            skips.append(h)
        h = self.middle_block(h, embedded)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedded)
        norm, _, leave = self.out
        out: Tensor = leave(activated(norm(h)))
        return functional.pixel_shuffle(out, self.patch) if self.patch > 1 else out


class AttentionPool(nn.Module):
    """Attention pooling (after CLIP): the mean position attends to all positions and itself."""

    def __init__(self, places: int, channels: int, head_channels: int, out_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.randn(channels, places + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """From (N, C, H, W) with H x W = places to (N, out_channels)."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.T.to(x.dtype)
        count, _, channels = tokens.shape
        # Only the mean is a query; the outputs of other positions are not used.
        query, key, value = (
            functional.linear(asked, weight, bias).reshape(count, -1, self.heads, channels // self.heads)
            for asked, weight, bias in zip(
                (tokens[:, :1], tokens, tokens),
                self.qkv_proj.weight.squeeze(-1).chunk(3),
                cast("Tensor", self.qkv_proj.bias).chunk(3),
                strict=True,
            )
        )
        seen = functional.scaled_dot_product_attention(
            query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
        )
        return pointwise(self.c_proj, seen.transpose(1, 2).reshape(count, 1, channels))[:, 0]


class NoisyClassifier(nn.Module):
    """Class logits of noisy pictures."""

    def __init__(self, config: ClassifierConfig) -> None:
        super().__init__()
        self.time_embed = TimeEmbed(config.model_channels)
        self.input_blocks, _ = descend(config, config.in_channels)
        self.middle_block = middle(config)
        last, classes = config.widths[-1], config.out_channels
        if config.pool == "attention":
            places = (config.image_size // config.divisor) ** 2
            head = AttentionPool(places, last, config.num_head_channels, classes)
            self.out = nn.Sequential(GroupNorm32(last), nn.SiLU(), head)
        else:
            leave = zeroed(nn.Conv2d(last, classes, 1))
            mean = nn.AdaptiveAvgPool2d((1, 1))
            self.out = nn.Sequential(GroupNorm32(last), nn.SiLU(), mean, leave, nn.Flatten())

    def forward(self, x: Tensor, times: Tensor, rows: Tensor | None = None) -> Tensor:
        embedded = Embedded(self.time_embed(times), rows)
        h = x
        for block in (*self.input_blocks, self.middle_block):
            h = block(h, embedded)
        out: Tensor = self.out(h)
        return out
