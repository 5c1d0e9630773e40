"""The map of a calibration, and its figures: from a noised aggregate of the target's pictures, or from anchors.

From an aggregate (`propose`): the rotation is searched whose sliced Wasserstein distance to pseudo-colours of the
cleaned histogram is least; a colour map follows optimal transport, and a tone the monotone one. From anchors (`fit`):

    rotation     orthogonal Procrustes: R = U V^T of the singular vectors of sum v u^T over all pixels
    tone         a curve of one or two branches, `fit_tone`
    colour-map   least squares of v - W phi(u), drawn a little towards the rotation; it may fold (`undone_psnr`)

Every figure of anchors is of those that their map was not fitted on (each is left out in turn). Intervals of 95 % are
bootstrapped over pictures or anchors.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

import numpy as np

from ddib_fed.calibration.aggregate import GREY_BINS, REACH, Aggregate, Cells, Floats, Numbers, thinned
from ddib_fed.calibration.record import Contrast, Effect
from ddib_fed.errors import CalibrationIneffective, InputError, ShapeMismatch, UsageError, extra
from ddib_fed.models.sidecars import Figure
from ddib_fed.models.units import ChannelMap, Normalisation, monomials
from ddib_fed.protocol.contract import CalibrationKind

KERNEL = (0.25, 0.5, 0.25)  # neighbours along each channel whose mean decides whether a cell holds anything
SMOOTHED_SIGMAS, SINGLE_SIGMAS = 2.0, 3.5
"""A cell is kept whose smoothed share, or whose own, is so many deviations of the noise above 0."""

COUPLED = 1500  # colours of each side that are coupled
ENTROPY = 0.3  # e: in squared units of the target's model
RIDGES = 10.0 ** np.arange(-3, 3.01, 0.5)
LEAST_SLOPE, FOLDED = 0.2, 0.02
"""A map is taken where no larger share of colours has a direction with a smaller slope, or is folded."""

DIRECTIONS, QUANTILES = 24, 96
STARTS, KEPT, STEPS = 400, 24, 30
COARSE, FINE = 600, 12_000  # colours that starts are compared with, and refined with
DISTINCT_DEGREES = 30.0
SETTLED = 1e-3  # change of an entry of R in a step that ends a refinement

BINS = 128
PLACES = 24  # places of a jump, and of the gap between the branches' values
PIECES = 4  # linear pieces of a branch
GAP = 0.2  # between the values of two branches, in deviations of the target
LEAST_TONE_SLOPE = 0.5
"""In deviations of the target for one of the source: the inverse amplifies errors by no more than one over it."""
WORTH = 0.9  # largest share of the squared error of one branch at which two are taken
MARGIN = 0.05  # of the range of u that the outermost knots lie beyond it
SWEEPS = 120
LEAST_GROUND, MOST_BELOW = 0.2, 0.05
"""Of the pixels in one cell, at least, and below it, at most, where grey pictures have a dark background."""

FEWEST = 2  # anchors of which one can be left out
FREE = 4
"""Anchors from which on the determinant of a rotation is free; one to three pairs are nearer with 1 on maps."""
ANCHOR_RIDGES = (0.003, 0.03)
"""Pull towards the rotation, of the linear and of the quadratic numbers. A larger one folds less and translates worse:
on satellite -> relief from 8 pairs 21.6 dB alone and 15 dB through the inverse; 0.1 and 1 gave 19.8 and 24 dB."""

LEAST_MARGIN: Final = 0.045
"""Of the lower bound of the margin, a share of the distance without a calibration: it lies between the bounds of right
and of wrong rotations over draws of the noise."""
RESAMPLES, ANCHOR_RESAMPLES = 100, 2_000
COMPARED = 8000  # colours of each side in each resample
FEWEST_PICTURES = 20
MOST_PICTURES, EACH = 1000, 24  # pictures of the source that are used, evenly spaced, and pixels of each
DRAWN = 24_000  # pseudo-colours of the target


class Proposal(NamedTuple):
    map: ChannelMap
    effect: Effect


def propose(
    pictures: Floats,
    normalisation: Normalisation,
    aggregate: Aggregate,
    kind: CalibrationKind,
    *,
    contrast: Contrast = "",
    seed: int = 0,
    force: bool = False,
) -> Proposal:
    """Fit a map of this kind from pictures to an aggregate; no histogram of grey can tell the contrast of a tone."""
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
    check_kind(kind, channels, anchored=False, contrast=contrast)
    generator = np.random.default_rng(seed)
    units = normalisation.plain.apply(thinned(pictures, MOST_PICTURES))
    colours = sampled_pixels(units, EACH, generator)
    target = pseudo_colours(
        without_noise(aggregate.shares, aggregate.sigma), aggregate.cells, DRAWN, generator
    )
    cloud: Numbers = generator.permutation(colours.reshape(-1, colours.shape[2]))
    if kind == "tone":
        own, others, pairs = transported(colours[..., 0], target[:, 0], inverted=contrast == "inverted")
        curve = fit_tone(*pairs)
        effect = effect_of((curve.apply,), own[..., None], others[:, None], seed=seed)
        return Proposal(curve, judged(effect, force=force))
    outcome = search(cloud, target, seed=seed)
    best = outcome.best.matrix
    mapped = as_map(best) if kind == "rotation" else fit_colour_map(cloud, target, best)
    maps = (mapped.apply, lambda u: u @ outcome.best.matrix.T, lambda u: u @ outcome.other.matrix.T)
    return Proposal(mapped, judged(effect_of(maps, colours, target, seed=seed), force=force))


def check_kind(kind: CalibrationKind, channels: int, *, anchored: bool, contrast: Contrast = "") -> None:
    """Raise unless a calibration of this kind can be made for pictures of so many channels."""
    if bool(contrast) != (kind == "tone" and not anchored):
        raise UsageError(
            "a tone is found from --anchors A_DIR B_DIR, or from histograms and --contrast: a histogram of grey cannot "
            "tell a contrast from its negative. Nothing else takes --contrast",
            hint="ddib calibrate --help",
        )
    if channels != (1 if kind == "tone" else 3) and (anchored or kind != "rotation"):
        raise UsageError(
            f"a {kind} is not for pictures of {channels} channel{'s' * (channels > 1)}",
            hint="--kind tone is for grey pictures, rotation and colour-map for colours",
        )


def without_noise(shares: Numbers, sigma: float) -> Numbers:
    """Return shares, one axis a channel, each with noise of deviation sigma, projected onto those that can be."""
    smooth, deviation = shares, sigma
    for axis in range(shares.ndim):
        padded = np.pad(smooth, [(1, 1) if i == axis else (0, 0) for i in range(shares.ndim)])
        length = smooth.shape[axis]
        parts = [weight * np.take(padded, range(i, i + length), axis) for i, weight in enumerate(KERNEL)]
        smooth = np.sum(parts, axis=0)
        deviation *= float(np.linalg.norm(KERNEL))
    held = (smooth > SMOOTHED_SIGMAS * deviation) | (shares > SINGLE_SIGMAS * sigma)
    if not held.any():
        held = shares == shares.max()
    cleaned = np.zeros_like(shares)
    cleaned[held] = on_simplex(shares[held])
    return cleaned


def on_simplex(values: Numbers) -> Numbers:
    """Return the nearest point to values (N,) with no negative entry and sum 1."""
    falling = np.sort(values)[::-1]
    excess = np.cumsum(falling) - 1.0
    counts = np.arange(1, len(values) + 1)
    last = np.nonzero(falling - excess / counts > 0)[0][-1]
    nearest: Numbers = np.maximum(values - excess[last] / counts[last], 0.0)
    return nearest


def pseudo_colours(shares: Numbers, cells: Cells, count: int, generator: np.random.Generator) -> Numbers:
    """Return pseudo-colours (count, C) of cleaned shares, in the target's units, in random order."""
    ends = np.cumsum(shares.ravel() / shares.sum())
    # The last end is 1 up to rounding.
    flat = np.searchsorted(ends[:-1], (np.arange(count) + generator.uniform()) / count, side="right")
    places = np.stack(np.unravel_index(flat, cells.shape), axis=1)
    within = generator.uniform(-0.5, 0.5, places.shape) * (2 * cells.reach / cells.bins)
    return generator.permutation(cells.centres()[places] + within)


