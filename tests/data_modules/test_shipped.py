"""The shipped domains: whose ground is whose, and what the pairs show."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from ddib_fed.data import shipped
from ddib_fed.data import shipped as heads
from ddib_fed.data import shipped as maps
from ddib_fed.data import shipped as packaged
from ddib_fed.errors import DomainNotFound, ExtraMissing

pictures_of = cache(shipped.load_shipped)
PARTS = ("train", "held_out", "test")


@pytest.fixture(autouse=True, scope="module")
def few_sheets():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "SHEETS", 64)
        yield


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_slabs_are_whole_and_lie_apart() -> None:
    owner = {}
    for side in ("source", "target"):
        for part in ("train", "held_out"):
            owner |= dict.fromkeys(heads.slab_slices(side, part), side)
    owner |= dict.fromkeys(heads.slab_slices("source", "test"), "test")
    assert heads.slab_slices("source", "test") == heads.slab_slices("target", "test")
    numbers = sorted(owner)
    for before, after in pairwise(numbers):
        if owner[before] != owner[after]:
            assert after - before == heads.GAP + 1
        else:
            assert after == before + 1
    assert set(owner.values()) == {"source", "target", "test"}


@pytest.mark.slow
def test_no_stripe_has_two_owners_and_no_crop_leaves_its_stripe() -> None:
    owned = [
        set(maps._stripes(side, part))
        for side, part in (
            ("source", "train"),
            ("source", "held_out"),
            ("target", "train"),
            ("target", "held_out"),
            ("source", "test"),
        )
    ]
    assert sum(map(len, owned)) == len(set.union(*owned)) == maps.MAP_SIZE[0] // maps.STRIPE
    for stripe in owned[4]:
        for _, x in maps._places(stripe, maps.TEST_STEP):
            assert stripe * maps.STRIPE <= x <= (stripe + 1) * maps.STRIPE - maps.CROP


def test_a_sheet_sees_its_own_slab_alone() -> None:
    """Whatever the other slices hold, test slices among them; and no two sheets are alike."""
    volume = np.random.default_rng(0).random((160, 30, 160), dtype=np.float32)
    slab = range(12, 17)
    others = volume.copy()
    others[:, [n for n in range(30) if n not in slab]] = 7.0
    sheets = [heads._sheet(others, slab, np.random.default_rng(seed)) for seed in (1, 2)]
    assert np.allclose(sheets[0], heads._sheet(volume, slab, np.random.default_rng(1)), atol=1e-4)
    assert not np.allclose(sheets[0], sheets[1], atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", shipped.SHIPPED)
def test_pictures_have_the_stated_form(name: str) -> None:
    pictures = pictures_of(name)
    for part in PARTS:
        array = getattr(pictures, part)
        assert array.dtype == np.float32
        assert array.shape[1:] == pictures.domain.shape
        assert array.min() >= -1.0
        assert array.max() <= 1.0
        assert array.std(axis=(1, 2, 3)).mean() > 0.05


def test_a_scene_is_a_part_of_its_test_stripe() -> None:
    scene = maps.cut_scene("satellite", 3, (150, 182), detail=1)
    assert scene.shape == (3, 32, maps.STRIPE)
    stripe = maps._stripes("source", "test")[3]
    assert stripe == maps._stripes("target", "test")[3]
    crop = maps.cut_map("satellite", "source")("test")
    place = next(
        (y, x)
        for s in maps._stripes("source", "test")
        if s == stripe
        for y, x in maps._places(s, maps.TEST_STEP)
    )
    first = sum(len(maps._places(s, maps.TEST_STEP)) for s in maps._stripes("source", "test")[:3])
    around = maps.cut_scene("satellite", 3, (place[0], place[0] + 32), detail=1)
    left = place[1] - stripe * maps.STRIPE
    assert np.array_equal(around[:, :, left : left + 32], crop[first])


def test_the_spin_echo_gives_what_its_equation_gives() -> None:
    one, none = np.ones(1, np.float32), np.zeros(1, np.float32)
    grey, white, fluid = (
        heads.spin_echo(*shares)[0] for shares in ((one, none, none), (none, one, none), (none, none, one))
    )
    # 0.82 (1 - e^(-5000/1330)) e^(-100/95), and so on, by hand.
    assert grey == pytest.approx(0.27953, abs=1e-4)
    assert white == pytest.approx(0.18407, abs=1e-4)
    assert fluid == pytest.approx(0.66748, abs=1e-4)
    assert fluid == pytest.approx(heads.BRIGHTEST)


def test_unknown_domains_and_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DomainNotFound, match="'brain'") as unknown:
        shipped.load_shipped("brain")
    assert "brain-t1" in unknown.value.hint
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda _: None)
    heads._volume.cache_clear()
    with pytest.raises(ExtraMissing, match="nilearn") as missing:
        shipped.load_shipped("brain-t1")
    assert "pip install nilearn" in missing.value.hint
    assert not shipped.available("satellite")


@pytest.mark.slow
def test_crops_of_different_clusters_do_not_overlap() -> None:
    labels = shipped.shipped_clusters("relief")
    places = np.array([p for stripe in maps._stripes("source", "test") for p in maps._places(stripe, 16)])
    assert len(labels) == len(places)
    assert len(set(labels)) > 10
    apart = labels[:, None] != labels[None]
    assert (np.abs(places[:, None] - places[None]).max(axis=2) >= maps.CROP)[apart].all()
    assert np.array_equal(labels, shipped.shipped_clusters("satellite"))


def test_neighbouring_slices_of_a_slab_are_one_cluster() -> None:
    labels, slices = shipped.shipped_clusters("brain-t1"), heads.slab_slices("source", "test")
    for number in set(labels):
        own = [one for one, label in zip(slices, labels, strict=True) if label == number]
        assert own == list(range(own[0], own[0] + heads.NEIGHBOURS))
