"""The exponential moving average of a network's weights, which is what a bundle holds.

Averages are kept beside the weights, never swapped into the network that is being trained.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """Averages of all entries of a module's state dict."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self._averages = {name: value.detach().clone() for name, value in module.state_dict().items()}
        self._moving = [value for value in self._averages.values() if value.is_floating_point()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take the module's weights after step `step` (from 0) into the averages."""
        kept = min(self.decay, (1 + step) / (10 + step))
        weights = module.state_dict()
        torch._foreach_lerp_(
            self._moving, [value for value in weights.values() if value.is_floating_point()], 1.0 - kept
        )
        for name, average in self._averages.items():
            if not average.is_floating_point():
                average.copy_(weights[name])

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self._averages)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, average in self._averages.items():
            average.copy_(state[name])
