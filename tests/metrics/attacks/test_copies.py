"""The nearest training picture is found, with the lower bound as without it."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.errors import ShapeMismatch
from ddib_fed.metrics.attacks.copies import TrainingRows, nearest


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
    """Of rows shorter and longer than the bound's axes."""
    others, some = rows(200, length), rows(20, length, seed=1)
    np.testing.assert_allclose(nearest(some, others), by_hand(some, others), atol=2e-3)


@pytest.mark.parametrize("within", [0.05, 0.3, 0.6, 0.9])
def test_the_bound_loses_none_that_is_nearer(within: float) -> None:
    """Farther rows may be given as infinity, never as something nearer."""
    others = rows(300, 64)
    copied = others[:40] + 0.2 * rows(40, 64, seed=2) * np.linspace(0, 1, 40, dtype=np.float32)[:, None]
    some = np.concatenate([copied, rows(40, 64, seed=3)])
    known = TrainingRows(others)
    exact, found = known.nearest(some), known.nearest(some, within)
    assert np.isfinite(found[exact < within]).all()
    there = np.isfinite(found)
    assert (found[there] >= exact[there] - 1e-5).all()
    np.testing.assert_allclose(found[exact < within], exact[exact < within], atol=1e-5)


def test_equal_rows_are_no_reason_to_fail() -> None:
    """All training pictures are the same: the same picture has distance 0, another one is far."""
    same = np.ones((5, 40), np.float32)
    assert TrainingRows(same).nearest(same[:1], 0.1)[0] == 0
    assert TrainingRows(same).nearest(same[:1] * 2, 0.1)[0] == np.inf


@pytest.mark.parametrize("shape", [(0, 4), (4,)])
def test_nothing_is_nearest_to_none(shape: tuple[int, ...]) -> None:
    """Rows must be a table with at least one row."""
    with pytest.raises(ShapeMismatch):
        TrainingRows(np.zeros(shape, np.float32))


def test_rows_of_another_length_are_refused() -> None:
    """Pictures of another model."""
    with pytest.raises(ShapeMismatch):
        TrainingRows(rows(5, 4)).nearest(rows(5, 3))
    with pytest.raises(ShapeMismatch):
        TrainingRows(rows(5, 4)).nearest(rows(5, 4)[:0])
