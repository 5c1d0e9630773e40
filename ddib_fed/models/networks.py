"""From a network's configuration to the network; the one place that a new kind of network is added to."""

from __future__ import annotations

from torch import nn

from ddib_fed.models.manifest import MlpConfig, SyntheticConfig
from ddib_fed.models.mlp import ResidualMLP
from ddib_fed.models.synthetic import SyntheticModel


def build_network(config: MlpConfig | SyntheticConfig) -> nn.Module:
    """The network that `config` describes, with fresh weights."""
    arguments = config.model_dump(exclude={"kind"})
    return ResidualMLP(**arguments) if isinstance(config, MlpConfig) else SyntheticModel(**arguments)
