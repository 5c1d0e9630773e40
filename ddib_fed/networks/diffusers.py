"""Arguments of the networks of the diffusers library, under the names that its config.json has for them."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from torch import Tensor, nn

from ddib_fed.errors import extra

Width = Annotated[int, Field(ge=4, le=8192)]
DownKind = Literal["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"]
UpKind = Literal["UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"]
Resampling = Literal["conv", "resnet"]
MAX_POSITIONS = 1 << 25
"""Numbers in the embeddings of a transformer's positions, which are computed before weights are read."""


class DiffusersUNetConfig(BaseModel):
    """Arguments of a `UNet2DModel` of diffusers with positional time features."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["diffusers-unet"] = "diffusers-unet"
    image_size: int = Field(ge=1, le=4096)
    in_channels: int = Field(default=3, ge=1, le=64)
    out_channels: int = Field(default=3, ge=1, le=128)
    block_out_channels: tuple[Width, ...] = Field(min_length=1, max_length=10)
    layers_per_block: int = Field(default=2, ge=1, le=16)
    down_block_types: tuple[DownKind, ...]
    up_block_types: tuple[UpKind, ...]
    mid_block: bool = True
    mid_block_scale_factor: float = Field(default=1.0, gt=0.0, le=64.0)
    add_attention: bool = True
    downsample_padding: Literal[0, 1] = 1
    downsample_type: Resampling = "conv"
    upsample_type: Resampling = "conv"
    attention_head_dim: int | None = Field(default=8, ge=1, le=8192)
    norm_num_groups: int = Field(default=32, ge=1, le=1024)
    attn_norm_num_groups: int | None = Field(default=None, ge=1, le=1024)
    norm_eps: float = Field(default=1e-5, gt=0.0, le=1.0)
    resnet_time_scale_shift: Literal["default", "scale_shift"] = "default"
    flip_sin_to_cos: bool = True
    freq_shift: Literal[0, 1] = 0
    time_embedding_dim: int | None = Field(default=None, ge=1, le=32768)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    center_input_sample: bool = False
    num_class_embeds: int | None = Field(default=None, ge=1, le=100_000)
    act_fn: Literal["silu", "mish", "gelu", "relu"] = "silu"

    @property
    def num_classes(self) -> int | None:
        return self.num_class_embeds

    @property
    def divisor(self) -> int:
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def middle_groups(self) -> int | None:
        """Groups of the normalisation before attention in the middle; None for none."""
        if self.attn_norm_num_groups is not None:
            return self.attn_norm_num_groups
        return self.norm_num_groups if self.resnet_time_scale_shift == "default" else None

    @model_serializer(mode="wrap")
    def _without_later_fields(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        fields: dict[str, Any] = handler(self)
        if info.mode == "json" and self.act_fn == "silu":
            fields.pop("act_fn", None)
        return fields

    @model_validator(mode="after")
    def _is_a_unet(self) -> DiffusersUNetConfig:
        levels = len(self.block_out_channels)
        if not levels == len(self.down_block_types) == len(self.up_block_types):
            raise ValueError("block_out_channels, down_block_types and up_block_types have different lengths")
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise ValueError(
                f"out_channels {self.out_channels} is neither in_channels {self.in_channels} nor twice that"
            )
        for width in self.block_out_channels:
            for key in ("norm_num_groups", "attn_norm_num_groups", "attention_head_dim"):
                part = getattr(self, key)
                if part is not None and width % part:
                    raise ValueError(f"{key} {part} does not divide a level's {width} channels")
        if self.block_out_channels[0] < 4 + 2 * self.freq_shift:
            raise ValueError(f"{self.block_out_channels[0]} channels are too few for the features of a time")
        return self


class DiffusersDiTConfig(BaseModel):
    """Arguments of a `DiTTransformer2DModel` of diffusers on pixels (Peebles and Xie, arXiv 2212.09748)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["diffusers-dit"] = "diffusers-dit"
    image_size: int = Field(default=32, ge=1, le=4096)
    in_channels: int = Field(default=4, ge=1, le=64)
    out_channels: int = Field(ge=1, le=128)
    patch_size: int = Field(default=2, ge=1, le=64)
    num_layers: int = Field(default=28, ge=1, le=256)
    num_attention_heads: int = Field(default=16, ge=1, le=256)
    attention_head_dim: int = Field(default=72, ge=1, le=1024)
    attention_bias: bool = True
    activation_fn: Literal["gelu", "gelu-approximate", "geglu", "swiglu"] = "gelu-approximate"
    norm_elementwise_affine: bool = False
    norm_eps: float = Field(default=1e-5, gt=0.0, le=1.0)
    num_embeds_ada_norm: int = Field(default=1000, ge=1, le=100_000)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)

    @property
    def num_classes(self) -> int:
        return self.num_embeds_ada_norm

    @property
    def divisor(self) -> int:
        return self.patch_size

    @model_validator(mode="after")
    def _is_a_transformer(self) -> DiffusersDiTConfig:
        if self.out_channels not in (self.in_channels, 2 * self.in_channels):
            raise ValueError(
                f"out_channels {self.out_channels} is neither in_channels {self.in_channels} nor twice that"
            )
        if self.image_size % self.patch_size:
            raise ValueError(f"patch_size {self.patch_size} does not divide image_size {self.image_size}")
        width = self.num_attention_heads * self.attention_head_dim
        if width % 4:
            raise ValueError(f"{width} channels do not divide by 4, which embeddings of positions need")
        positions = (self.image_size // self.patch_size) ** 2 * width
        if positions > MAX_POSITIONS:
            raise ValueError(
                f"{positions:,} numbers in the embeddings of positions are over {MAX_POSITIONS:,}"
            )
        return self


with extra("diffusers", "diffusers", "networks of diffusers need the diffusers library"):
    from diffusers.models.embeddings import PatchEmbed, Timesteps
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
    from diffusers.models.unets.unet_2d import UNet2DModel


class DiffusersUNet(UNet2DModel):  # type: ignore[misc]
    """`UNet2DModel`: predicts eps, x0 or v of pictures, as its weights were trained."""

    to = nn.Module.to  # the library's logs a warning whenever a dtype is given

    def forward(
        self, x: Tensor, times: Tensor, rows: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        return cast("Tensor", super().forward(x, _of_rows(x, times, rows), y, return_dict=False)[0])


class DiffusersDiT(DiTTransformer2DModel):  # type: ignore[misc]
    """`DiTTransformer2DModel` on pixels: predicts eps, x0 or v of pictures, as its weights were trained."""

    to = nn.Module.to  # the library's logs a warning whenever a dtype is given

    def forward(
        self, x: Tensor, times: Tensor, rows: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """The prediction at x."""
        if y is None:
            raise ValueError("this network needs classes")
        out = super().forward(x, _of_rows(x, times, rows), y, return_dict=False)
        return cast("Tensor", out[0])


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
    """The network of a `DiffusersUNetConfig`'s fields."""
    middle = "UNetMidBlock2D" if mid_block else None
    network = DiffusersUNet(sample_size=image_size, mid_block_type=middle, **arguments)
    network.time_proj = _exact(network.time_proj)
    return network


def diffusers_dit(*, image_size: int, **arguments: Any) -> DiffusersDiT:
    """The network of a `DiffusersDiTConfig`'s fields."""
    network = DiffusersDiT(sample_size=image_size, **arguments)
    for block in network.transformer_blocks:
        block.norm1.emb.time_proj = _exact(block.norm1.emb.time_proj)
    # The positions are not weights: on the meta device they would have no values.
    patch = arguments["patch_size"]
    with torch.device("cpu"):
        positions = PatchEmbed(image_size, image_size, patch, 1, network.inner_dim).pos_embed
    network.pos_embed.register_buffer("pos_embed", positions, persistent=False)
    return network


def _of_rows(x: Tensor, times: Tensor, rows: Tensor | None) -> Tensor:
    return times.expand(len(x)) if rows is None else times.index_select(0, rows)


def _exact(timesteps: Timesteps) -> ExactTimesteps:
    return ExactTimesteps(
        timesteps.num_channels, timesteps.flip_sin_to_cos, timesteps.downscale_freq_shift, timesteps.scale
    )