def sampled_pixels(units: Floats, each: int, generator: np.random.Generator) -> Numbers:
    """Return colours (N, each, C) of random pixels of each of the pictures (N, C, H, W), drawn with replacement."""
    flat = units.reshape(*units.shape[:2], -1)
    taken = generator.integers(0, flat.shape[2], (len(units), 1, each))
    return np.moveaxis(np.take_along_axis(flat, taken, axis=2), 1, 2).astype(np.float64)


class Optimum(NamedTuple):
    matrix: Numbers
    cost: float


class Search(NamedTuple):
    best: Optimum
    other: Optimum


class RotationCost:
    """Cost of rotations of one cloud of colours onto another: the squared sliced W2 distance."""

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
    """Return the best rotation and the next distinct one; of grey the two signs."""
    cost, channels = RotationCost(source[:FINE], target), source.shape[1]
    candidates = [np.eye(1), -np.eye(1)]
    if channels > 1:
        # Optima of few colours from the best of random starts, one for each that is distinct; then of all colours.
        generator, rough = np.random.default_rng(seed), RotationCost(source[:COARSE], target)
        tried = sorted((random_orthogonal(channels, generator) for _ in range(starts)), key=rough)
        coarse: list[Numbers] = []
        for turned in map(rough.settled, tried[:KEPT]):
            if all(degrees(turned, other) > DISTINCT_DEGREES / 3 for other in coarse):
                coarse.append(turned)
        candidates = [cost.settled(each) for each in coarse]
    optima = sorted((Optimum(each, cost(each)) for each in candidates), key=lambda one: one.cost)
    best = optima[0]
    others = [one for one in optima if degrees(one.matrix, best.matrix) > DISTINCT_DEGREES]
    return Search(best, others[0] if others else Optimum(-best.matrix, cost(-best.matrix)))


