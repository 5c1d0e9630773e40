"""The nearest training picture is found."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.errors import ShapeMismatch
from ddib_fed.evaluation.metrics import nearest


def rows(count: int, length: int, seed: int = 0) -> np.ndarray:
    """Rows whose numbers go together, as those of pictures do."""
    generator = np.random.default_rng(seed)
    mixed = generator.standard_normal((count, length)) * np.linspace(1, 0.02, length)
    turned = np.linalg.qr(np.random.default_rng(9).standard_normal((length, length)))[0]
    return (mixed @ turned).astype(np.float32)


def by_hand(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    apart = np.linalg.norm(some[:, None].astype(float) - others[None], axis=2).min(1)
    return apart / np.linalg.norm(some - others.mean(0), axis=1)


@pytest.mark.parametrize("length", [3, 31, 64])
def test_it_is_the_distance_over_that_to_the_mean(length: int) -> None:
    others, some = rows(200, length), rows(20, length, seed=1)
    np.testing.assert_allclose(nearest(some, others), by_hand(some, others), atol=2e-3)


def test_equal_rows_are_no_reason_to_fail() -> None:
    """All training pictures are the same: the same picture has distance 0, another one is far."""
    same = np.ones((5, 40), np.float32)
    assert nearest(same[:1], same)[0] == 0
    assert nearest(same[:1] * 2, same)[0] == pytest.approx(1)


@pytest.mark.parametrize(
    ("some", "others"), [((1, 4), (0, 4)), ((0, 4), (2, 4)), ((1, 3), (2, 4)), ((4,), (2, 4))]
)
def test_rows_that_cannot_be_compared_are_refused(some: tuple[int, ...], others: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch):
        nearest(np.zeros(some, np.float32), np.zeros(others, np.float32))
