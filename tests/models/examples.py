"""Small models that tests save, load and damage."""

from __future__ import annotations

import torch

from ddib_fed.models.manifest import Manifest
from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import MlpConfig, SyntheticConfig

SMALL = MlpConfig(width=16, blocks=1, embedding=8, features=4)


def manifest(network: MlpConfig | SyntheticConfig = SMALL) -> Manifest:
    return Manifest(name="small", domain="moons", sample_shape=(2,), network=network)


def state(network: MlpConfig | SyntheticConfig = SMALL, seed: int = 0) -> dict[str, torch.Tensor]:
    made = build_network(network).state_dict()
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.1 * torch.randn(value.shape, generator=generator) for key, value in made.items()}