@lru_cache(maxsize=4)
def directions(channels: int) -> Numbers:
    """Directions (K, C) spread evenly over the half sphere, by the golden angle; one for grey, drawn for latents."""
    if channels == 1:
        return np.ones((1, 1))
    if channels != 3:
        drawn = np.random.default_rng(channels).standard_normal((DIRECTIONS * channels // 2, channels))
        vectors: Numbers = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        return vectors
    i = np.arange(DIRECTIONS) + 0.5
    height, turn = 1 - i / DIRECTIONS, np.pi * (1 + 5**0.5) * i
    radius = np.sqrt(1 - height**2)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), height], axis=1)


def quantiles(values: Numbers) -> Numbers:
    """Return QUANTILES quantiles of values (N, K) along N: (QUANTILES, K)."""
    rows = ((np.arange(QUANTILES) + 0.5) / QUANTILES * len(values)).astype(int)
    at_ranks: Numbers = np.sort(values, axis=0)[rows]
    return at_ranks


def as_map(matrix: Numbers) -> ChannelMap:
    return ChannelMap(rotation=tuple(tuple(float(number) for number in row) for row in matrix))


def nearest_orthogonal(matrix: Numbers, *, proper: bool = False) -> Numbers:
    """Return the orthogonal matrix nearest to a square one (Procrustes; Schoenemann, 1966)."""
    left, _, right = np.linalg.svd(matrix)
    if proper:
        left[:, -1] *= np.sign(np.linalg.det(left @ right))
    rotation: Numbers = left @ right
    return rotation


def random_orthogonal(channels: int, generator: np.random.Generator) -> Numbers:
    """Return a uniform draw of the orthogonal matrices, of both determinants."""
    q, r = np.linalg.qr(generator.standard_normal((channels, channels)))
    return q * np.sign(np.diag(r))


