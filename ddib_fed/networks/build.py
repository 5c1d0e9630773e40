"""The networks that configurations describe, with random weights, with none, or with those of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ddib_fed.errors import extra
from ddib_fed.networks.config import AnyConfig, ClassifierConfig, MlpConfig, SyntheticConfig, UNetConfig
from ddib_fed.networks.mlp import ResidualMLP, SyntheticModel
from ddib_fed.networks.unet import NoisyClassifier, UNet


def build_network(config: AnyConfig) -> nn.Module:
    if isinstance(config, UNetConfig):
        return UNet(config)
    if isinstance(config, ClassifierConfig):
        return NoisyClassifier(config)
    arguments = config.model_dump(exclude={"kind"})
    if isinstance(config, MlpConfig):
        return ResidualMLP(**arguments)
    if isinstance(config, SyntheticConfig):
        return SyntheticModel(**arguments)
    return _diffusers_unet(**arguments)


def _diffusers_unet(*, image_size: int, mid_block: bool, **arguments: Any) -> nn.Module:
    """`UNet2DModel` of a large library, which need not be installed, called as the networks here."""
    with extra("diffusers", "diffusers", "networks of diffusers need the diffusers library"):
        from diffusers.models.unets.unet_2d import UNet2DModel

    class DiffusersUNet(UNet2DModel):  # type: ignore[misc]
        to = nn.Module.to  # the library's logs a warning whenever a dtype is given

        def forward(
            self, x: Tensor, times: Tensor, rows: Tensor | None = None, y: Tensor | None = None
        ) -> Tensor:
            own = times.expand(len(x)) if rows is None else times.index_select(0, rows)
            return cast("Tensor", super().forward(x, own, y, return_dict=False)[0])

    middle = "UNetMidBlock2D" if mid_block else None
    return DiffusersUNet(sample_size=image_size, mid_block_type=middle, **arguments)


def network_shapes(config: AnyConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_network(config).state_dict()


def network_with(
    config: AnyConfig,
    state: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The network that `config` describes with its own copy of `state`, which fits; made without a second copy."""
    if isinstance(config, MlpConfig):
        network = build_network(config)  # its frequencies are not in the state
    else:
        with torch.device("meta"):
            network = build_network(config)
    own = {key: value.to(device=device, dtype=dtype, copy=True) for key, value in state.items()}
    network.load_state_dict(own, assign=True)
    return network.to(device=device, dtype=dtype)
