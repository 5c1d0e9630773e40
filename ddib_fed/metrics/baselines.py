"""Baselines: translations that need no network.

unchanged         the source itself
histogram         each channel's values through the monotone map from the source domain's distribution of values
                  to the target domain's; both domains' training parts, unpaired
mean              the mean picture of the target's training part, whatever was asked
random            a picture of the target's training part, whatever was asked
colour map        a polynomial of degree 2 in the channels of a pixel, least squares on pairs
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import ShapeMismatch
from ddib_fed.metrics.pictures import Pictures, to_channels
from ddib_fed.models.units.channel_map import monomials

QUANTILES = 1025
MOST_PIXELS = 2_000_000
"""Of a domain, evenly thinned, that distributions and fits are taken over."""


def unpaired(
    source: Pictures | None, domain: tuple[Pictures | None, Pictures] | None, *, count: int, channels: int
) -> dict[str, Pictures]:
    """The baselines without pairs that can be computed, by name."""
    found: dict[str, Pictures] = {}
    if source is not None:
        found["source"] = unchanged(source, channels)
    if domain is None:
        return found
    own, target = domain
    if source is not None:
        own = source if own is None else own
        found["histogram"] = HistogramMatch.fit(own, target)(source)
    return found | {"mean": mean_picture(target, count), "random": random_pictures(target, count)}


def unchanged(source: Pictures, channels: int) -> Pictures:
    return to_channels(source, channels)


def mean_picture(target: Pictures, count: int) -> Pictures:
    return np.repeat(target.mean(axis=0, keepdims=True, dtype=np.float64), count, axis=0).astype(np.float32)


def random_pictures(target: Pictures, count: int, *, seed: int = 0) -> Pictures:
    rng = np.random.default_rng(seed)
    return target[rng.choice(len(target), count, replace=count > len(target))]


@dataclass(frozen=True, slots=True)
class HistogramMatch:
    """A monotone map of each channel's values, made by `fit`."""

    source: NDArray[np.float64] = field(repr=False)
    target: NDArray[np.float64] = field(repr=False)

    @staticmethod
    def fit(source: Pictures, target: Pictures) -> HistogramMatch:
        """Fit to two unpaired sets of pictures (N, C, H, W) and (M, C', H', W')."""
        channels = target.shape[1]
        shares = np.linspace(0.0, 1.0, QUANTILES)
        return HistogramMatch(
            np.quantile(_pixels(to_channels(source, channels)), shares, axis=0).T,
            np.quantile(_pixels(to_channels(target, channels)), shares, axis=0).T,
        )

    def __call__(self, pictures: Pictures) -> Pictures:
        given = to_channels(pictures, len(self.source))
        out = np.empty_like(given)
        shares = np.linspace(0.0, 1.0, QUANTILES)
        for channel, (before, after) in enumerate(zip(self.source, self.target, strict=True)):
            # A value of many pixels gets the middle of its ranks.
            steps = np.unique(before)
            low = shares[np.searchsorted(before, steps, side="left")]
            high = shares[np.searchsorted(before, steps, side="right") - 1]
            rank = np.interp(given[:, channel], steps, (low + high) / 2)
            out[:, channel] = np.interp(rank, shares, after)
        return out


@dataclass(frozen=True, slots=True)
class ColourMap:
    """A quadratic map from a pixel's channels to the other domain's, made by `fit` from true pairs."""

    weights: NDArray[np.float64] = field(repr=False)
    channels: int

    @staticmethod
    def fit(source: Pictures, target: Pictures) -> ColourMap:
        """Least squares over the pixels of pairs (N, C, H, W) and (N, C', H, W)."""
        if len(source) != len(target) or source.shape[2:] != target.shape[2:] or 0 in source.shape:
            raise ShapeMismatch(f"pictures {source.shape} and {target.shape} are no pairs")
        weights, *_ = np.linalg.lstsq(monomials(_pixels(source)), _pixels(target), rcond=None)
        return ColourMap(np.asarray(weights, np.float64), source.shape[1])

    def __call__(self, pictures: Pictures) -> Pictures:
        given = to_channels(pictures, self.channels)
        pixels = given.transpose(0, 2, 3, 1).reshape(-1, self.channels)
        mapped = np.clip(monomials(pixels.astype(np.float64)) @ self.weights, -1.0, 1.0)
        shape = (len(given), *given.shape[2:], self.weights.shape[1])
        return np.ascontiguousarray(mapped.reshape(shape).transpose(0, 3, 1, 2), dtype=np.float32)


def cross_fitted_colour_map(source: Pictures, target: Pictures) -> Pictures:
    """The quadratic colour map if only the test part is paired: each half is mapped by a fit to the other."""
    if len(source) < 2:
        raise ShapeMismatch(f"two halves need at least two pairs, not {len(source)}")
    half = len(source) // 2
    first = ColourMap.fit(source[half:], target[half:])(source[:half])
    second = ColourMap.fit(source[:half], target[:half])(source[half:])
    return np.concatenate([first, second])


def _pixels(pictures: Pictures) -> NDArray[np.float64]:
    pixels = pictures.transpose(0, 2, 3, 1).reshape(-1, pictures.shape[1])
    return pixels[:: -(-len(pixels) // MOST_PIXELS)].astype(np.float64)