def degrees(first: Numbers, second: Numbers) -> float:
    """Return the angle between two orthogonal matrices; 180 where their determinants differ."""
    between = first @ second.T
    if np.linalg.det(between) < 0:
        return 180.0
    if len(between) == 1:
        return 0.0
    return float(np.degrees(np.arccos(np.clip((np.trace(between) - 1) / 2, -1.0, 1.0))))


def fit_colour_map(source: Numbers, target: Numbers, rotation: Numbers) -> ChannelMap:
    """The quadratic map of the source's colours (N, 3) to what optimal transport draws each to among the target's."""
    with extra("colours", "POT", "optimal transport of colours needs POT, which is not installed"):
        import ot
    source, target = source[:COUPLED], target[:COUPLED]
    shares = [np.full(len(side), 1 / len(side)) for side in (source, target)]
    cost = ot.dist(source @ rotation.T, target)
    # A row's scale is free, so that its nearest colour may cost nothing: no row underflows to 0.
    cost -= cost.min(axis=1, keepdims=True)
    plan = ot.sinkhorn(*shares, cost, ENTROPY, numItermax=200, stopThr=1e-5, warn=False)
    return unfolded_fit(source, plan @ target / plan.sum(axis=1, keepdims=True), rotation)


def unfolded_fit(u: Numbers, v: Numbers, rotation: Numbers) -> ChannelMap:
    """The quadratic map of u (N, 3) to v (N, 3), row by row, drawn to a rotation until it does not fold at the u."""
    solve, way = _quadratic_fit(monomials(u), v, rotation), np.sign(np.linalg.det(rotation))
    for ridge in RIDGES:
        weights = solve(np.full(10, ridge))
        if (way * least_slopes(weights, u) < LEAST_SLOPE).mean() <= FOLDED:
            break
    return _as_quadratic(weights)


def fit_colours(u: Floats, v: Floats) -> ChannelMap:
    """Fit the quadratic map from u to v, both (k, 3, H, W) in model units."""
    rows = np.moveaxis(monomials(u), 1, -1).reshape(-1, 1 + 3 + 6)
    values = np.moveaxis(v, 1, -1).reshape(-1, 3)
    solve = _quadratic_fit(rows, values, fit_rotation(u, v).matrix)
    return _as_quadratic(solve(np.array([0.0, *[ANCHOR_RIDGES[0]] * 3, *[ANCHOR_RIDGES[1]] * 6])))


def _quadratic_fit(rows: Floats, values: Floats, rotation: Numbers) -> Callable[[Numbers], Numbers]:
    """Return weights (3, 10) of least squares with a pull (10,) of each column towards a rotation."""
    prior = np.concatenate([np.zeros((3, 1)), rotation, np.zeros((3, 6))], axis=1)
    gram, right = rows.T @ rows / len(rows), rows.T @ values / len(rows)

    def solve(pull: Numbers) -> Numbers:
        return np.linalg.solve(gram + np.diag(pull), right + pull[:, None] * prior.T).T

    return solve


def _as_quadratic(weights: Numbers) -> ChannelMap:
    return ChannelMap(quadratic=tuple(tuple(float(f"{number:.6g}") for number in row) for row in weights))


def least_slopes(weights: Numbers, u: Numbers) -> Numbers:
    """Return the map's least singular value at each u (N, 3), with the sign of its determinant there: (N,)."""
    square = np.zeros((3, 3, 3))
    rows, columns = np.triu_indices(3)
    square[:, rows, columns] = weights[:, 4:]
    slopes = weights[:, 1:4] + np.einsum("cij,nj->nci", square + square.swapaxes(1, 2), u)
    least: Numbers = np.sign(np.linalg.det(slopes)) * np.linalg.svd(slopes, compute_uv=False)[:, -1]
    return least


