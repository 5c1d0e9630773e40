"""Parts of the shipped maps that are larger than the crops that models are trained on."""

import numpy as np
from numpy.typing import NDArray

from ddib_fed.datasets import FILES, STRIPE, _globe, stripes_of


def cut_scene(name: str, stripe: int, rows: tuple[int, int], detail: int = 2) -> NDArray[np.uint8]:
    """A part of a test stripe in its whole width: (3, rows, 75), each times the detail."""
    left, globe = stripes_of("source", "test")[stripe] * STRIPE, _globe(FILES[name], detail)
    found = globe[rows[0] * detail : rows[1] * detail, left * detail : (left + STRIPE) * detail]
    return np.ascontiguousarray(found.transpose(2, 0, 1))
