"""What the presets need, told without training: parameters, and the memory for weights and optimiser.

The rule: what depends on the machine (seconds a step, activations) is measured before a run, not guessed here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ddib_fed.networks.configs import UNetConfig
from ddib_fed.networks.registry import network_shapes
from ddib_fed.training.presets import PRESETS

BYTES_A_PARAMETER = 20
"""Weights, gradients, two moments and averages, in float32."""


@dataclass(frozen=True, slots=True)
class PresetCost:
    """One preset on RGB pictures.

    Attributes:
        name: Of the preset.
        size: Pixels of a side.
        parameters: Numbers in the network.
        memory: Bytes of weights and training state, without activations.
        batch: Pictures a step.
        purpose: What it is for.
    """

    name: str
    size: int
    parameters: int
    memory: int
    batch: int
    purpose: str

    def figures(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        needs = f"{self.parameters / 1e6:.1f} M parameters, {self.memory / 2**30:.2f} GiB and activations"
        return f"{self.size} x {self.size}, {needs}, batch {self.batch}: {self.purpose}"


def preset_costs() -> list[PresetCost]:
    """All presets in their order."""
    found = []
    for name, preset in PRESETS.items():
        config = UNetConfig(image_size=preset.size, in_channels=3, out_channels=3, **preset.network)
        parameters = sum(shape.numel() for shape in network_shapes(config).values())
        memory = BYTES_A_PARAMETER * parameters
        found.append(PresetCost(name, preset.size, parameters, memory, preset.batch, preset.purpose))
    return found