def fit(
    source: Floats,
    target: Floats,
    units: tuple[Normalisation, Normalisation],
    kind: CalibrationKind,
    *,
    seed: int = 0,
    force: bool = False,
) -> Proposal:
    """Fit the map of this kind from the source's units to the target's, from anchors (k, C, H, W) of both."""
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
    check_kind(kind, source.shape[1], anchored=True)
    u, v = (
        side.plain.apply(part).astype(np.float64) for side, part in zip(units, (source, target), strict=True)
    )
    fitted = {"rotation": fit_rotation, "tone": fit_tone, "colour-map": fit_colours}[kind]
    without = [fitted(np.delete(u, i, 0), np.delete(v, i, 0)).apply(u[i : i + 1])[0] for i in range(len(u))]
    fitted_map = fitted(u, v)
    before, after = _squares(u, v), _squares(np.stack(without), v)
    # A map that knows nothing of the source gives the mean colour; a rotation cannot.
    mean = _squares(v.mean((0, 2, 3), keepdims=True), v)
    plain = before if kind == "rotation" or before.mean() < mean.mean() else mean
    shown = (target, *(np.clip(units[1].plain.undo(part), -1, 1) for part in (u, np.stack(without))))
    back = np.clip(units[0].plain.undo(fitted_map.undo(fitted_map.apply(u).astype(np.float32))), -1, 1)
    draws = np.random.default_rng(seed).integers(0, len(u), (ANCHOR_RESAMPLES, len(u)))

    def figure(values: Numbers, over: Numbers | None = None) -> Figure:
        bottom = np.ones_like(values) if over is None else over
        low, high = np.quantile(values[draws].mean(1) / bottom[draws].mean(1), [0.025, 0.975])
        return Figure(value=float(values.mean() / bottom.mean()), low=float(low), high=float(high))

    def psnr(squares: Numbers) -> Figure:
        return figure(10 * np.log10(4 / np.maximum(squares, 1e-12)))

    effect = Effect(
        distance_before=figure(before),
        distance=figure(after),
        margin=figure(plain - after, before),
        figures={
            "anchors_psnr": psnr(_squares(shown[2], shown[0])),
            "anchors_psnr_without": psnr(_squares(shown[1], shown[0])),
            "undone_psnr": psnr(_squares(back, source)),
        },
    )
    return Proposal(fitted_map, judged(effect, force=force))


def _squares(one: Floats, other: Floats) -> Numbers:
    squares: Numbers = ((one.astype(np.float64) - other) ** 2).mean(axis=(1, 2, 3))
    return squares


def fit_rotation(u: Floats, v: Floats) -> ChannelMap:
    """Return the orthogonal R with R u nearest to v, both (k, C, H, W) in model units."""
    joint = np.einsum("nihw,njhw->ij", v, u)
    return as_map(nearest_orthogonal(joint, proper=len(u) < FREE))


def fit_tone(u: Floats, v: Floats) -> ChannelMap:
    """Fit the curve from grey values u to v of the same pixels: one branch of PIECES linear pieces that rises or falls,
    or two, beneath and above a gap in the values, where that is worth it.
    """
    x, y, weight = _binned(u.ravel().astype(np.float64), v.ravel().astype(np.float64))
    room = MARGIN * (x[-1] - x[0]) + 1e-3
    low, high = x[0] - room, x[-1] + room
    one, knots = _better((x, y, weight), np.array([low]), np.array([high]), np.array([np.inf]), under=False)
    best, knots = WORTH * one[0, 0], knots[0, 0]
    places = np.linspace(x[0], x[-1], PLACES + 2)[1:-1]
    before = x < places[:, None]
    levels = np.quantile(y, np.linspace(0.02, 0.98, PLACES))
    lows, highs = np.full(PLACES, low), np.full(PLACES, high)
    for under, sign in ((True, -1), (False, 1)):
        # The first branch lies beneath the gap and the second above it, or the other way round.
        left, first = _better((x, y, weight * before), lows, places, levels + sign * GAP / 2, under=under)
        right, second = _better(
            (x, y, weight * ~before), places, highs, levels - sign * GAP / 2, under=not under
        )
        at = np.unravel_index((left + right).argmin(), left.shape)
        if (left + right)[at] < best:
            best, knots = float((left + right)[at]), np.concatenate([first[at], second[at]])
    return ChannelMap(curve=tuple((float(f"{a:.6g}"), float(f"{b:.6g}")) for a, b in knots))


