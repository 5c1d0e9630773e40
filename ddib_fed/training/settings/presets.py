"""Named networks for pictures, and the settings that go with their size.

Every value of a preset can be replaced. `adm-128` and `adm-256` are the networks of
guided-diffusion's public checkpoints at those sizes (its README's MODEL_FLAGS), so `--init` takes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from ddib_fed.networks.configs import UNetConfig


@dataclass(frozen=True, slots=True)
class Preset:
    """One network with what goes with it."""

    size: int
    network: Mapping[str, Any] = field(repr=False)
    batch: int
    microbatch: int
    learning_rate: float
    warmup: int
    ema: float
    steps: int
    checkpoint_every: int
    purpose: str


_ADM = {
    "num_head_channels": 64,
    "num_res_blocks": 2,
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "attention_resolutions": (32, 16, 8),
}

_SMALL = {
    "num_head_channels": 32,
    "use_scale_shift_norm": True,
    "resblock_updown": False,
    "patch": 2,
    "norm_groups": 8,
    "global_mean": True,
    "spectral": True,
}

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "tiny-32": Preset(
            size=32,
            network={
                **_SMALL,
                "model_channels": 32,
                "channel_mult": (1, 2, 3),
                "num_res_blocks": 1,
                "attention_resolutions": (2, 4),
            },
            batch=64,
            microbatch=64,
            learning_rate=1e-3,
            warmup=200,
            ema=0.999,
            steps=8_000,
            checkpoint_every=500,
            purpose="small pictures in an hour of one core",
        ),
        "small-64": Preset(
            size=64,
            network={
                **_SMALL,
                "model_channels": 96,
                "channel_mult": (1, 2, 2),
                "num_res_blocks": 2,
                "attention_resolutions": (4,),
            },
            batch=64,
            microbatch=32,
            learning_rate=5e-4,
            warmup=500,
            ema=0.9995,
            steps=50_000,
            checkpoint_every=500,
            purpose="a GPU, or a shorter run by --time",
        ),
        "adm-128": Preset(
            size=128,
            network={**_ADM, "model_channels": 256, "channel_mult": (1, 1, 2, 3, 4)}
            | {"num_head_channels": -1, "num_heads": 4},
            batch=256,
            microbatch=16,
            learning_rate=1e-4,
            warmup=1_000,
            ema=0.9999,
            steps=300_000,
            checkpoint_every=1_000,
            purpose="guided-diffusion's 128 x 128 network; GPUs",
        ),
        "adm-256": Preset(
            size=256,
            network={**_ADM, "model_channels": 256, "channel_mult": (1, 1, 2, 2, 4, 4)},
            batch=256,
            microbatch=8,
            learning_rate=1e-4,
            warmup=1_000,
            ema=0.9999,
            steps=500_000,
            checkpoint_every=1_000,
            purpose="guided-diffusion's 256 x 256 network; GPUs",
        ),
    }
)

PUBLIC: Mapping[str, Any] = MappingProxyType(
    {
        "network": "public",
        "schedule": "linear",
        "diffusion_steps": 4000,
        "batch": 20_000,
        "reference": 0,
        "learning_rate": 1e-4,
        "decay": "none",
        "warmup": 0,
        "beta2": 0.999,
        "clip": None,
        "ema": 0.9999,
        "dropout": 0.2,
    }
)
"""What the public code's README trains its 2-D models with, and that code's defaults where it says nothing."""
BYTES_A_PARAMETER = 20
"""Weights, gradients, two moments and averages, in float32."""


@dataclass(frozen=True, slots=True)
class PresetCost:
    """One preset on RGB pictures."""

    name: str
    size: int
    parameters: int
    memory: int
    batch: int
    purpose: str

    def figures(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        needs = f"{self.parameters / 1e6:.1f} M parameters, {self.memory / 2**30:.2f} GiB and activations"
        return f"{self.size} x {self.size}, {needs}, batch {self.batch}: {self.purpose}"


def preset_costs() -> list[PresetCost]:
    """All presets in their order."""
    from ddib_fed.networks.registry import network_shapes  # imports torch

    found = []
    for name, preset in PRESETS.items():
        config = UNetConfig(image_size=preset.size, in_channels=3, out_channels=3, **preset.network)
        parameters = sum(shape.numel() for shape in network_shapes(config).values())
        memory = BYTES_A_PARAMETER * parameters
        found.append(PresetCost(name, preset.size, parameters, memory, preset.batch, preset.purpose))
    return found
