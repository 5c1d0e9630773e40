"""From pairs of pictures to maps: what was applied is found again, and figures are of pictures that were left out."""

import numpy as np
import pytest

from ddib_fed.calibration.fit import GAP, LEAST_TONE_SLOPE, fit, fit_rotation, fit_tone
from ddib_fed.errors import CalibrationIneffective, InputError, ShapeMismatch
from ddib_fed.models.units import Normalisation

UNITS = (Normalisation(mean=-0.3, std=0.4), Normalisation(mean=0.1, std=0.5))
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
    proposal = fit(source, target, UNITS, "tone")
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


@pytest.mark.parametrize("slope", [0.8, -0.8])
def test_a_line_needs_no_jump(slope):
    """Rising or falling."""
    u = np.linspace(-2, 2, 400)
    made = fit_tone(u, slope * u + 0.1)
    assert (np.diff(made.matrix[:, 0]) > 0).all()
    assert np.allclose(made.apply(u), slope * u + 0.1, atol=1e-2)


def test_a_rotation_is_found_again_and_few_pairs_do_not_mirror():
    """With four pairs its determinant is free."""
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
    """Thirty numbers; a mild one comes back through its inverse."""
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
        fit(noise[:2], target[:2], UNITS, "tone")
    assert fit(noise[:2], target[:2], UNITS, "tone", force=True).effect.forced


@pytest.mark.parametrize(
    ("shapes", "kind", "error"),
    [
        (((3, 1, 4, 4), (3, 1, 4, 5)), "tone", ShapeMismatch),
        (((1, 1, 4, 4), (1, 1, 4, 4)), "tone", InputError),
        (((3, 3, 4, 4), (3, 3, 4, 4)), "tone", InputError),
        (((3, 1, 4, 4), (3, 1, 4, 4)), "colour-map", InputError),
    ],
)
def test_what_makes_no_anchors_is_refused(shapes, kind, error):
    """Other shapes, a single one, or channels that the kind is not for."""
    with pytest.raises(error):
        fit(*(np.zeros(shape, np.float32) for shape in shapes), UNITS, kind)
