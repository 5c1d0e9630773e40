"""Changes of training pictures as another scanner makes them."""

import numpy as np

from ddib_fed.training.pictures import scan_like


def test_a_picture_is_changed_by_its_number_alone_and_a_mask_stays_one() -> None:
    """A resumed run sees the same pictures, however a step is cut; black stays black and nothing is saturated."""
    x = np.full((4, 1, 32, 32), -1.0, np.float32)
    x[:, :, 8:24, 8:24] = np.random.default_rng(0).uniform(-0.5, 0.9, (4, 1, 16, 16))
    whole = scan_like(x, seed=3, step=7, first=0)
    np.testing.assert_array_equal(whole[2:], scan_like(x[2:], seed=3, step=7, first=2))
    assert (np.abs(whole - x).mean((1, 2, 3)) > 0.02).all()
    assert (np.abs(whole - scan_like(x, seed=3, step=8, first=0)).mean((1, 2, 3)) > 0.02).all()
    assert (whole[:, :, :3] == -1.0).all()
    assert (whole == 1.0).mean() < 0.01
