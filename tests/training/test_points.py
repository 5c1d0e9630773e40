"""Points of one's own are normalised, split and checked; a domain has no end."""

import numpy as np
import pytest

from ddib_fed.data.synthetic import uniforms
from ddib_fed.errors import DomainNotFound, InputError, NotFinite, PointsUnreadable, ShapeMismatch
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.points import open_points, points_source


@pytest.fixture
def save(tmp_path):
    def write(points):
        path = tmp_path / "points.npy"
        np.save(path, points)
        return path

    return write


@pytest.fixture
def good():
    return np.random.default_rng(0).normal(3, 2, (1_000, 3))


def test_points_are_normalised_by_one_mean_and_one_deviation(save, good):
    source = points_source(save(good), 2048)
    assert source.mean == pytest.approx(good.mean(), rel=1e-5)
    assert source.std == pytest.approx(good.std(), rel=1e-5)
    assert source.dim == 3


def test_held_out_points_are_never_trained_on(save, good):
    source = points_source(save(good), 2048)
    drawn = source.take(uniforms(0, 0, 50_000, 4))
    kept = {row.tobytes() for row in drawn}
    held = {row.tobytes() for row in source.held_out}
    assert len(held) == 100
    assert len(kept) == 900
    assert not kept & held


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda p: p[:50], InputError, "50 points"),
        (lambda p: np.where(p == p[0, 0], np.nan, p), NotFinite, "points.npy"),
        (lambda p: p * [1, 0, 1], InputError, "column 1"),
        (lambda p: np.full_like(p, 4.0), InputError, "column 0, 1, 2"),
        (lambda p: p * [1, 0, 1] + [0, 1e4, 0], InputError, "column 1"),
        (lambda p: p[:, 0], ShapeMismatch, "points.npy"),
        (lambda p: p.astype(object), PointsUnreadable, "points.npy"),
    ],
)
def test_points_that_cannot_be_learned_are_refused_by_name(save, good, change, error, said):
    with pytest.raises(error) as caught:
        points_source(save(change(good)), 10)
    assert said in caught.value.detail


def test_a_domain_is_found_by_its_index_and_an_unknown_one_refused():
    assert open_points(TrainConfig(kind="points", domain="0")).digest == "domain:moons"
    with pytest.raises(DomainNotFound):
        open_points(TrainConfig(kind="points", domain="spirals"))
