"""A calibration from anchors: pictures of the same things, e.g. of a phantom, that the source holds in both modalities.

    rotation     orthogonal Procrustes: R = U V^T of the singular vectors of sum v u^T over all pixels
    tone         the curve of `tone_fit`
    colour-map   least squares of v - W phi(u), drawn a little towards the rotation; it may fold (`undone_psnr`)

Every figure is of anchors that their map was not fitted on (each is left out in turn). Intervals are bootstrapped over
anchors, and with few anchors they are wide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from ddib_fed.calibration.aggregate import Aggregate, Cells, Floats, Numbers, thinned
from ddib_fed.calibration.record import Effect, Kind
from ddib_fed.errors import CalibrationIneffective, InputError, ShapeMismatch, extra
from ddib_fed.models.sidecars import Figure
from ddib_fed.models.units import ChannelMap, Normalisation, monomials

KERNEL = (0.25, 0.5, 0.25)
"""Neighbours along each channel whose mean decides whether a cell holds anything."""
SMOOTHED_SIGMAS, SINGLE_SIGMAS = 2.0, 3.5
"""A cell is kept whose smoothed share, or whose own, is so many deviations of the noise above 0."""


def cleaned(aggregate: Aggregate) -> Numbers:
    return without_noise(aggregate.shares, aggregate.sigma)


def without_noise(shares: Numbers, sigma: float) -> Numbers:
    """Shares, one axis a channel, each with noise of deviation sigma, projected onto those that can be."""
    smooth, deviation = shares, sigma
    for axis in range(shares.ndim):
        smooth = _smoothed(smooth, axis)
        deviation *= float(np.linalg.norm(KERNEL))
    held = (smooth > SMOOTHED_SIGMAS * deviation) | (shares > SINGLE_SIGMAS * sigma)
    if not held.any():
        held = shares == shares.max()
    found = np.zeros_like(shares)
    found[held] = on_simplex(shares[held])
    return found


def on_simplex(values: Numbers) -> Numbers:
    """The nearest point to values (N,) with no negative entry and sum 1."""
    falling = np.sort(values)[::-1]
    excess = np.cumsum(falling) - 1.0
    counts = np.arange(1, len(values) + 1)
    last = np.nonzero(falling - excess / counts > 0)[0][-1]
    nearest: Numbers = np.maximum(values - excess[last] / counts[last], 0.0)
    return nearest


def drawn(shares: Numbers, cells: Cells, count: int, generator: np.random.Generator) -> Numbers:
    """Pseudo-colours (count, C) of cleaned shares, in the target's units, in random order."""
    ends = np.cumsum(shares.ravel() / shares.sum())
    # The last end is 1 up to rounding.
    flat = np.searchsorted(ends[:-1], (np.arange(count) + generator.uniform()) / count, side="right")
    places = np.stack(np.unravel_index(flat, cells.shape), axis=1)
    within = generator.uniform(-0.5, 0.5, places.shape) * (2 * cells.reach / cells.bins)
    found: Numbers = generator.permutation(cells.centres()[places] + within)
    return found


def own(units: Floats, each: int, generator: np.random.Generator) -> Numbers:
    """Colours (N, each, C) of random pixels of each of the pictures (N, C, H, W), drawn with replacement."""
    flat = units.reshape(*units.shape[:2], -1)
    taken = generator.integers(0, flat.shape[2], (len(units), 1, each))
    found: Numbers = np.moveaxis(np.take_along_axis(flat, taken, axis=2), 1, 2).astype(np.float64)
    return found


def _smoothed(shares: Numbers, axis: int) -> Numbers:
    padded = np.pad(shares, [(1, 1) if i == axis else (0, 0) for i in range(shares.ndim)])
    length = shares.shape[axis]
    parts = [weight * np.take(padded, range(i, i + length), axis) for i, weight in enumerate(KERNEL)]
    found: Numbers = np.sum(parts, axis=0)
    return found


COUPLED = 1500
"""Colours of each side that are coupled."""
ENTROPY = 0.3
"""e: in squared units of the target's model."""
RIDGES = 10.0 ** np.arange(-3, 3.01, 0.5)
LEAST_SLOPE, FOLDED = 0.2, 0.02
"""A map is taken where no larger share of colours has a direction with a smaller slope, or is folded."""


