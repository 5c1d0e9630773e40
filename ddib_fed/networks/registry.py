"""Builds a network from its configuration; a new kind of network is added here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ddib_fed.networks.classifier import NoisyClassifier
from ddib_fed.networks.configs import AnyConfig, MlpConfig
from ddib_fed.networks.mlp import ResidualMLP
from ddib_fed.networks.unet import UNet
from ddib_fed.networks.vector_unet import SyntheticModel


def _diffusers_unet(**arguments: Any) -> nn.Module:
    from ddib_fed.networks.diffusers.networks import diffusers_unet

    return diffusers_unet(**arguments)


def _diffusers_dit(**arguments: Any) -> nn.Module:
    from ddib_fed.networks.diffusers.networks import diffusers_dit

    return diffusers_dit(**arguments)


BUILDERS: Mapping[str, Callable[..., nn.Module]] = {
    "mlp": ResidualMLP,
    "synthetic": SyntheticModel,
    "unet": UNet,
    "classifier": NoisyClassifier,
    "diffusers-unet": _diffusers_unet,
    "diffusers-dit": _diffusers_dit,
}


def build_network(config: AnyConfig) -> nn.Module:
    return BUILDERS[config.kind](**config.model_dump(exclude={"kind"}))


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
