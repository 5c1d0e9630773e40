"""The gradient of each sample of a batch, by itself, whatever the network is made of.

With g_i the gradient of sample i, the mean over its K draws of noise level and noise (Dockhorn et al., arXiv
2210.09929, section 3.2), a step of DP-SGD is
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from ddib_fed.errors import SettingsInvalid

GRADIENT_BYTES = 1 << 28
"""What the gradients of the samples that are computed together may take."""
_MASKS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_BATCHES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@dataclass(frozen=True, slots=True)
class Draws:
    """Samples with several draws of noise level and noise each."""

    x: Tensor
    times: Tensor
    target: Tensor
    labels: Tensor | None = None

    def parts(self, size: int, device: torch.device) -> Iterator[Draws]:
        """At most `size` samples at a time, on the device."""
        for first in range(0, len(self.x), size):
            part = slice(first, first + size)
            fields = (self.x, self.times, self.target, self.labels)
            yield Draws(*(None if field is None else field[part].to(device) for field in fields))  # type: ignore[arg-type]


class SampleGradients:
    """Gradients of single samples."""

    def __init__(self, network: nn.Module) -> None:
        refuse_layers(network)
        self._network = network
        self._buffers = dict(network.named_buffers())
        size = sum(parameter.numel() * parameter.element_size() for parameter in network.parameters())
        self.at_once = max(1, GRADIENT_BYTES // size)

    def __call__(self, draws: Draws) -> tuple[list[Tensor], Tensor]:
        weights = {name: value.detach() for name, value in self._network.named_parameters()}
        labels = None if draws.labels is None else 0
        each = vmap(grad_and_value(self._loss), in_dims=(None, 0, 0, 0, labels))
        gradients, losses = each(weights, draws.x, draws.times, draws.target, draws.labels)
        return list(gradients.values()), losses

    def _loss(
        self, weights: dict[str, Tensor], x: Tensor, times: Tensor, target: Tensor, labels: Tensor | None
    ) -> Tensor:
        extra = {} if labels is None else {"y": labels}
        answer = functional_call(self._network, (weights, self._buffers), (x, times), extra)
        loss: Tensor = (answer - target).square().mean()
        return loss


def refuse_layers(network: nn.Module) -> None:
    """Return if no layer mixes samples."""
    for name, layer in network.named_modules():
        drops = isinstance(layer, _MASKS) and layer.p > 0
        if drops or isinstance(layer, _BATCHES) or getattr(layer, "running_mean", None) is not None:
            raise SettingsInvalid(
                f"{name} of the network is a {type(layer).__name__}, which differential privacy does not allow: "
                "the gradient of a sample would depend on the others of its batch",
                hint="start from a network of group normalisation without dropout",
            )