def transported(source: Numbers, target: Numbers, rotation: Numbers) -> Numbers:
    """What each of the source's colours (N, C) is drawn to among the target's (M, C): (N, C), in the target's units."""
    with extra("colours", "POT", "optimal transport of colours needs POT, which is not installed"):
        import ot
    shares = [np.full(len(side), 1 / len(side)) for side in (source, target)]
    cost = ot.dist(source @ rotation.T, target)
    # A row's scale is free, so that its nearest colour may cost nothing: no row underflows to 0.
    cost -= cost.min(axis=1, keepdims=True)
    plan = ot.sinkhorn(*shares, cost, ENTROPY, numItermax=200, stopThr=1e-5, warn=False)
    found: Numbers = plan @ target / plan.sum(axis=1, keepdims=True)
    return found


def fit_colour_map(source: Numbers, target: Numbers, rotation: Numbers) -> ChannelMap:
    coupled = source[:COUPLED]
    return unfolded_fit(coupled, transported(coupled, target[:COUPLED], rotation), rotation)


def unfolded_fit(u: Numbers, v: Numbers, rotation: Numbers) -> ChannelMap:
    """The quadratic map of u (N, 3) to v (N, 3), row by row, drawn to a rotation until it does not fold at the u."""
    rows = monomials(u)
    prior = np.concatenate([np.zeros((3, 1)), rotation, np.zeros((3, 6))], axis=1)
    gram, right = rows.T @ rows / len(rows), rows.T @ v / len(rows)
    way = np.sign(np.linalg.det(rotation))
    for ridge in RIDGES:
        weights = np.linalg.solve(gram + ridge * np.eye(10), right + ridge * prior.T).T
        if (way * least_slopes(weights, u) < LEAST_SLOPE).mean() <= FOLDED:
            break
    return ChannelMap(quadratic=tuple(tuple(float(f"{number:.6g}") for number in row) for row in weights))


def least_slopes(weights: Numbers, u: Numbers) -> Numbers:
    """The map's least singular value at each u (N, 3), with the sign of its determinant there: (N,)."""
    square = np.zeros((3, 3, 3))
    rows, columns = np.triu_indices(3)
    square[:, rows, columns] = weights[:, 4:]
    slopes = weights[:, 1:4] + np.einsum("cij,nj->nci", square + square.swapaxes(1, 2), u)
    found: Numbers = np.sign(np.linalg.det(slopes)) * np.linalg.svd(slopes, compute_uv=False)[:, -1]
    return found


@dataclass(frozen=True, slots=True)
class Proposal:
    map: ChannelMap
    effect: Effect


DIRECTIONS = 24
QUANTILES = 96
STARTS, KEPT, STEPS = 400, 24, 30
COARSE, FINE = 600, 12_000
"""Colours that starts are compared with, and refined with."""
DISTINCT_DEGREES = 30.0
SETTLED = 1e-3
"""Change of an entry of R in a step that ends a refinement."""


@dataclass(frozen=True, slots=True)
class Optimum:
    matrix: Numbers
    cost: float


@dataclass(frozen=True, slots=True)
class Search:
    best: Optimum
    other: Optimum


class RotationCost:
    """Cost of rotations of one cloud of colours onto another."""

    def __init__(self, source: Numbers, target: Numbers) -> None:
        self._directions = directions(source.shape[1])
        self._source = source
        self._target = quantiles(target @ self._directions.T)

    def __call__(self, rotation: Numbers) -> float:
        along = self._source @ (rotation.T @ self._directions.T)
        return float(np.square(quantiles(along) - self._target).mean()) * len(rotation)

    def step(self, rotation: Numbers) -> Numbers:
        """One step down: colours are drawn to their match along each direction, then the nearest rotation is taken."""
        along = self._source @ (rotation.T @ self._directions.T)
        matched = np.empty_like(along)
        rows = np.arange(len(along)) * QUANTILES // len(along)
        np.put_along_axis(matched, np.argsort(along, axis=0), self._target[rows], axis=0)
        drawn_by = (matched - along) @ self._directions * (len(rotation) / len(self._directions))
        return nearest_orthogonal((self._source @ rotation.T + drawn_by).T @ self._source)

    def settled(self, rotation: Numbers) -> Numbers:
        for _ in range(STEPS):
            before, rotation = rotation, self.step(rotation)
            if np.abs(rotation - before).max() < SETTLED:
                break
        return rotation


