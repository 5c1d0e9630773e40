"""The domains of points are fixed distributions, drawn by a seed; of the pictures that ship, whose ground is whose."""

import numpy as np
import pytest

from ddib_fed import datasets


def raw(name, points):
    domain = datasets.domain(name)
    return points.astype(np.float64) * domain.std + domain.mean


@pytest.mark.parametrize("name", datasets.DOMAINS)
def test_the_closed_form_scale_is_that_of_a_large_draw(name):
    """Both ways of drawing have zero mean and unit standard deviation over all coordinates."""
    for points in (datasets.draw(name, 400_000, 1), datasets.sample(name, 400_000, 1)):
        assert points.mean() == pytest.approx(0, abs=5e-3)
        assert points.std() == pytest.approx(1, abs=5e-3)


def test_moons_lie_on_two_half_circles_within_their_noise():
    points = raw("moons", datasets.sample("moons", 20_000, 0))
    inner, outer = points[:10_000] - [1, 0.5], points[10_000:]
    for half in (outer, inner):
        gap = np.linalg.norm(half, axis=1) - 1
        assert gap.std() == pytest.approx(datasets.MOONS_NOISE, rel=0.05)
    assert outer[:, 1].min() > -0.3
    assert inner[:, 1].max() < 0.3


@pytest.mark.parametrize(
    ("name", "radii", "centres"),
    [("concentric-rings", (1, 2, 3), (0, 0, 0)), ("parallel-rings", (1, 1, 1), (-2.8, 0, 2.8))],
)
def test_rings_hold_equally_many_points_within_their_width_each_going_round(name, radii, centres):
    points = raw(name, datasets.sample(name, 3_000, 0)).reshape(3, 1_000, 2)
    for ring, radius, centre in zip(points, radii, centres, strict=True):
        local = ring - [centre, 0]
        gap = np.linalg.norm(local, axis=1) - radius
        assert np.abs(gap).max() <= datasets.WIDTH / 2 + 1e-6
        assert gap.std() == pytest.approx(datasets.WIDTH / np.sqrt(12), rel=0.1)
        angle = np.arctan2(local[:, 1], local[:, 0]) % (2 * np.pi)
        assert np.all(np.diff(angle) <= 1e-5)


def test_a_point_is_a_function_of_seed_step_and_sample():
    """Neither the batch nor what was drawn before changes it."""
    whole = datasets.draw("moons", 64, 7, step=3)
    assert np.array_equal(whole[:10], datasets.draw("moons", 10, 7, step=3))
    assert not np.array_equal(whole, datasets.draw("moons", 64, 7, step=4))
    assert not np.array_equal(whole, datasets.draw("moons", 64, 8, step=3))


@pytest.mark.slow
@pytest.mark.parametrize("crop", [datasets.CROP, datasets.LARGE_CROP])
def test_no_stripe_has_two_owners_and_no_crop_leaves_its_stripe(crop: int) -> None:
    owned = [
        set(datasets.stripes_of(side, part))
        for side, part in (
            ("source", "train"),
            ("source", "held_out"),
            ("target", "train"),
            ("target", "held_out"),
            ("source", "test"),
        )
    ]
    assert sum(map(len, owned)) == len(set.union(*owned)) == datasets.MAP_SIZE[0] // datasets.STRIPE
    for stripe in owned[4]:
        for _, x in datasets.coasts_in(stripe, datasets.TEST_STEP, crop):
            assert stripe * datasets.STRIPE <= x <= (stripe + 1) * datasets.STRIPE - crop


def test_a_sheet_sees_its_own_slab_alone() -> None:
    """Whatever the other slices hold, test slices among them; and no two sheets are alike."""
    volume = np.random.default_rng(0).random((160, 30, 160), dtype=np.float32)
    slab = range(12, 17)
    others = volume.copy()
    others[:, [n for n in range(30) if n not in slab]] = 7.0
    sheets = [datasets._sheet(others, slab, np.random.default_rng(seed)) for seed in (1, 2)]
    assert np.allclose(sheets[0], datasets._sheet(volume, slab, np.random.default_rng(1)), atol=1e-4)
    assert not np.allclose(sheets[0], sheets[1], atol=0.1)


@pytest.mark.parametrize(("name", "apart"), [("satellite", 32), ("satellite-256", 64), ("brain-t1", 0)])
def test_test_pictures_of_different_clusters_do_not_overlap(name, apart):
    clusters, domain = datasets.clusters_of(name), datasets.shipped_domain(name)
    assert len(set(clusters)) >= 12
    if apart:
        places = np.array(datasets.places_of("source", "test", domain.detail, domain.crop))
        assert len(places) == len(clusters)
        near = (np.abs(places[:, None] - places[None]) < apart).all(axis=2)
        assert (clusters[:, None] == clusters[None])[near].all()
    else:
        assert np.bincount(clusters).max() == datasets.NEIGHBOURS
