"""Maps from an aggregate and from anchors: what was applied is found again; what is refused for its figures."""

import numpy as np
import pytest

from ddib_fed.calibration.fit import (
    FOLDED,
    GAP,
    LEAST_MARGIN,
    LEAST_SLOPE,
    LEAST_TONE_SLOPE,
    RotationCost,
    as_map,
    degrees,
    effect_of,
    fit,
    fit_colour_map,
    fit_rotation,
    judge,
    least_slopes,
    propose,
    search,
    unfolded_fit,
)
from ddib_fed.calibration.record import Effect
from ddib_fed.errors import CalibrationIneffective
from ddib_fed.models.units import Normalisation
from tests.calibration.examples import PALETTE, TURN, aggregate, colours, figure, make_aggregate, pictures


def test_grey_is_told_from_its_negative_by_its_skewness() -> None:
    skewed = np.random.default_rng(1).exponential(size=(2000, 1)) - 1
    assert search(skewed, -skewed[::-1]).best.matrix == [[-1.0]]


@pytest.fixture(autouse=True)
def _few_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddib_fed.calibration.fit.FINE", 1000)
    monkeypatch.setattr("ddib_fed.calibration.fit.KEPT", 6)


@pytest.mark.slow
def test_a_rotation_is_proposed_with_its_figures() -> None:
    found = propose(pictures(300, 2), PALETTE, aggregate(), "rotation")
    assert degrees(found.map.matrix, TURN) < 12
    effect = found.effect
    assert not effect.forced
    assert effect.distance.high < 0.5 * effect.distance_before.low
    assert effect.margin.low > LEAST_MARGIN
    for each in (effect.distance, effect.distance_before, effect.margin):
        assert each.low < each.value < each.high


@pytest.mark.slow
def test_colour_maps_follow_the_transport_and_come_back() -> None:
    pytest.importorskip("ot")
    source = colours(600, 2)
    bent = colours(600, 3) @ TURN.T
    bent = bent + 0.12 * bent**2
    found = fit_colour_map(source, bent, TURN)
    cost = RotationCost(source, bent)
    assert RotationCost(found.apply(source), bent)(np.eye(3)) < 0.6 * cost(TURN)
    assert np.abs(found.undo(found.apply(source)) - source).max() < 1e-3


def test_a_map_that_would_fold_is_drawn_back_to_the_rotation() -> None:
    u = np.random.default_rng(0).standard_normal((500, 3))
    found = unfolded_fit(u, np.stack([u[:, 0] ** 2, u[:, 1], u[:, 2]], axis=1), np.eye(3))
    slopes = least_slopes(found.matrix, u)
    assert (slopes < LEAST_SLOPE).mean() <= FOLDED
    assert np.abs(found.matrix[0, 4]) > 0.02


@pytest.mark.slow
def test_the_mirrored_optimum_is_refused_by_its_own_figures() -> None:
    """Whoever signs the other optimum as the best one states a margin below zero."""
    own, target = colours(3000, 2).reshape(300, 10, 3), colours(3000, 3) @ TURN.T
    mirror = np.diag([1.0, 1.0, -1.0]) @ TURN
    right, wrong = as_map(TURN).apply, as_map(mirror).apply
    judge(effect_of((right, right, wrong), own, target))
    exchanged = effect_of((wrong, wrong, right), own, target)
    assert exchanged.margin.high < 0
    with pytest.raises(CalibrationIneffective):
        judge(exchanged)


BOTH = (Normalisation(mean=-0.3, std=0.4), Normalisation(mean=0.1, std=0.5))
SWAP = ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0))


def heads(count=4, seed=0):
    """Grey pictures (count, 1, 12, 12): a dark half, and tissues whose contrast is flipped."""
    rng = np.random.default_rng(seed)
    tissue = rng.uniform(-0.5, 0.8, (count, 1, 12, 12))
    inside = np.arange(12) >= 5
    source = np.where(inside, tissue, rng.uniform(-1.0, -0.9, tissue.shape))
    target = np.where(inside, 0.4 - 0.7 * tissue, source)
    return source.astype(np.float32), target.astype(np.float32)


def test_a_flipped_contrast_is_found_with_its_background_and_undone():
    """No continuous curve has both; the two branches keep a gap, and the slope is bounded."""
    source, target = heads(3)
    proposal = fit(source, target, BOTH, "tone")
    assert proposal.effect.figures["anchors_psnr"].low > 26
    assert proposal.effect.figures["anchors_psnr_without"].high < 14
    assert proposal.effect.figures["undone_psnr"].low > 60
    assert proposal.effect.distance.high < proposal.effect.distance_before.low
    assert proposal.effect.margin.low > 0.3
    knots = proposal.map.matrix
    jump = np.flatnonzero(np.diff(knots[:, 0]) == 0)
    assert len(jump) == 1
    branches = np.split(knots, jump + 1)
    ranges = sorted((part[:, 1].min(), part[:, 1].max()) for part in branches)
    assert ranges[1][0] - ranges[0][1] >= GAP - 1e-4
    for part in branches:
        assert np.abs(np.diff(part[:, 1]) / np.diff(part[:, 0])).min() >= LEAST_TONE_SLOPE - 1e-3


