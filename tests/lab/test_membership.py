"""The attacks find a member where there is no noise, and nobody where there is much of it."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.errors import ShapeMismatch
from ddib_fed.lab.report import area


def test_area_is_the_share_of_pairs_in_order():
    """Ties count half."""
    assert area(np.array([2.0, 3.0]), np.array([0.0, 1.0])) == 1.0
    assert area(np.array([0.0]), np.array([1.0])) == 0.0
    assert area(np.array([1.0, 1.0]), np.array([1.0, 0.0])) == 0.75
    with pytest.raises(ShapeMismatch):
        area(np.array([]), np.array([1.0]))
