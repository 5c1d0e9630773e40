"""Spectral preconditioning: the network corrects the best linear estimate from the pictures' mean and spectrum.

If pictures were Gaussian, x_0 ~ N(m, U D U^T) with U the orthonormal cosine transform (DCT-II) and D diagonal, then of
x = alpha x_0 + sigma eps, r = U^T (x - alpha m) and S = alpha^2 D + sigma^2 the best answer would be (Wiener, 1949)

    E[v | x] = U [alpha sigma (1 - D) / S r] - sigma m,    Var[v | x] = U [D / S] U^T.

The network's inputs are U [r / sqrt(S)], which is white at every noise level, so that fine structure is not lost
beside coarse, and E[x_0 | x] - m, in which coarse structure is not lost in noise. Its output F is in units of
the remaining deviation, capped at 1: v = E[v | x] + U min(1, sqrt(D / S)) U^T F. So it starts from the optimal linear
model, and its latents are nearly white from the first step: what Karras et al. (arXiv 2206.00364, section 5) do for
one variance of all data, done for each frequency.

Without the 1, high noise and large D make sqrt(D / S) some 20, and the errors there, which no training
can remove, come back as gradients 400 times those of anything that can be learned.

Of a flow map the answer is the mean of v from the angle phi_t to phi_s. If pictures were Gaussian, the ODE would take
r to sqrt(S_s / S_t) r, so with delta = phi_s - phi_t

    E[u | x] = U [(S_s - S_t) / (delta sqrt(S_t) (sqrt(S_t) + sqrt(S_s))) r] + (alpha_s - alpha_t) / delta m,

and the network's output is in units of min(1, sqrt(S_s) (psi_s - psi_t) / delta), psi = atan2(sigma, sqrt(D) alpha):
what the deviation of v comes to where the linear ODE carries it on to s. At s = t these are the terms above.

The spectrum is measured once, before the first step, and rounded as a bundle will store it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from ddib_fed.diffusion.denoiser import LAMBDA_SCALE
from ddib_fed.networks.layers import Kept, remembered, spread

LEAST_VARIANCE = 1e-8


class Spectrum(nn.Module):
    """Mean and spectrum of pictures in the network's units; before `measure`, those of white noise.

    Args:
        channels: Of a picture.
        size: Height and width.

    Attributes:
        mean: m, (C, H, W).
        log_variance: log D, (C, H, W), by frequency down and across.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.log_variance: Tensor
        self.register_buffer("mean", torch.zeros(channels, size, size))
        self.register_buffer("log_variance", torch.zeros(channels, size, size))

    def measure(self, moments: Moments) -> None:
        """Set the measured values, rounded to float16."""
        mean, variance = moments.result()
        self.mean.copy_(mean.half())
        self.log_variance.copy_(variance.clamp_min(LEAST_VARIANCE).log().half())

    def ask(
        self,
        x: Tensor,
        times: Tensor,
        rows: Tensor | None = None,
        to: Tensor | None = None,
        kept: Kept | None = None,
    ) -> Asked:
        """The network's inputs for x at its levels.

        Args:
            x: (N, C, H, W).
            times: (K,) of scaled lambda.
            rows: (N,) pointing into `times`, as in `layers.spread`.
            to: (K,), the scaled lambdas of the levels that a flow map is asked to: the estimate is that of the mean.
            kept: As in `UNet.forward`.

        Raises:
            ValueError: x has another size than the spectrum.
        """
        if x.shape[1:] != self.mean.shape:
            raise ValueError(f"pictures {tuple(x.shape[1:])} for a spectrum of {tuple(self.mean.shape)}")
        wide = torch.promote_types(x.dtype, torch.float32)
        terms = remembered(kept, self, lambda: self._terms(times, to, wide)).of(rows)
        residual = cosines(x.to(wide) - terms.at)
        inputs = pictures(residual[:, None] * terms.inputs).flatten(1, 2)
        return Asked(inputs.to(x.dtype), residual, terms)

    def _terms(self, times: Tensor, to: Tensor | None, wide: torch.dtype) -> Terms:
        """What holds for every picture at times (K,), asked to levels `to` (K,), of dtype `wide`."""
        alpha, sigma = _scales(times, wide)
        mean, variance = self.mean.to(wide), self.log_variance.to(wide).exp()
        power = alpha.square() * variance + sigma.square()
        if to is None:
            gain, drift = alpha * sigma * (1.0 - variance) / power, -sigma
            left = (variance / power).sqrt()
        else:
            gain, drift, left = _mean_terms(_angles(times), _angles(to), variance)
        return Terms(
            at=alpha * mean,
            inputs=torch.stack([power.rsqrt(), alpha * variance / power], dim=1),
            gain=gain,
            drift=drift * mean,
            left=left.clamp_max(1.0),
        )


