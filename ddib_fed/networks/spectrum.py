"""Spectral preconditioning: the network corrects the best linear estimate from the pictures' mean and spectrum.

If pictures were Gaussian, x_0 ~ N(m, U D U^T) with U the orthonormal cosine transform (DCT-II) and D diagonal, then of
x = alpha x_0 + sigma eps, r = U^T (x - alpha m) and S = alpha^2 D + sigma^2 the best answer would be (Wiener, 1949)

    E[v | x] = U alpha sigma (1 - D) / S r - sigma m
"""

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.denoiser import LAMBDA_SCALE, Condition, Denoiser, Places, network_times, on_device
from ddib_fed.diffusion.guidance import Wrapped
from ddib_fed.diffusion.schedule import Level, Scale
from ddib_fed.errors import SettingsInvalid
from ddib_fed.networks.placement import Kept, remembered, spread

LEAST_VARIANCE = 1e-8


class Spectrum(nn.Module):
    """Mean and spectrum of pictures in the network's units; before `measure`, those of white noise."""

    def __init__(self, channels: int, *sides: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.log_variance: Tensor
        self.register_buffer("mean", torch.zeros(channels, *sides))
        self.register_buffer("log_variance", torch.zeros(channels, *sides))

    def measure(self, moments: "Moments") -> None:
        """Set the measured values, rounded to float16."""
        mean, variance = moments.result()
        self.mean.copy_(mean.half())
        self.log_variance.copy_(variance.clamp_min(LEAST_VARIANCE).log().half())

    def ask(
        self, x: Tensor, times: Tensor, rows: Tensor | None = None, kept: Kept | None = None
    ) -> "LinearEstimate":
        """The network's inputs for x at its levels."""
        if x.shape[1:] != self.mean.shape:
            raise ValueError(f"pictures {tuple(x.shape[1:])} for a spectrum of {tuple(self.mean.shape)}")
        wide = torch.promote_types(x.dtype, torch.float32)
        terms = Terms(
            *(spread(term, rows) for term in remembered(kept, self, lambda: self._terms(times, wide)))
        )
        axes = x.ndim - 2
        residual = cosines(x.to(wide) - terms.at, axes)
        inputs = pictures(residual[:, None] * terms.inputs, axes).flatten(1, 2)
        return LinearEstimate(inputs.to(x.dtype), residual, terms)

    def _terms(self, times: Tensor, wide: torch.dtype) -> "Terms":
        """What holds for every picture at times (K,), of dtype `wide`."""
        lam = times.double().reshape(-1, *(1,) * self.mean.ndim) / LAMBDA_SCALE
        alpha, sigma = (torch.sigmoid(sign * 2 * lam).sqrt().to(wide) for sign in (1, -1))
        mean, variance = self.mean.to(wide), self.log_variance.to(wide).exp()
        power = alpha.square() * variance + sigma.square()
        return Terms(
            at=alpha * mean,
            inputs=torch.stack([power.rsqrt(), alpha * variance / power], dim=1),
            gain=alpha * sigma * (1.0 - variance) / power,
            drift=-sigma * mean,
            left=(variance / power).sqrt().clamp_max(1.0),
        )


class Terms(NamedTuple):
    """What multiplies and shifts pictures at each of K levels; float32 at least."""

    at: Tensor
    inputs: Tensor
    gain: Tensor
    drift: Tensor
    left: Tensor


class LinearEstimate(NamedTuple):
    """The network's inputs, and the linear estimate that its output corrects."""

    inputs: Tensor
    residual: Tensor
    terms: Terms

    def expected(self) -> Tensor:
        return pictures(self.terms.gain * self.residual, self._axes) + self.terms.drift

    def answer(self, found: Tensor) -> Tensor:
        """The prediction of v from the network's output (N, C, *sides)."""
        correction = self.terms.left * cosines(found.to(self.residual.dtype), self._axes)
        v = torch.addcmul(correction, self.terms.gain, self.residual)
        return (pictures(v, self._axes) + self.terms.drift).to(found.dtype)

    @property
    def _axes(self) -> int:
        return self.residual.ndim - 2


class Moments:
    """Sums over pictures, from which mean and spectrum follow; float64."""

    def __init__(self, channels: int, *sides: int) -> None:
        self._count, self._axes = 0, len(sides)
        self._sum = torch.zeros(channels, *sides, dtype=torch.float64)
        self._squares = torch.zeros_like(self._sum)

    def add(self, x0: Tensor) -> None:
        """Add clean pictures (N, C, *sides), in the network's units."""
        coefficients = cosines(x0.double(), self._axes)
        self._count += len(coefficients)
        self._sum += coefficients.sum(0)
        self._squares += coefficients.square().sum(0)

    def result(self) -> tuple[Tensor, Tensor]:
        mean = self._sum / self._count
        return pictures(mean, self._axes), self._squares / self._count - mean.square()


def cosines(x: Tensor, axes: int = 2) -> Tensor:
    """The orthonormal cosine transform over the last 2 or 3 axes."""
    rows, columns = (_basis(side, x.dtype, x.device) for side in x.shape[-2:])
    coefficients = rows.T @ x @ columns
    if axes == 2:
        return coefficients
    return torch.einsum("de,...dhw->...ehw", _basis(x.shape[-3], x.dtype, x.device), coefficients)


def pictures(found: Tensor, axes: int = 2) -> Tensor:
    """The inverse of `cosines`."""
    rows, columns = (_basis(side, found.dtype, found.device) for side in found.shape[-2:])
    x = rows @ found @ columns.T
    if axes == 2:
        return x
    return torch.einsum("de,...ehw->...dhw", _basis(x.shape[-3], x.dtype, x.device), x)


@lru_cache(maxsize=16)
def _basis(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):
        places = torch.arange(side, dtype=torch.float64)
        basis = torch.cos(math.pi / side * (places[:, None] + 0.5) * places) * math.sqrt(2.0 / side)
        basis[:, 0] /= math.sqrt(2.0)
        return basis.to(device, dtype)


class SharedWithLinear(Wrapped):
    """A share of a denoiser; the rest is the linear estimate of its network's spectrum."""

    def __init__(self, denoiser: Denoiser, share: float) -> None:
        super().__init__(denoiser)
        self._share, self._spectrum = share, _required(denoiser)

    def at(self, x: Tensor, places: Places, cond: Condition = None) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        times = on_device(network_times(places.levels.table, "scaled-lambda"), x.device, wide)
        linear = self._spectrum.ask(x, times, places.rows).expected().to(x.dtype)
        return linear.lerp_(self.inner.at(x, places, cond), self._share)


def spectrum_of(network: nn.Module) -> Spectrum | None:
    spectrum = getattr(network, "spectrum", None)
    return spectrum if isinstance(spectrum, Spectrum) else None


def _required(denoiser: Denoiser) -> Spectrum:
    if (spectrum := spectrum_of(denoiser.network)) is None:
        raise SettingsInvalid(
            "the model has no mean and spectrum of its pictures", hint="grid=default, share=1"
        )
    return spectrum


class Whitened(Wrapped):
    """Answers the slope by lambda of whitened states, in which the linear part of the ODE stands still.

    state = (U^T x - alpha m) / sqrt(S)
    """

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser)
        spectrum = _required(denoiser)
        self._axes = spectrum.mean.ndim - 1
        self._mean = cosines(spectrum.mean.float(), self._axes)
        self._variance = spectrum.log_variance.float().exp()

    def enter(self, x: Tensor, level: Level) -> Tensor:
        spread = self._spread(level.alpha, level.sigma, x.dtype)
        return (cosines(x, self._axes) - level.alpha * self._mean.to(x.dtype)) * spread.rsqrt()

    def leave(self, state: Tensor, level: Level) -> Tensor:
        return self._left(state, level.alpha, level.sigma)

    def at(self, x: Tensor, places: Places, cond: Condition = None) -> Tensor:
        alpha, sigma = places.alpha, places.sigma
        v = self.inner.at(self._left(x, alpha, sigma), places, cond)
        spread = self._spread(alpha, sigma, x.dtype)
        linear = alpha * sigma * (1.0 - self._variance.to(x.dtype)) / spread
        scaled = (cosines(v, self._axes) + sigma * self._mean.to(x.dtype)) * spread.rsqrt()
        return (scaled - linear * x) * (-alpha * sigma)

    def _left(self, state: Tensor, alpha: Scale, sigma: Scale) -> Tensor:
        spread = self._spread(alpha, sigma, state.dtype)
        return pictures(state * spread.sqrt() + alpha * self._mean.to(state.dtype), self._axes)

    def _spread(self, alpha: Scale, sigma: Scale, dtype: torch.dtype) -> Tensor:
        return alpha**2 * self._variance.to(dtype) + sigma**2
