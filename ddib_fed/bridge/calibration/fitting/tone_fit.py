"""The curve of grey from pictures of the same things: least squares over the curves that can be undone.

A curve has one branch, or two with a jump between them whose values are kept `GAP` apart; each rises or falls with a
slope of at least `LEAST_SLOPE`. All places of the jump and of the gap on a grid are tried. The best curve of one branch
is taken unless two branches are better by more than `WORTH`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ddib_fed.models.units.channel_map import ChannelMap

Floats = npt.NDArray[np.float64]
BINS = 128
PLACES = 24
"""Places of a jump, and of the gap between the branches' values."""
PIECES = 4
"""Linear pieces of a branch."""
GAP = 0.2
"""Between the values of two branches, in deviations of the target."""
LEAST_SLOPE = 0.5
"""In deviations of the target for one of the source: the inverse amplifies errors by no more than one over it."""
WORTH = 0.9
"""Largest share of the squared error of one branch at which two are taken."""
MARGIN = 0.05
"""Of the range of u that the outermost knots lie beyond it."""
SWEEPS = 120


@dataclass(frozen=True, slots=True)
class _Binned:
    """Pixels by their u, for P places of a jump: mean u and mean v of each bin (bins,), and pixels in it (P, bins)."""

    u: Floats
    v: Floats
    weight: Floats


@dataclass(frozen=True, slots=True)
class _Branches:
    """The best branch for each place of the jump and each bound on its values."""

    error: Floats
    knots: Floats


def fit_tone(u: npt.NDArray[np.floating], v: npt.NDArray[np.floating]) -> ChannelMap:
    """The curve that leads from grey values u to v of the same pixels, both any shape, in model units."""
    data = _binned(u.ravel().astype(np.float64), v.ravel().astype(np.float64))
    room = MARGIN * (data.u[-1] - data.u[0]) + 1e-3
    low, high = np.array([data.u[0] - room]), np.array([data.u[-1] + room])
    whole = _better(data, low, high, np.array([np.inf]), under=False)
    error, knots = _two(data, float(low[0]), float(high[0]))
    if not error < WORTH * whole.error[0, 0]:
        knots = whole.knots[0, 0]
    return ChannelMap(curve=tuple((float(f"{a:.6g}"), float(f"{b:.6g}")) for a, b in knots))


def _two(data: _Binned, low: float, high: float) -> tuple[float, Floats]:
    """Error and knots of the best two branches."""
    places = np.linspace(data.u[0], data.u[-1], PLACES + 2)[1:-1]
    before = data.u < places[:, None]
    halves = [_Binned(data.u, data.v, data.weight * part) for part in (before, ~before)]
    levels = np.quantile(data.v, np.linspace(0.02, 0.98, PLACES))
    lows, highs = np.full(PLACES, low), np.full(PLACES, high)
    best, knots = np.inf, np.empty((0, 2))
    for under in (True, False):
        # The first branch lies beneath the gap and the second above it, or the other way round.
        sign = -1 if under else 1
        first = _better(halves[0], lows, places, levels + sign * GAP / 2, under=under)
        second = _better(halves[1], places, highs, levels - sign * GAP / 2, under=not under)
        total = first.error + second.error
        at = np.unravel_index(total.argmin(), total.shape)
        if total[at] < best:
            best, knots = float(total[at]), np.concatenate([first.knots[at], second.knots[at]])
    return best, knots


def _better(data: _Binned, low: Floats, high: Floats, bounds: Floats, *, under: bool) -> _Branches:
    """The better one of rising and falling, beneath or above each bound."""
    sign = -1.0 if under else 1.0
    mirrored = _Binned(data.u, sign * data.v, data.weight)
    least = np.where(np.isinf(bounds), -np.inf, sign * bounds)
    rising, falling = (_branch(mirrored, low, high, least, rises=rises) for rises in (True, False))
    better = rising.error <= falling.error
    knots = np.where(better[..., None, None], rising.knots, falling.knots)
    return _Branches(np.minimum(rising.error, falling.error), knots * [1.0, sign])


def _branch(data: _Binned, low: Floats, high: Floats, least_v: Floats, *, rises: bool) -> _Branches:
    """Branches from `low` to `high` (P,) whose values are at least `least_v` (bounds,)."""
    width = (high - low) / PIECES
    at = low[:, None] + width[:, None] * np.arange(PIECES + 1)
    passed = np.clip((data.u[:, None] - at[:, None, :-1]) / width[:, None, None], 0, 1)
    basis = np.insert(passed if rises else 1 - passed, 0, 1.0, axis=2)
    weight = np.broadcast_to(data.weight, (len(low), len(data.u)))
    weighted = weight[..., None] * basis
    gram = weighted.swapaxes(1, 2) @ basis + 1e-9 * (data.weight.sum() + 1) * np.eye(PIECES + 1)
    right = (weighted * data.v[:, None]).sum(1)
    least = np.empty((len(low), len(least_v), PIECES + 1))
    least[..., 0], least[..., 1:] = least_v, (LEAST_SLOPE * width)[:, None, None]
    x = np.maximum(least, np.linalg.solve(gram, right[..., None])[:, None, :, 0])
    for _ in range(SWEEPS):
        for i in range(PIECES + 1):
            step = (right[:, None, i] - (x * gram[:, None, i]).sum(2)) / gram[:, None, i, i]
            x[..., i] = np.maximum(least[..., i], x[..., i] + step)
    error = (weight[:, None] * (x @ basis.swapaxes(1, 2) - data.v) ** 2).sum(2)
    steps = np.insert(x[..., 1:], 0, 0.0, axis=2).cumsum(2)
    rise = steps if rises else steps[..., -1:] - steps
    return _Branches(error, np.stack([np.broadcast_to(at[:, None], rise.shape), x[..., :1] + rise], axis=3))


def _binned(u: Floats, v: Floats) -> _Binned:
    low, high = float(u.min()), float(u.max())
    place = np.minimum((u - low) / max(high - low, 1e-9) * BINS, BINS - 1).astype(np.int64)
    weight = np.bincount(place, minlength=BINS).astype(np.float64)
    there = weight > 0
    mean_u, mean_v = (np.bincount(place, part, BINS)[there] / weight[there] for part in (u, v))
    return _Binned(mean_u, mean_v, weight[None, there])
