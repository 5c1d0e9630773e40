"""Encoders between the network's ODE and a linear map: the source's latent keeps more of the picture's structure.

v = v_lin + share (v_net - v_lin),   v_lin = E[v | x] if pictures were Gaussian of the network's mean and spectrum
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.denoiser import Condition, Denoiser, Places, network_times
from ddib_fed.diffusion.transfers import on_device
from ddib_fed.diffusion.wrapped.guidance import Wrapped
from ddib_fed.networks.spectrum import Spectrum

SHARES = {"ode": 1.0, "mixed": 0.5, "linear": 0.0}
"""Share of the network by the encoders' names, `diffusion.plans.ENCODERS`."""


class SharedWithLinear(Wrapped):
    """A denoiser mixed with the linear estimate of its network's spectrum."""

    def __init__(self, denoiser: Denoiser, share: float) -> None:
        super().__init__(denoiser)
        spectrum = spectrum_of(self.network)
        if spectrum is None:
            raise ValueError("the network has no spectrum")
        self.share = share
        self._spectrum = spectrum

    def at(self, x: Tensor, places: Places, cond: Condition = None) -> Tensor:
        """As `Denoiser.at`."""
        wide = torch.promote_types(x.dtype, torch.float32)
        times = on_device(network_times(places.table, "scaled-lambda"), x.device, wide)
        linear = self._spectrum.ask(x, times, places.rows).expected().to(x.dtype)
        if self.share == 0.0:
            return linear
        return linear.lerp_(self.inner.at(x, places, cond), self.share)


def spectrum_of(network: nn.Module) -> Spectrum | None:
    found = getattr(network, "spectrum", None)
    return found if isinstance(found, Spectrum) else None