def test_a_rotation_is_found_again_and_few_pairs_do_not_mirror():
    u = np.random.default_rng(1).normal(size=(6, 3, 6, 6))
    v = np.einsum("ij,njhw->nihw", np.array(SWAP), u)
    assert np.allclose(fit_rotation(u, v).matrix, SWAP, atol=1e-6)
    assert np.linalg.det(fit_rotation(u[:3], v[:3]).matrix) == pytest.approx(1.0)
    both = (Normalisation(), Normalisation())
    small = tuple(0.2 * part.astype(np.float32) for part in (u, v))
    proposal = fit(*small, both, "rotation", force=True)
    assert not proposal.effect.forced
    assert proposal.map.rotation is not None


def test_a_colour_map_is_found_again():
    u = np.random.default_rng(2).uniform(-0.9, 0.9, (5, 3, 8, 8)).astype(np.float32)
    v = (0.8 * u[:, [1, 2, 0]] + 0.1 * u[:, :1] * u[:, 1:2]).astype(np.float32)
    proposal = fit(u, v, (Normalisation(), Normalisation()), "colour-map")
    assert proposal.map.numbers == 30
    assert proposal.effect.figures["anchors_psnr"].low > 40
    assert proposal.effect.figures["undone_psnr"].low > 40


def test_anchors_that_do_not_belong_together_are_refused_unless_forced():
    """Of those left out the map knows no more than their mean."""
    _, target = heads(3)
    noise = np.random.default_rng(3).uniform(-1, 1, target.shape).astype(np.float32)
    with pytest.raises(CalibrationIneffective):
        fit(noise[:2], target[:2], BOTH, "tone")
    assert fit(noise[:2], target[:2], BOTH, "tone", force=True).effect.forced


def test_anchors_of_pure_noise_have_figures_that_are_bad() -> None:
    """A map of 30 numbers fits what it has seen: its figures are of anchors that it has not seen."""
    rng = np.random.default_rng(4)
    noise, target = (rng.uniform(-0.9, 0.9, (5, 3, 3, 3)).astype(np.float32) for _ in "12")
    effect = fit(noise, target, (Normalisation(), Normalisation()), "colour-map", force=True).effect
    mean = ((target - target.mean((0, 2, 3), keepdims=True)) ** 2).mean()
    assert effect.distance.value > mean
    assert effect.margin.value < 0


def effect(distance: float, margin: float) -> Effect:
    return Effect(distance_before=figure(1.0), distance=figure(distance), margin=figure(margin))


@pytest.mark.parametrize(
    ("distance", "margin", "says"),
    [(0.985, 0.5, "not better than none"), (0.3, LEAST_MARGIN, "another optimum"), (0.3, -0.1, "mirrored")],
)
def test_no_gain_or_a_near_mirror_is_refused_with_its_figures(distance, margin, says) -> None:
    """The bounds of the intervals count, not the values; a better map far from the next passes."""
    judge(effect(0.3, LEAST_MARGIN + 0.02))
    with pytest.raises(CalibrationIneffective, match=says) as refused:
        judge(effect(distance, margin))
    assert "anchors" in refused.value.hint


@pytest.mark.slow
def test_what_the_colours_need_no_map_for_is_refused_unless_forced() -> None:
    """The two palettes are one: turning it is not better than leaving it."""
    same = aggregate(turn=np.eye(3))
    with pytest.raises(CalibrationIneffective, match="not better than none"):
        propose(pictures(300, 2), PALETTE, same, "rotation")
    assert propose(pictures(300, 2), PALETTE, same, "rotation", force=True).effect.forced


@pytest.mark.parametrize("contrast", ["same", "inverted"])
def test_a_declared_contrast_and_two_histograms_give_a_tone(contrast: str) -> None:
    """However much background either side has; of values in front of it the order is the one declared."""
    grey, generator = Normalisation(mean=-0.4, std=0.4), np.random.default_rng(0)

    def heads(count: int, dark: float) -> np.ndarray:
        found = generator.beta(2, 5, (count, 1, 16, 16)) * 1.4 - 0.5
        return np.where(generator.random(found.shape) < dark, -1.0, found).astype(np.float32)

    def partner(x: np.ndarray) -> np.ndarray:
        return np.where(x > -1.0, 0.3 - x if contrast == "inverted" else 0.5 * x + 0.4, -0.9)

    published = make_aggregate(partner(heads(2000, 0.4)), grey, "t2", generator=np.random.default_rng(1))
    found = propose(heads(400, 0.6), grey, published, "tone", contrast=contrast)  # type: ignore[arg-type]
    shown = heads(10, 0.6)
    mapped = grey.undo(found.map.apply(grey.apply(shown)))
    assert np.abs(mapped - partner(shown)).mean() < 0.3 * np.abs(shown - partner(shown)).mean()