_Pixels = tuple[Numbers, Numbers, Numbers]
"""Pixels by their u, for P places of a jump: mean u and mean v of each bin (bins,), and pixels in it (P, bins)."""
_Branches = tuple[Numbers, Numbers]
"""Errors (P, bounds) and knots (P, bounds, PIECES + 1, 2) of the best branch for each place and bound."""


def _binned(u: Numbers, v: Numbers) -> _Pixels:
    low, high = float(u.min()), float(u.max())
    place = np.minimum((u - low) / max(high - low, 1e-9) * BINS, BINS - 1).astype(np.int64)
    weight = np.bincount(place, minlength=BINS).astype(np.float64)
    there = weight > 0
    mean_u, mean_v = (np.bincount(place, part, BINS)[there] / weight[there] for part in (u, v))
    return mean_u, mean_v, weight[None, there]


def _better(pixels: _Pixels, low: Numbers, high: Numbers, bounds: Numbers, *, under: bool) -> _Branches:
    (u, v, weight), sign = pixels, -1.0 if under else 1.0
    least = np.where(np.isinf(bounds), -np.inf, sign * bounds)
    (up, rising), (down, falling) = (
        _branch((u, sign * v, weight), low, high, least, rises=rises) for rises in (True, False)
    )
    knots = np.where((up <= down)[..., None, None], rising, falling)
    return np.minimum(up, down), knots * [1.0, sign]


def _branch(pixels: _Pixels, low: Numbers, high: Numbers, least_v: Numbers, *, rises: bool) -> _Branches:
    """Branches from `low` to `high` (P,) whose values are at least `least_v` (bounds,), by coordinate descent."""
    u, v, weight = pixels
    width = (high - low) / PIECES
    at = low[:, None] + width[:, None] * np.arange(PIECES + 1)
    passed = np.clip((u[:, None] - at[:, None, :-1]) / width[:, None, None], 0, 1)
    basis = np.insert(passed if rises else 1 - passed, 0, 1.0, axis=2)
    total, weight = weight.sum(), np.broadcast_to(weight, (len(low), len(u)))
    weighted = weight[..., None] * basis
    gram = weighted.swapaxes(1, 2) @ basis + 1e-9 * (total + 1) * np.eye(PIECES + 1)
    right = (weighted * v[:, None]).sum(1)
    least = np.empty((len(low), len(least_v), PIECES + 1))
    least[..., 0], least[..., 1:] = least_v, (LEAST_TONE_SLOPE * width)[:, None, None]
    x = np.maximum(least, np.linalg.solve(gram, right[..., None])[:, None, :, 0])
    for _ in range(SWEEPS):
        for i in range(PIECES + 1):
            step = (right[:, None, i] - (x * gram[:, None, i]).sum(2)) / gram[:, None, i, i]
            x[..., i] = np.maximum(least[..., i], x[..., i] + step)
    error = (weight[:, None] * (x @ basis.swapaxes(1, 2) - v) ** 2).sum(2)
    steps = np.insert(x[..., 1:], 0, 0.0, axis=2).cumsum(2)
    rise = steps if rises else steps[..., -1:] - steps
    return error, np.stack([np.broadcast_to(at[:, None], rise.shape), x[..., :1] + rise], axis=3)


def transported(
    u: Numbers, v: Numbers, *, inverted: bool
) -> tuple[Numbers, Numbers, tuple[Numbers, Numbers]]:
    """The values of u (N, each) and of v (M,) in front of a background, and pairs of all u and what each becomes.

    Monotone transport, but for a dark background, which stays one whatever the contrast of the rest.
    """
    first, second = _background(u.ravel()), _background(v)
    if first is None or second is None:
        first = second = -np.inf
    front, rest = np.sort(u[u > first]), np.sort(v[v > second])
    ranks = (np.arange(len(front)) + 0.5) / len(front)
    matched = np.interp(1.0 - ranks if inverted else ranks, (np.arange(len(rest)) + 0.5) / len(rest), rest)
    ground = u[u <= first]
    dark = np.full(len(ground), np.median(v[v <= second]) if len(ground) else 0.0)
    pairs = np.concatenate([ground, front]), np.concatenate([dark, matched])
    # Of each picture as many values in front as it had, drawn from them again.
    some = [row[row > first] for row in u if (row > first).any()]
    if not some or not len(rest):
        raise InputError(
            "no value of one side is in front of its dark background: there is no tone to find",
            hint="more pictures, or ddib calibrate --local A B --kind tone --anchors A_DIR B_DIR",
        )
    return np.stack([np.resize(row, u.shape[1]) for row in some]), rest, pairs


