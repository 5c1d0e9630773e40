"""Builds a network from its configuration; a new kind of network is added here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ddib_fed.networks.classifier import NoisyClassifier
from ddib_fed.networks.configs import ClassifierConfig, MlpConfig, SyntheticConfig, UNetConfig
from ddib_fed.networks.diffusers_config import DiffusersUNetConfig
from ddib_fed.networks.diffusers_unet import DiffusersUNet
from ddib_fed.networks.mlp import ResidualMLP
from ddib_fed.networks.unet import UNet
from ddib_fed.networks.vector_unet import SyntheticModel

AnyConfig = MlpConfig | SyntheticConfig | UNetConfig | ClassifierConfig | DiffusersUNetConfig
BUILDERS: Mapping[str, Callable[..., nn.Module]] = {
    "mlp": ResidualMLP,
    "synthetic": SyntheticModel,
    "unet": UNet,
    "classifier": NoisyClassifier,
    "diffusers-unet": DiffusersUNet,
}


def build_network(config: AnyConfig) -> nn.Module:
    """The network that `config` describes, with fresh weights."""
    return BUILDERS[config.kind](**config.model_dump(exclude={"kind"}))


def network_shapes(config: AnyConfig) -> dict[str, Tensor]:
    """The state dict of the network that `config` describes, on the meta device: shapes, and no memory."""
    with torch.device("meta"):
        return build_network(config).state_dict()


def network_with(
    config: AnyConfig,
    state: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The network that `config` describes with its own copy of `state`, which fits; made without a second copy."""
    if isinstance(config, UNetConfig | ClassifierConfig | DiffusersUNetConfig):
        # All that these networks hold is in the state: nothing else needs memory or random numbers.
        with torch.device("meta"):
            network = build_network(config)
    else:
        network = build_network(config)
    own = {key: value.to(device=device, dtype=dtype, copy=True) for key, value in state.items()}
    network.load_state_dict(own, assign=True)
    return network.to(device=device, dtype=dtype)
