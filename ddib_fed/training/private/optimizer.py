"""Clipped sums of gradients with noise of the run's key, by opacus' optimiser; import it where opacus is needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor

from ddib_fed.training.private.key import RunKey


class ClippedSums(DPOptimizer):  # type: ignore[misc]
    """Clips gradients of samples, sums them, and adds the noise of a step; the step itself is its caller's."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        noise_multiplier: float,
        clip: float,
        expected: int,
        key: RunKey,
    ) -> None:
        super().__init__(
            optimizer, noise_multiplier=noise_multiplier, max_grad_norm=clip, expected_batch_size=expected
        )
        self._key, self._taken = key, 0

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Clip gradients (n, *shape) of some samples, in the order of the parameters, and add them up."""
        for parameter, gradient in zip(self.params, gradients, strict=True):
            parameter.grad_sample = gradient
        self.clip_and_accumulate()

    def finish(self, step: int) -> None:
        """Put the noised mean of what was added into the gradients; without samples it is noise alone."""
        if self.params[0].summed_grad is None:
            self.add(
                [torch.empty((0, *parameter.shape), device=parameter.device) for parameter in self.params]
            )
        self._taken = step
        self.add_noise()
        self.scale_grad()

    def add_noise(self) -> None:
        deviation = self.noise_multiplier * self.max_grad_norm
        for number, parameter in enumerate(self.params):
            noise = self._key.normals(f"noise {number}", self._taken, tuple(parameter.shape))
            total = parameter.summed_grad
            parameter.grad = total + torch.from_numpy(deviation * noise).to(total.device, total.dtype)
