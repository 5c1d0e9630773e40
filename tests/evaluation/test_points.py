"""Distances have their known values, floors are what chance gives, and nothing depends on the call before."""

import numpy as np
import pytest

from ddib_fed.data import synthetic
from ddib_fed.errors import ShapeMismatch
from ddib_fed.evaluation import metrics


@pytest.fixture
def cloud():
    return np.random.default_rng(0).normal(size=(3_000, 2))


def test_cycle_error_is_the_length_of_each_rows_difference():
    original = np.zeros((100, 2), np.float32)
    returned = np.tile(np.array([[3, 4]], np.float32), (100, 1)) * np.linspace(0, 1, 100)[:, None]
    error = metrics.cycle_error(original, returned)
    assert error["max"] == pytest.approx(5)
    assert error["mean"] == pytest.approx(2.5)
    assert error["median"] == pytest.approx(2.5)
    assert error["p99"] == pytest.approx(4.95)


def test_sliced_w2_of_a_shift_is_its_length_over_the_root_of_the_dimension(cloud):
    """For a pure shift every 1-D distance is the shift's projection, of mean square |shift|^2 / D."""
    shift = np.array([0.6, 0.8])
    assert metrics.sliced_w2(cloud, cloud + shift) == pytest.approx(1 / np.sqrt(2), rel=0.05)


def test_sliced_w2_of_a_cloud_with_itself_is_zero_in_any_order(cloud):
    assert metrics.sliced_w2(cloud, cloud[::-1]) == pytest.approx(0, abs=1e-12)


def test_energy_distance_of_two_points_is_twice_their_distance():
    assert metrics.energy_distance(np.zeros((1, 2)), np.array([[3.0, 4.0]])) == pytest.approx(10)


@pytest.mark.parametrize("distance", [metrics.sliced_w2, metrics.energy_distance])
@pytest.mark.parametrize("shapes", [((4, 2), (4, 3)), ((0, 2), (4, 2)), ((4,), (4,))])
def test_distances_refuse_what_is_no_pair_of_clouds(distance, shapes):
    with pytest.raises(ShapeMismatch):
        distance(*(np.zeros(shape) for shape in shapes))


@pytest.mark.slow
def test_a_fresh_draw_of_a_domain_is_about_as_far_as_its_floor():
    fresh = synthetic.draw("moons", 2_000, 11)
    found = metrics.distances_to_domain(fresh, "moons")
    assert found["sliced_w2"] < 2 * found["sliced_w2_floor"]
    assert found["energy"] < 6 * found["energy_floor"]
    assert found["points"] == 2_000
