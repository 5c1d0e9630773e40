"""The encoder mixed, between the network's ODE and a linear map: the latent keeps more of the picture's structure.

v = v_lin + share (v_net - v_lin),   v_lin = E[v | x] if pictures were Gaussian of the network's mean and spectrum
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.denoiser import Condition, Denoiser, Places, network_times
from ddib_fed.diffusion.transfers import on_device
from ddib_fed.diffusion.wrapped.guidance import Wrapped
from ddib_fed.networks.spectrum import Spectrum


class SharedWithLinear(Wrapped):
    """A denoiser mixed with the linear estimate of its network's spectrum."""

    def __init__(self, denoiser: Denoiser, share: float = 0.5) -> None:
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
        return linear.lerp_(self.inner.at(x, places, cond), self.share)


def spectrum_of(network: nn.Module) -> Spectrum | None:
    found = getattr(network, "spectrum", None)
    return found if isinstance(found, Spectrum) else None
