"""The networks that configurations describe, with random weights, with none, or with those of a bundle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

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
    # It loads a large library, which need not be installed.
    from ddib_fed.networks.diffusers import diffusers_unet

    return diffusers_unet(**arguments)


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
