"""MSE, PSNR and SSIM of two stacks of pictures, row by row.

MSE   mean((a - b)^2), pictures in [-1, 1]
PSNR  10 log10(2^2 / MSE) dB
SSIM  Wang et al. (2004) as scikit-image has it, on intensities (x + 1) / 2: 7 x 7 windows, mean over channels
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from ddib_fed.bridge.records.translation_record import PictureFigures
from ddib_fed.errors import ShapeMismatch, UsageError

if TYPE_CHECKING:
    from ddib_fed.models.manifest import Manifest
    from ddib_fed.samples.images import Fitted, Picture, PictureRule

Pictures = NDArray[np.float32]
"""(N, C, H, W) in [-1, 1], C being 1 or 3."""
Figures = NDArray[np.float64]
"""(N,), one for each picture."""

RANGE = 2.0
MOST_PSNR = 120.0
"""The PSNR of equal pictures, instead of infinity: JSON has none, and float32 does not resolve more."""
WINDOW = 7
"""Side of SSIM's windows: pictures must be at least as large."""
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey value (ITU-R BT.601), as Pillow has them."""


@dataclass(frozen=True, slots=True)
class Paired:
    """Similarity of corresponding pictures; each (N,) float64."""

    mse: Figures
    psnr: Figures
    ssim: Figures

    def means(self) -> PairedMeans:
        """The mean of each figure over the pictures."""
        return PairedMeans(
            mse=float(self.mse.mean()), psnr=float(self.psnr.mean()), ssim=float(self.ssim.mean())
        )


class PairedMeans(TypedDict):
    """Mean over the pictures of each figure of `Paired`."""

    mse: float
    psnr: float
    ssim: float


class Spread(TypedDict):
    """One figure over many pictures."""

    median: float
    mean: float
    min: float
    max: float


def compare(pictures: Pictures, truth: Pictures) -> Paired:
    return Paired(mse(pictures, truth), psnr(pictures, truth), ssim(pictures, truth))


def mse(pictures: Pictures, truth: Pictures) -> Figures:
    check_pair(pictures, truth)
    return np.array([_mse(a, b) for a, b in zip(pictures, truth, strict=True)])


def psnr(pictures: Pictures, truth: Pictures) -> Figures:
    return to_psnr(mse(pictures, truth))


def to_psnr(errors: Figures) -> Figures:
    """The PSNR in dB of each MSE in [-1, 1]."""
    least = RANGE**2 / 10 ** (MOST_PSNR / 10)
    figures: Figures = 10.0 * np.log10(RANGE**2 / np.maximum(errors, least))
    return figures


def ssim(pictures: Pictures, truth: Pictures) -> Figures:
    """Structural similarity of each pair, (N,)."""
    check_pair(pictures, truth)
    if min(pictures.shape[2:]) < WINDOW:
        raise ShapeMismatch(
            f"SSIM needs pictures of at least {WINDOW} x {WINDOW} pixels, not {pictures.shape[2:]}"
        )
    from skimage import metrics

    return np.array(
        [
            metrics.structural_similarity(  # type: ignore[no-untyped-call]
                (np.asarray(a, np.float64) + 1.0) / 2.0,
                (np.asarray(b, np.float64) + 1.0) / 2.0,
                win_size=WINDOW,
                data_range=1.0,
                channel_axis=0,
            )
            for a, b in zip(pictures, truth, strict=True)
        ]
    )


def spread(figures: Figures) -> Spread:
    """Median, mean, minimum and maximum of (N,) figures, N at least 1."""
    return Spread(
        median=float(np.median(figures)),
        mean=float(figures.mean()),
        min=float(figures.min()),
        max=float(figures.max()),
    )


def to_channels(pictures: Pictures, channels: int) -> Pictures:
    """Pictures (N, C, H, W) with the given number of channels: colour becomes grey by luma, grey is repeated."""
    have = pictures.shape[1] if pictures.ndim == 4 else 0
    if have not in {1, 3} or channels not in {1, 3}:
        raise ShapeMismatch(f"pictures of shape {pictures.shape} cannot be brought to {channels} channels")
    if have == channels:
        return pictures
    if channels == 3:
        return np.repeat(pictures, 3, axis=1)
    grey = np.einsum("nchw,c->nhw", pictures, np.asarray(LUMA, pictures.dtype))
    return np.ascontiguousarray(grey[:, None])


def given_figures(given: Fitted, rule: PictureRule, size_rule: str) -> PictureFigures:
    """The part of a record about a picture before it is translated."""
    from ddib_fed.samples.fitting import fitted_size

    slope, intercept = rule.output_scale
    fitted = fitted_size(rule, given.geometry)
    return PictureFigures(
        height=given.geometry.height,
        width=given.geometry.width,
        size_rule=size_rule,
        fitted_height=fitted[0] if fitted else None,
        fitted_width=fitted[1] if fitted else None,
        fit_psnr=own_size_error(given.samples, rule, given.read())["cycle_psnr"] if fitted else None,
        source_low=rule.low,
        source_high=rule.high,
        back_slope=slope,
        back_intercept=intercept,
        clipped=given.use.clipped,
        outside=round(given.use.outside, 4),
        used=round(given.use.used, 4),
    )


def own_size_error(x: NDArray[np.float32], rule: PictureRule, picture: Picture) -> dict[str, float]:
    """MSE and PSNR at its own size of a picture to one of the model's size (C, H, W), as in a record."""
    from ddib_fed.samples.fitting import own_size_mse

    mse = own_size_mse(x, rule, picture)
    return {"cycle_mse": mse, "cycle_psnr": float(to_psnr(np.array([mse]))[0])}


def output_terms(rule: PictureRule) -> dict[str, float | int]:
    slope, intercept = rule.output_scale
    return {"low": rule.low, "high": rule.high, "bits": rule.bits, "slope": slope, "intercept": intercept}


def picture_rule(manifest: Manifest) -> PictureRule:
    """The rule in a picture model's manifest for converting files to its input and back."""
    from ddib_fed.models.manifest import PictureFormat
    from ddib_fed.samples.images import PictureRule

    if manifest.sample_kind != "picture":
        raise UsageError(
            f"{manifest.name} is a model of {manifest.sample_kind}s, not of pictures",
            hint="ddib model show MODEL says what a model is of",
        )
    channels, height, width = manifest.sample_shape
    form = manifest.picture or PictureFormat()  # without it in the manifest, 8-bit files are resized
    return PictureRule(
        channels=channels,
        height=height,
        width=width,
        fit=form.fit,
        low=form.low,
        high=form.high,
        bits=form.bits,
    )


def check_pair(pictures: Pictures, truth: Pictures) -> None:
    """Return if two stacks have one shape (N, C, H, W)."""
    if pictures.shape != truth.shape or pictures.ndim != 4 or 0 in pictures.shape:
        raise ShapeMismatch(
            f"two stacks of pictures of one shape (N, C, H, W) are expected, not {pictures.shape} and {truth.shape}"
        )


def _mse(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    gap = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(np.square(gap).mean())