def search(source: Numbers, target: Numbers, *, seed: int = 0, starts: int = STARTS) -> Search:
    """The best rotation and the next distinct one; of grey the two signs."""
    cost = RotationCost(source[:FINE], target)
    if source.shape[1] == 1:
        found = [np.eye(1), -np.eye(1)]
    else:
        found = [cost.settled(each) for each in _coarse(source[:COARSE], target, seed, starts)]
    optima = sorted((Optimum(each, cost(each)) for each in found), key=lambda one: one.cost)
    best = optima[0]
    others = [one for one in optima if degrees(one.matrix, best.matrix) > DISTINCT_DEGREES]
    return Search(best, others[0] if others else Optimum(-best.matrix, cost(-best.matrix)))


def _coarse(source: Numbers, target: Numbers, seed: int, starts: int) -> list[Numbers]:
    """Optima of few colours from the best of random starts, one for each that is distinct."""
    generator = np.random.default_rng(seed)
    cost = RotationCost(source, target)
    tried = sorted((random_orthogonal(source.shape[1], generator) for _ in range(starts)), key=cost)
    found: list[Numbers] = []
    for start in tried[:KEPT]:
        turned = cost.settled(start)
        if all(degrees(turned, other) > DISTINCT_DEGREES / 3 for other in found):
            found.append(turned)
    return found


@lru_cache(maxsize=4)
def directions(channels: int) -> Numbers:
    """Directions (K, C) spread evenly over the half sphere, by the golden angle; one for grey."""
    if channels == 1:
        return np.ones((1, 1))
    i = np.arange(DIRECTIONS) + 0.5
    height, turn = 1 - i / DIRECTIONS, np.pi * (1 + 5**0.5) * i
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), height], axis=1)


def quantiles(values: Numbers) -> Numbers:
    """QUANTILES quantiles of values (N, K) along N: (QUANTILES, K)."""
    rows = ((np.arange(QUANTILES) + 0.5) / QUANTILES * len(values)).astype(int)
    found: Numbers = np.sort(values, axis=0)[rows]
    return found


def as_map(matrix: Numbers) -> ChannelMap:
    return ChannelMap(rotation=tuple(tuple(float(number) for number in row) for row in matrix))


def nearest_orthogonal(matrix: Numbers, *, proper: bool = False) -> Numbers:
    """The orthogonal matrix nearest to a square one (Procrustes; Schoenemann, 1966)."""
    left, _, right = np.linalg.svd(matrix)
    if proper:
        left[:, -1] *= np.sign(np.linalg.det(left @ right))
    found: Numbers = left @ right
    return found


def random_orthogonal(channels: int, generator: np.random.Generator) -> Numbers:
    """A uniform draw of the orthogonal matrices, of both determinants."""
    q, r = np.linalg.qr(generator.standard_normal((channels, channels)))
    found: Numbers = q * np.sign(np.diag(r))
    return found


def degrees(first: Numbers, second: Numbers) -> float:
    """Angle between two orthogonal matrices; 180 where their determinants differ."""
    between = first @ second.T
    if np.linalg.det(between) < 0:
        return 180.0
    if len(between) == 1:
        return 0.0
    return float(np.degrees(np.arccos(np.clip((np.trace(between) - 1) / 2, -1.0, 1.0))))


Doubles = npt.NDArray[np.float64]
BINS = 128
PLACES = 24
"""Places of a jump, and of the gap between the branches' values."""
PIECES = 4
"""Linear pieces of a branch."""
GAP = 0.2
"""Between the values of two branches, in deviations of the target."""
LEAST_TONE_SLOPE = 0.5
"""In deviations of the target for one of the source: the inverse amplifies errors by no more than one over it."""
WORTH = 0.9
"""Largest share of the squared error of one branch at which two are taken."""
MARGIN = 0.05
"""Of the range of u that the outermost knots lie beyond it."""
SWEEPS = 120


@dataclass(frozen=True, slots=True)
class _Binned:
    """Pixels by their u, for P places of a jump: mean u and mean v of each bin (bins,), and pixels in it (P, bins)."""

    u: Doubles
    v: Doubles
    weight: Doubles


@dataclass(frozen=True, slots=True)
class _Branches:
    """The best branch for each place of the jump and each bound on its values."""

    error: Doubles
    knots: Doubles


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


def _two(data: _Binned, low: float, high: float) -> tuple[float, Doubles]:
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


def _better(data: _Binned, low: Doubles, high: Doubles, bounds: Doubles, *, under: bool) -> _Branches:
    """The better one of rising and falling, beneath or above each bound."""
    sign = -1.0 if under else 1.0
    mirrored = _Binned(data.u, sign * data.v, data.weight)
    least = np.where(np.isinf(bounds), -np.inf, sign * bounds)
    rising, falling = (_branch(mirrored, low, high, least, rises=rises) for rises in (True, False))
    better = rising.error <= falling.error
    knots = np.where(better[..., None, None], rising.knots, falling.knots)
    return _Branches(np.minimum(rising.error, falling.error), knots * [1.0, sign])


