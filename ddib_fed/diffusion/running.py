"""How a denoiser's network is run: called as it is here, or by what answers the same (`networks.placement`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.transfers import on_device


class Run(Protocol):
    """Answers for a network."""

    def __call__(
        self, x: Tensor, times: Tensor, rows: Tensor | None, extra: Mapping[str, Tensor]
    ) -> Tensor: ...


class Plain:
    """Calls the network.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        parameter = next((p for p in network.parameters() if p.is_floating_point()), torch.zeros(()))
        self.device = parameter.device

    def __call__(self, x: Tensor, times: Tensor, rows: Tensor | None, extra: Mapping[str, Tensor]) -> Tensor:
        there, further = self.placed(times, extra)
        return self._answer(x, there, rows, {**extra, **further})

    def _answer(self, x: Tensor, times: Tensor, rows: Tensor | None, extra: Mapping[str, Any]) -> Tensor:
        """Call the network; without gradients in inference mode, in which a call of few rows costs 4 to 7 % less."""
        if torch.is_grad_enabled():
            out: Tensor = self.network(x, times, rows=rows, **extra)
            return out
        network = self.network_for(len(x))
        with torch.inference_mode():
            out = network(x, times, rows=rows, **extra)
        return out.clone()  # a tensor that may be written outside of it

    def network_for(self, rows: int) -> nn.Module:  # noqa: ARG002 - for classes that have several
        """The network that is called for so many rows without gradients."""
        return self.network

    def placed(self, times: Tensor, extra: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The times, and those of "to" where they are asked, on the network's device."""
        further = {"to": on_device(extra["to"], self.device)} if "to" in extra else {}
        return on_device(times, self.device), further
