"""Figures of pairs of pictures, and the channels that they are compared in."""

import numpy as np
import pytest

from ddib_fed.errors import ShapeMismatch, UsageError
from ddib_fed.evaluation.metrics import MOST_PSNR, compare, mse, picture_rule, psnr, to_channels
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.manifest import PictureFormat
from tests.runs.tiny_models import pictures, tiny


def test_a_constant_gap_has_the_psnr_of_its_square():
    grey = np.zeros((2, 1, 8, 8), np.float32)
    assert mse(grey, grey + 0.2) == pytest.approx([0.04, 0.04], rel=1e-6)
    assert psnr(grey, grey + 0.2) == pytest.approx([20.0, 20.0], rel=1e-6)


def test_equal_pictures_have_a_finite_psnr_and_an_ssim_of_one():
    same = pictures(3, channels=3)
    paired = compare(same, same)
    assert (paired.psnr == MOST_PSNR).all()
    assert paired.ssim == pytest.approx([1.0, 1.0, 1.0])
    assert paired.means() == {"mse": 0.0, "psnr": MOST_PSNR, "ssim": pytest.approx(1.0)}


def test_the_mean_psnr_is_that_of_the_pictures_not_of_the_mean_error():
    truth = np.zeros((2, 1, 8, 8), np.float32)
    given = truth + np.array([0.02, 0.2], np.float32)[:, None, None, None]
    assert compare(given, truth).means()["psnr"] == pytest.approx(30.0, rel=1e-5)


@pytest.mark.parametrize("other", [(3, 1, 8, 8), (2, 3, 8, 8), (2, 1, 8, 9), (0, 1, 8, 8)])
def test_stacks_of_other_shapes_are_refused(other):
    with pytest.raises(ShapeMismatch):
        mse(pictures(2), np.zeros(other, np.float32))


def test_grey_is_repeated_and_colour_is_weighted():
    colour = np.stack([np.full((4, 4), level, np.float32) for level in (1.0, 0.0, -1.0)])[None]
    assert to_channels(colour, 1) == pytest.approx(np.full((1, 1, 4, 4), 0.299 - 0.114), abs=1e-6)
    grey = pictures(2)
    assert (to_channels(grey, 3) == grey).all()
    assert to_channels(to_channels(grey, 3), 1) == pytest.approx(grey, abs=1e-6)


def test_the_rule_of_a_model_is_its_manifests():
    form = PictureFormat(fit="pad", low=-1000, high=2000, bits=16)
    rule = picture_rule(tiny(picture=form, channels=3).manifest)
    assert (rule.channels, rule.height, rule.width) == (3, 8, 8)
    assert (rule.fit, rule.low, rule.high, rule.bits) == ("pad", -1000, 2000, 16)


def test_a_model_of_points_has_no_rule():
    with pytest.raises(UsageError, match="points"):
        picture_rule(pretrained("moons").manifest)
