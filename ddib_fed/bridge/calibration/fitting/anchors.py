"""A calibration from anchors: pictures of the same things, e.g. of a phantom, that the source holds in both modalities.

    rotation     orthogonal Procrustes: R = U V^T of the singular vectors of sum v u^T over all pixels
    tone         the curve of `tone_fit`
    colour-map   least squares of v - W phi(u), drawn a little towards the rotation; it may fold (`undone_psnr`)

Every figure is of anchors that their map was not fitted on (each is left out in turn). Intervals are bootstrapped over
anchors, and with few anchors they are wide.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ddib_fed.bridge.calibration.aggregates import Floats
from ddib_fed.bridge.calibration.fitting.proposal import Proposal
from ddib_fed.bridge.calibration.fitting.rotation import as_map, nearest_orthogonal
from ddib_fed.bridge.calibration.fitting.tone_fit import fit_tone
from ddib_fed.bridge.calibration.judgement import judged
from ddib_fed.bridge.calibration.record import Effect, Figure, Kind
from ddib_fed.errors import InputError, ShapeMismatch
from ddib_fed.models.units.channel_map import ChannelMap, monomials
from ddib_fed.models.units.normalisation import Normalisation

FEWEST = 2
"""Anchors of which one can be left out."""
FREE = 4
"""Anchors from which on the determinant of a rotation is free; one to three pairs are nearer with 1 on maps."""
RIDGES = (0.003, 0.03)
"""Pull towards the rotation, of the linear and of the quadratic numbers.

With a larger one the map folds less, so that the round trip loses less, and the translation is worse: on satellite ->
relief from 8 pairs 0.003 and 0.03 gave 21.6 dB alone and 15 dB through the inverse, 0.1 and 1 gave 19.8 and 24 dB,
3 and 30 gave 18.0 and 36 dB.
"""
RESAMPLES = 2_000


def fit(
    source: Floats,
    target: Floats,
    units: tuple[Normalisation, Normalisation],
    kind: Kind,
    *,
    seed: int = 0,
    force: bool = False,
) -> Proposal:
    """The map of this kind from the source's units to the target's.

    Args:
        source: Anchors (k, C, H, W) in [-1, 1] as the source's modality shows them.
        target: The same things in the target's modality, row by row and pixel by pixel.
        units: Of the source's model and of the target's; a calibration that they have is left out.
        kind: What to fit.
        seed: Of the bootstrap.
        force: Give it although its figures are no better than none.

    Raises:
        ShapeMismatch: The two are not of one shape (k, C, H, W).
        InputError: There are fewer than two, or the kind is for other channels.
        CalibrationIneffective: It is not better than none.
    """
    _check(source, target, kind)
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
    draws = np.random.default_rng(seed).integers(0, len(u), (RESAMPLES, len(u)))
    shown = (target, *(np.clip(units[1].plain.undo(part), -1, 1) for part in (u, np.stack(without))))
    back = np.clip(units[0].plain.undo(found.undo(found.apply(u).astype(np.float32))), -1, 1)
    effect = Effect(
        distance_before=_figure(draws, before),
        distance=_figure(draws, after),
        margin=_figure(draws, plain - after, before),
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
    """The quadratic map from u to v, both (k, 3, H, W) in model units.

    Minimises the mean of |v - W phi(u)|^2 over pixels plus the weighted |W - (0, R, 0)|^2, R the rotation.
    """
    rows = np.moveaxis(monomials(u), 1, -1).reshape(-1, 1 + 3 + 6)
    values = np.moveaxis(v, 1, -1).reshape(-1, 3)
    prior = np.concatenate([np.zeros((3, 1)), fit_rotation(u, v).matrix, np.zeros((3, 6))], axis=1)
    gram, right = rows.T @ rows / len(rows), rows.T @ values / len(rows)
    pull = np.diag([0.0, *[RIDGES[0]] * 3, *[RIDGES[1]] * 6])
    weights = np.linalg.solve(gram + pull, right + pull @ prior.T).T
    return ChannelMap(quadratic=tuple(tuple(float(f"{number:.6g}") for number in row) for row in weights))


_FITS: dict[Kind, Callable[[Floats, Floats], ChannelMap]] = {
    "rotation": fit_rotation,
    "tone": fit_tone,
    "colour-map": fit_colours,
}


def _check(source: Floats, target: Floats, kind: Kind) -> None:
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


def _figure(
    draws: npt.NDArray[np.int64], values: npt.NDArray[np.float64], over: npt.NDArray[np.float64] | None = None
) -> Figure:
    bottom = np.ones_like(values) if over is None else over
    found = values[draws].mean(1) / bottom[draws].mean(1)
    low, high = np.quantile(found, [0.025, 0.975])
    return Figure(value=float(values.mean() / bottom.mean()), low=float(low), high=float(high))


def _psnr(draws: npt.NDArray[np.int64], squares: npt.NDArray[np.float64]) -> Figure:
    return _figure(draws, 10 * np.log10(4 / np.maximum(squares, 1e-12)))
