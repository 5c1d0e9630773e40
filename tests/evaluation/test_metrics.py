"""Figures of pairs, structure, neighbours, clouds and latents have their known values."""

import numpy as np
import pytest
import torch

from ddib_fed import metrics
from ddib_fed.calibration.record import CalibratedSide
from ddib_fed.datasets import load_shipped
from ddib_fed.errors import ShapeMismatch
from ddib_fed.metrics import (
    MOST_PSNR,
    compare,
    doubtful,
    hits_by_pixels,
    nearest,
    noise_statistics,
    structure,
    two_classes,
    whiteness,
)
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.manifest import StructureThresholds
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.record import digits, undigits
from tests.calibration.examples import calibration
from tests.runs.tiny_models import pictures


def test_equal_pictures_have_a_finite_psnr_and_an_ssim_of_one():
    same = pictures(3, channels=3)
    paired = compare(same, same)
    assert (paired.psnr == MOST_PSNR).all()
    assert paired.ssim == pytest.approx([1.0, 1.0, 1.0])


def test_a_noisy_copy_finds_its_partner_and_a_stranger_does_not():
    truth = pictures(40)
    assert hits_by_pixels((truth + 0.3 * pictures(40, seed=1)).astype(np.float32), truth).all()
    assert hits_by_pixels(pictures(40, seed=2), truth).mean() < 0.4
    shift = np.linspace(-0.8, 0.8, 40, dtype=np.float32)[:, None, None, None]
    assert hits_by_pixels(0.2 * truth + shift, 0.2 * truth, nearest=1).all()  # brightness does not decide


def test_the_nearest_training_picture_is_found():
    """As a distance over that to the mean; of equal training pictures, the same has 0 and another one is far."""
    rng = np.random.default_rng(0)
    others, some = (rng.standard_normal((count, 31)).astype(np.float32) for count in (200, 20))
    apart = np.linalg.norm(some[:, None].astype(float) - others[None], axis=2).min(1)
    np.testing.assert_allclose(
        nearest(some, others), apart / np.linalg.norm(some - others.mean(0), axis=1), atol=2e-3
    )
    same = np.ones((5, 40), np.float32)
    assert nearest(same[:1], same)[0] == 0
    assert nearest(same[:1] * 2, same)[0] == pytest.approx(1)


@pytest.fixture
def cloud():
    return np.random.default_rng(0).normal(size=(3_000, 2))


def test_cycle_error_is_the_length_of_each_rows_difference():
    original = np.zeros((100, 2), np.float32)
    returned = np.tile(np.array([[3, 4]], np.float32), (100, 1)) * np.linspace(0, 1, 100)[:, None]
    found = metrics.cycle_error(original, returned)
    assert found == pytest.approx({"max": 5, "mean": 2.5, "median": 2.5, "p99": 4.95})


def test_sliced_w2_of_a_shift_is_its_length_over_the_root_of_the_dimension(cloud):
    """For a pure shift every 1-D distance is the shift's projection, of mean square |shift|^2 / D."""
    shift = np.array([0.6, 0.8])
    assert metrics.sliced_w2(cloud, cloud + shift) == pytest.approx(1 / np.sqrt(2), rel=0.05)
    assert metrics.sliced_w2(cloud, cloud[::-1]) == pytest.approx(0, abs=1e-12)
    with pytest.raises(ShapeMismatch):
        metrics.sliced_w2(cloud, np.zeros((4, 3)))


def test_noise_is_white_and_a_smoothed_latent_is_not():
    """Few patches make noise look correlated, which is why its own figure stands beside."""
    shape = (24, 1, 32, 32)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    assert whiteness(z).ratio == pytest.approx(1.0, abs=0.1)
    assert whiteness((z + z.roll(1, dims=3)) / 2**0.5).ratio > 1.3
    assert noise_statistics((4, 1, 32, 32)).correlation > 1.5 * noise_statistics(shape).correlation
    assert whiteness(torch.zeros(1, 1, 8, 8)).ratio == 0.0


def test_what_differs_from_the_map_is_found_where_it_is():
    """A translation that follows the map differs nowhere; a block of the other class is counted and located."""
    units, turn = Normalisation(std=0.5), ChannelMap(rotation=((0, 1, 0), (1, 0, 0), (0, 0, 1)))
    side = CalibratedSide(domain="photos", units=units)
    made = calibration(map=turn, source=side, target=side.model_copy(update={"domain": "maps"}))
    colours = np.array([[0.8, -0.8, 0.0], [-0.8, 0.8, 0.0]], np.float32)
    source = (
        np.repeat(colours[:, :, None], 16, axis=2).transpose(1, 0, 2).reshape(1, 3, 32, 1).repeat(32, axis=3)
    )
    least = StructureThresholds(
        edge_correlation=0.0,
        count=1,
        classes=tuple(map(tuple, two_classes(units.apply(source)).tolist())),
        differs=0.2,
    )
    mapped = made.alone(source)
    assert not structure(source, mapped, made.alone, least).differs.any()
    wrong = mapped.copy()
    wrong[:, :, :16, :16] = mapped[:, :, -1:, -1:]
    kept = structure(source, wrong, made.alone, least)
    assert kept.differs.mean() == pytest.approx(0.25, abs=0.02)
    assert doubtful(kept, least).all()
    grid = digits(kept.differs[0]).split("/")
    assert (grid[2][2], grid[-1][2], grid[2][-1]) == ("f", "0", "0")
    np.testing.assert_array_equal(undigits("0f", (2, 4)), [[0, 0, 1, 1]] * 2)


@pytest.mark.slow
@pytest.mark.parametrize("domains", [("satellite", "relief"), ("relief", "satellite")])
def test_shipped_thresholds_catch_lost_pictures_and_leave_true_ones(domains):
    """Of test crops: a picture of another place is marked in over 9 of 10 cases, the true partner in under 1 of 7."""
    source, target = (load_shipped(name).test for name in domains)
    thresholds = pretrained(domains[0]).manifest.structure
    lost = [structure(source, np.roll(target, shift, axis=0)) for shift in (50, 110)]
    assert np.mean([doubtful(each, thresholds) for each in lost]) > 0.9
    assert doubtful(structure(source, target), thresholds).mean() < 1 / 7
