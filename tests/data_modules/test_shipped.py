"""The shipped domains: whose ground is whose, and what the pairs show."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from ddib_fed.data import shipped

pictures_of = cache(shipped.load_shipped)
PARTS = ("train", "held_out", "test")


@pytest.fixture(autouse=True, scope="module")
def few_sheets():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shipped, "SHEETS", 64)
        yield


@pytest.mark.slow
def test_no_stripe_has_two_owners_and_no_crop_leaves_its_stripe() -> None:
    owned = [
        set(shipped.stripes_of(side, part))
        for side, part in (
            ("source", "train"),
            ("source", "held_out"),
            ("target", "train"),
            ("target", "held_out"),
            ("source", "test"),
        )
    ]
    assert sum(map(len, owned)) == len(set.union(*owned)) == shipped.MAP_SIZE[0] // shipped.STRIPE
    for stripe in owned[4]:
        for _, x in shipped.coasts_in(stripe, shipped.TEST_STEP):
            assert stripe * shipped.STRIPE <= x <= (stripe + 1) * shipped.STRIPE - shipped.CROP


def test_a_sheet_sees_its_own_slab_alone() -> None:
    """Whatever the other slices hold, test slices among them; and no two sheets are alike."""
    volume = np.random.default_rng(0).random((160, 30, 160), dtype=np.float32)
    slab = range(12, 17)
    others = volume.copy()
    others[:, [n for n in range(30) if n not in slab]] = 7.0
    sheets = [shipped._sheet(others, slab, np.random.default_rng(seed)) for seed in (1, 2)]
    assert np.allclose(sheets[0], shipped._sheet(volume, slab, np.random.default_rng(1)), atol=1e-4)
    assert not np.allclose(sheets[0], sheets[1], atol=0.1)