def _branch(data: _Binned, low: Doubles, high: Doubles, least_v: Doubles, *, rises: bool) -> _Branches:
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
    least[..., 0], least[..., 1:] = least_v, (LEAST_TONE_SLOPE * width)[:, None, None]
    x = np.maximum(least, np.linalg.solve(gram, right[..., None])[:, None, :, 0])
    for _ in range(SWEEPS):
        for i in range(PIECES + 1):
            step = (right[:, None, i] - (x * gram[:, None, i]).sum(2)) / gram[:, None, i, i]
            x[..., i] = np.maximum(least[..., i], x[..., i] + step)
    error = (weight[:, None] * (x @ basis.swapaxes(1, 2) - data.v) ** 2).sum(2)
    steps = np.insert(x[..., 1:], 0, 0.0, axis=2).cumsum(2)
    rise = steps if rises else steps[..., -1:] - steps
    return _Branches(error, np.stack([np.broadcast_to(at[:, None], rise.shape), x[..., :1] + rise], axis=3))


def _binned(u: Doubles, v: Doubles) -> _Binned:
    low, high = float(u.min()), float(u.max())
    place = np.minimum((u - low) / max(high - low, 1e-9) * BINS, BINS - 1).astype(np.int64)
    weight = np.bincount(place, minlength=BINS).astype(np.float64)
    there = weight > 0
    mean_u, mean_v = (np.bincount(place, part, BINS)[there] / weight[there] for part in (u, v))
    return _Binned(mean_u, mean_v, weight[None, there])


LEAST_MARGIN: Final = 0.045
"""Of the lower bound of the margin, a share of the distance without a calibration: it lies between the bounds of right
and of wrong rotations over draws of the noise."""


def judge(effect: Effect) -> None:
    """Return if a calibration is better than none, and clearly better than the next optimum."""
    distance, before, margin = effect.distance, effect.distance_before, effect.margin
    hint = "calibrate from anchors, or look at the figures and add --force"
    if distance.high >= before.low:
        raise CalibrationIneffective(
            f"it is not better than none: the distance of the colours is {distance.value:.3g} "
            f"({distance.low:.3g} to {distance.high:.3g}) with it and {before.value:.3g} ({before.low:.3g} to "
            f"{before.high:.3g}) without",
            hint=hint,
        )
    if margin.low < LEAST_MARGIN:
        raise CalibrationIneffective(
            f"another optimum, e.g. the mirrored one, is nearly as good: the margin is {margin.value:.3g} "
            f"({margin.low:.3g} to {margin.high:.3g}), at least {LEAST_MARGIN:g} is needed",
            hint=hint,
        )


def judged(effect: Effect, *, force: bool) -> Effect:
    """The effect of a calibration that is good enough, or that is forced, which the effect then says."""
    try:
        judge(effect)
    except CalibrationIneffective:
        if not force:
            raise
        return effect.model_copy(update={"forced": True})
    return effect


Rows = npt.NDArray[np.int64]
RESAMPLES = 100
COVERED = 0.95
COMPARED = 8000
"""Colours of each side in each resample."""


def colour_distance(source: Floats, target: Floats) -> float:
    """Sliced W2 of colours (N, C) and (M, C)."""
    return _apart(_along(source), _along(target))


def _along(colours: Floats) -> Numbers:
    found: Numbers = quantiles(colours @ directions(colours.shape[1]).T) * np.sqrt(colours.shape[1])
    return found


def _apart(source: Numbers, target: Numbers) -> float:
    return float(np.sqrt(np.square(source - target).mean()))


def effect_of(found: Search, mapped: ChannelMap, own: Numbers, target: Numbers, *, seed: int = 0) -> Effect:
    maps: tuple[Callable[[Numbers], Floats], ...] = (
        lambda u: u,
        mapped.apply,
        lambda u: u @ found.best.matrix.T,
        lambda u: u @ found.other.matrix.T,
    )
    clouds = [each(own.reshape(-1, own.shape[2])).reshape(own.shape) for each in maps]
    generator = np.random.default_rng(seed)
    drawn = np.array([_distances(clouds, target, *_rows(own, target, generator)) for _ in range(RESAMPLES)])
    value = _distances(clouds, target, _all(own), _all(target))
    return Effect(
        distance_before=_figure(value[0], drawn[:, 0]),
        distance=_figure(value[1], drawn[:, 1]),
        margin=_figure(_margin(value), _margin(drawn.T)),
    )