def _background(values: Numbers) -> float | None:
    """Return the end of a background: the darkest values, near to one another; None where they are few."""
    shares, edges = np.histogram(values, bins=GREY_BINS, range=(-REACH, REACH))
    peak = int(shares.argmax())
    if shares[peak] < LEAST_GROUND * len(values) or shares[:peak].sum() > MOST_BELOW * len(values):
        return None
    return float(edges[min(peak + 2, GREY_BINS)])


def judge(effect: Effect) -> None:
    """Raise unless a calibration is better than none, and clearly better than the next optimum."""
    distance, before, margin = effect.distance, effect.distance_before, effect.margin
    hint = "calibrate from anchors, or look at the figures and add --force"
    if distance.high >= before.low:
        raise CalibrationIneffective(
            f"it is not better than none: the distance of the colours is {distance} with it and {before} without",
            hint=hint,
        )
    if margin.low < LEAST_MARGIN:
        raise CalibrationIneffective(
            f"another optimum, e.g. the mirrored one, is nearly as good: the margin is {margin}, at least "
            f"{LEAST_MARGIN:g} is needed",
            hint=hint,
        )


def judged(effect: Effect, *, force: bool) -> Effect:
    """Return the effect of a good calibration, or mark it as forced; raise if it is neither."""
    try:
        judge(effect)
    except CalibrationIneffective:
        if not force:
            raise
        return effect.model_copy(update={"forced": True})
    return effect


def effect_of(
    maps: Sequence[Callable[[Numbers], Floats]], own: Numbers, target: Numbers, *, seed: int = 0
) -> Effect:
    """Distance to the target's colours (M, C) of the own ones (N, each, C) without a map and with it; the margin.

    The margin is how much farther the third of the maps is than the second; of one map, how much farther none is.
    """
    flat = own.reshape(-1, own.shape[2])
    clouds = [own, *(each(flat).reshape(own.shape) for each in maps)]
    generator = np.random.default_rng(seed)
    pictures, colours = min(len(own), max(1, COMPARED // own.shape[1])), min(len(target), COMPARED)
    drawn = np.empty((RESAMPLES, len(clouds)))
    for row in drawn:
        rows = generator.integers(0, len(own), pictures)
        row[:] = _distances(
            [each[rows] for each in clouds], target[generator.integers(0, len(target), colours)]
        )
    value = _distances(clouds, target)

    def figure(value: float | Numbers, drawn: Numbers) -> Figure:
        low, high = np.quantile(drawn - drawn.mean(), [0.025, 0.975])
        return Figure(value=float(value), low=float(value + low), high=float(value + high))

    def margin(distances: Numbers) -> Numbers:
        before, after, *others = distances
        best, other = others or (after, before)
        share: Numbers = (other - best) / np.maximum(before, 1e-12)
        return share

    return Effect(
        distance_before=figure(value[0], drawn[:, 0]),
        distance=figure(value[1], drawn[:, 1]),
        margin=figure(margin(value), margin(drawn.T)),
    )


def _distances(clouds: Sequence[Floats], target: Numbers) -> Numbers:
    """Return the sliced W2 distance of each cloud (N, each, C) to the target's colours (M, C)."""
    channels = target.shape[1]
    along = [quantiles(each.reshape(-1, channels) @ directions(channels).T) for each in (*clouds, target)]
    return np.array([np.sqrt(channels * np.square(each - along[-1]).mean()) for each in along[:-1]])