@dataclass(frozen=True, slots=True)
class Terms:
    """What multiplies and shifts pictures at each of K levels; float32 at least.

    Attributes:
        at: alpha m, (K, C, H, W).
        inputs: From r to the network's two inputs by frequency, (K, 2, C, H, W).
        gain: From r to E[v | x] by frequency, (K, C, H, W).
        drift: What is added to that, by pixel, (K, C, H, W).
        left: Deviation of v from it by frequency, at most 1, (K, C, H, W).
    """

    at: Tensor
    inputs: Tensor
    gain: Tensor
    drift: Tensor
    left: Tensor

    def of(self, rows: Tensor | None) -> Terms:
        """Of each of `rows` (N,), as in `layers.spread`."""
        if rows is None:
            return self
        return Terms(
            *(spread(term, rows) for term in (self.at, self.inputs, self.gain, self.drift, self.left))
        )


@dataclass(frozen=True, slots=True)
class Asked:
    """The network's inputs, and the linear estimate that its output corrects.

    Attributes:
        inputs: x in units of its spectrum, and E[x_0 | x] - m if pictures were Gaussian: (N, 2 C, H, W).
        residual: r by frequency (N, C, H, W), float32 at least.
        terms: Of the pictures' levels.
    """

    inputs: Tensor
    residual: Tensor
    terms: Terms

    def expected(self) -> Tensor:
        """E[v | x] if pictures were Gaussian, (N, C, H, W), float32 at least."""
        return pictures(self.terms.gain * self.residual) + self.terms.drift

    def answer(self, found: Tensor) -> Tensor:
        """The prediction of v from the network's output (N, C, H, W)."""
        correction = self.terms.left * cosines(found.to(self.residual.dtype))
        return (pictures(torch.addcmul(correction, self.terms.gain, self.residual)) + self.terms.drift).to(
            found.dtype
        )


def _scales(times: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Alpha and sigma at times (K,) of scaled lambda, as factors of pictures."""
    lam = times.double() / LAMBDA_SCALE
    alpha, sigma = (torch.sigmoid(sign * 2 * lam).sqrt().to(dtype)[:, None, None, None] for sign in (1, -1))
    return alpha, sigma


def _angles(times: Tensor) -> Tensor:
    """Phi at times (K,) of scaled lambda, float64, as a factor of pictures."""
    return torch.atan(torch.exp(-times.double() / LAMBDA_SCALE))[:, None, None, None]


def _mean_terms(start: Tensor, end: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What multiplies r, m and the network's output between two angles, without cancellation at equal ones."""
    dtype, delta, middle = variance.dtype, end - start, start + end
    spreads = [
        (phi.cos().square().to(dtype) * variance + phi.sin().square().to(dtype)) for phi in (start, end)
    ]
    here, there = (spread.sqrt() for spread in spreads)
    change = (middle.sin() * torch.sinc(delta / math.pi)).to(dtype) * (1.0 - variance)
    drift = (-(middle / 2).sin() * torch.sinc(delta / (2 * math.pi))).to(dtype)
    root = variance.sqrt()
    across = (start.cos() * end.cos()).to(dtype) * variance + (start.sin() * end.sin()).to(dtype)
    turned = torch.atan2(root * delta.sin().to(dtype), across)
    still = (delta == 0.0).to(variance.device)
    turn = torch.where(still, root / spreads[0], turned / torch.where(still, 1.0, delta).to(dtype))
    return change / (here * (here + there)), drift, there * turn


class Moments:
    """Sums over pictures, from which mean and spectrum follow; float64.

    Args:
        channels: Of a picture.
        size: Height and width.
    """

    def __init__(self, channels: int, size: int) -> None:
        self._count = 0
        self._sum = torch.zeros(channels, size, size, dtype=torch.float64)
        self._squares = torch.zeros_like(self._sum)

    def add(self, x0: Tensor) -> None:
        """Add clean pictures (N, C, H, W), in the network's units."""
        found = cosines(x0.double())
        self._count += len(found)
        self._sum += found.sum(0)
        self._squares += found.square().sum(0)

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean, and variance by frequency, each (C, H, W) float64."""
        mean = self._sum / self._count
        return pictures(mean), self._squares / self._count - mean.square()


def cosines(x: Tensor) -> Tensor:
    """U^T x: the orthonormal DCT-II over the last two dimensions (..., H, W)."""
    rows, columns = (_basis(side, x.dtype, x.device) for side in x.shape[-2:])
    return rows.T @ x @ columns


def pictures(found: Tensor) -> Tensor:
    """U found, the inverse of `cosines`."""
    rows, columns = (_basis(side, found.dtype, found.device) for side in found.shape[-2:])
    return rows @ found @ columns.T


@lru_cache(maxsize=16)
def _basis(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Columns are the orthonormal cosines of a side."""
    with torch.inference_mode(mode=False):
        places = torch.arange(side, dtype=torch.float64)
        basis = torch.cos(math.pi / side * (places[:, None] + 0.5) * places) * math.sqrt(2.0 / side)
        basis[:, 0] /= math.sqrt(2.0)
        return basis.to(device, dtype)