def _all(values: Numbers) -> Rows:
    return np.arange(len(values), dtype=np.int64)


def _rows(own: Numbers, target: Numbers, generator: np.random.Generator) -> tuple[Rows, Rows]:
    pictures = generator.integers(0, len(own), min(len(own), max(1, COMPARED // own.shape[1])))
    return pictures, generator.integers(0, len(target), min(len(target), COMPARED))


def _distances(clouds: Sequence[Floats], target: Numbers, rows: Rows, theirs: Rows) -> Numbers:
    other = _along(target[theirs])
    return np.array([_apart(_along(cloud[rows].reshape(-1, cloud.shape[2])), other) for cloud in clouds])


def _margin(distances: Numbers) -> Numbers:
    before, _, best, other = distances
    found: Numbers = (other - best) / np.maximum(before, 1e-12)
    return found


def _figure(value: float | Numbers, drawn: Numbers) -> Figure:
    low, high = np.quantile(drawn - drawn.mean(), [(1 - COVERED) / 2, (1 + COVERED) / 2])
    return Figure(value=float(value), low=float(value + low), high=float(value + high))


FEWEST = 2
"""Anchors of which one can be left out."""
FREE = 4
"""Anchors from which on the determinant of a rotation is free; one to three pairs are nearer with 1 on maps."""
ANCHOR_RIDGES = (0.003, 0.03)
"""Pull towards the rotation, of the linear and of the quadratic numbers.

With a larger one the map folds less, so that the round trip loses less, and the translation is worse: on satellite ->
relief from 8 pairs 0.003 and 0.03 gave 21.6 dB alone and 15 dB through the inverse, 0.1 and 1 gave 19.8 and 24 dB,
3 and 30 gave 18.0 and 36 dB.
"""
ANCHOR_RESAMPLES = 2_000


def fit(
    source: Floats,
    target: Floats,
    units: tuple[Normalisation, Normalisation],
    kind: Kind,
    *,
    seed: int = 0,
    force: bool = False,
) -> Proposal:
    """The map of this kind from the source's units to the target's."""
    _check_anchors(source, target, kind)
    u, v = (
        side.plain.apply(part).astype(np.float64) for side, part in zip(units, (source, target), strict=True)
    )
    fitted = _FITS[kind]
    without = [fitted(np.delete(u, i, 0), np.delete(v, i, 0)).apply(u[i : i + 1])[0] for i in range(len(u))]
    found = fitted(u, v)
    before, after = _squares(u, v), _squares(np.stack(without), v)
    # A map that knows nothing of the source gives the mean colour; a rotation cannot.
    mean = _squares(v.mean((0, 2, 3), keepdims=True), v)
    plain = before if kind == "rotation" or before.mean() < mean.mean() else mean
    draws = np.random.default_rng(seed).integers(0, len(u), (ANCHOR_RESAMPLES, len(u)))
    shown = (target, *(np.clip(units[1].plain.undo(part), -1, 1) for part in (u, np.stack(without))))
    back = np.clip(units[0].plain.undo(found.undo(found.apply(u).astype(np.float32))), -1, 1)
    effect = Effect(
        distance_before=_anchor_figure(draws, before),
        distance=_anchor_figure(draws, after),
        margin=_anchor_figure(draws, plain - after, before),
        figures={
            "anchors_psnr": _psnr(draws, _squares(shown[2], shown[0])),
            "anchors_psnr_without": _psnr(draws, _squares(shown[1], shown[0])),
            "undone_psnr": _psnr(draws, _squares(back, source)),
        },
    )
    return Proposal(found, judged(effect, force=force))


def fit_rotation(u: Floats, v: Floats) -> ChannelMap:
    """The orthogonal R with R u nearest to v, both (k, C, H, W) in model units."""
    joint = np.einsum("nihw,njhw->ij", v, u)
    return as_map(nearest_orthogonal(joint, proper=len(u) < FREE))


def fit_colours(u: Floats, v: Floats) -> ChannelMap:
    """The quadratic map from u to v, both (k, 3, H, W) in model units."""
    rows = np.moveaxis(monomials(u), 1, -1).reshape(-1, 1 + 3 + 6)
    values = np.moveaxis(v, 1, -1).reshape(-1, 3)
    prior = np.concatenate([np.zeros((3, 1)), fit_rotation(u, v).matrix, np.zeros((3, 6))], axis=1)
    gram, right = rows.T @ rows / len(rows), rows.T @ values / len(rows)
    pull = np.diag([0.0, *[ANCHOR_RIDGES[0]] * 3, *[ANCHOR_RIDGES[1]] * 6])
    weights = np.linalg.solve(gram + pull, right + pull @ prior.T).T
    return ChannelMap(quadratic=tuple(tuple(float(f"{number:.6g}") for number in row) for row in weights))


_FITS: dict[Kind, Callable[[Floats, Floats], ChannelMap]] = {
    "rotation": fit_rotation,
    "tone": fit_tone,
    "colour-map": fit_colours,
}


def _check_anchors(source: Floats, target: Floats, kind: Kind) -> None:
    if source.shape != target.shape or source.ndim != 4:
        raise ShapeMismatch(
            f"anchors of shape {source.shape} have no partners of shape {target.shape}",
            hint="both folders show the same things, at one size",
        )
    if len(source) < FEWEST:
        raise InputError(
            f"{len(source)} anchors are too few: one is left out to judge the others' map, so that at least "
            f"{FEWEST} are needed",
            hint="add anchors",
        )
    channels = source.shape[1]
    if channels != (1 if kind == "tone" else 3):
        raise InputError(
            f"a {kind} is not for pictures of {channels} channel{'s' * (channels > 1)}",
            hint="--kind tone is for grey pictures, rotation and colour-map for colours",
        )


def _squares(one: Floats, other: Floats) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = ((one.astype(np.float64) - other) ** 2).mean(axis=(1, 2, 3))
    return found


def _anchor_figure(
    draws: npt.NDArray[np.int64], values: npt.NDArray[np.float64], over: npt.NDArray[np.float64] | None = None
) -> Figure:
    bottom = np.ones_like(values) if over is None else over
    found = values[draws].mean(1) / bottom[draws].mean(1)
    low, high = np.quantile(found, [0.025, 0.975])
    return Figure(value=float(values.mean() / bottom.mean()), low=float(low), high=float(high))


def _psnr(draws: npt.NDArray[np.int64], squares: npt.NDArray[np.float64]) -> Figure:
    return _anchor_figure(draws, 10 * np.log10(4 / np.maximum(squares, 1e-12)))


FEWEST_PICTURES = 20
MOST_PICTURES, EACH = 1000, 24
"""Pictures of the source that are used, evenly spaced, and pixels of each."""
DRAWN = 24_000
"""Pseudo-colours of the target."""


def propose(
    pictures: Floats,
    normalisation: Normalisation,
    aggregate: Aggregate,
    kind: Kind,
    *,
    seed: int = 0,
    force: bool = False,
) -> Proposal:
    """The map of this kind from the source's units to the target's, with its figures."""
    _check(pictures, aggregate, kind)
    generator = np.random.default_rng(seed)
    units = normalisation.plain.apply(thinned(pictures, MOST_PICTURES))
    colours = own(units, EACH, generator)
    target = drawn(cleaned(aggregate), aggregate.cells, DRAWN, generator)
    cloud: Numbers = generator.permutation(colours.reshape(-1, colours.shape[2]))
    found = search(cloud, target, seed=seed)
    mapped = (
        as_map(found.best.matrix) if kind == "rotation" else fit_colour_map(cloud, target, found.best.matrix)
    )
    effect = effect_of(found, mapped, colours, target, seed=seed)
    return Proposal(mapped, judged(effect, force=force))


def _check(pictures: Floats, aggregate: Aggregate, kind: Kind) -> None:
    channels = aggregate.cells.channels
    if pictures.ndim != 4 or len(pictures) < FEWEST_PICTURES:
        raise InputError(
            f"a calibration is fitted on at least {FEWEST_PICTURES} pictures, not on an array of {pictures.shape}",
            hint="add pictures, or calibrate from anchors",
        )
    if pictures.shape[1] != channels:
        raise InputError(
            f"the aggregate of {aggregate.domain} is of {channels} channels, the pictures have {pictures.shape[1]}",
            hint="both models must be of one number of channels",
        )
    if kind == "tone":
        raise InputError(
            "a tone curve is fitted from anchors: nothing in a histogram of grey tells a contrast from its negative",
            hint="ddib calibrate --kind tone --anchors A_DIR B_DIR",
        )
    if kind == "colour-map" and channels != 3:
        raise InputError(
            "a colour map is for pictures of 3 channels", hint="--kind tone --anchors is for grey pictures"
        )
