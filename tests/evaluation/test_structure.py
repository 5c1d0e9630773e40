"""What is kept of a picture's structure, and what is called doubtful."""

import numpy as np
import pytest

from ddib_fed.data.shipped import load_shipped
from ddib_fed.evaluation.metrics import (
    doubtful,
    structure,
)
from ddib_fed.models.bundle import pretrained
from tests.runs.tiny_models import pictures


def smooth(count, *, channels=1, size=32, seed=0):
    """Pictures with edges at places of their own: random blocks, blown up and moved."""
    coarse = pictures(count, channels=channels, size=size // 4, seed=seed)
    fine = np.kron(coarse, np.ones((1, 1, 4, 4), np.float32)).astype(np.float32)
    moves = np.random.default_rng(seed).integers(0, 4, (count, 2))
    return np.stack([np.roll(x, move, axis=(1, 2)) for x, move in zip(fine, moves, strict=True)])


def test_an_inverted_contrast_keeps_all_structure():
    x = smooth(4)
    kept = structure(x, -0.5 * x)
    assert kept.edge_correlation == pytest.approx(np.ones(4))
    assert (kept.mutual_information > 2).all()


@pytest.mark.slow
@pytest.mark.parametrize("domains", [("satellite", "relief"), ("relief", "satellite")])
def test_shipped_thresholds_catch_lost_pictures_and_leave_true_ones(domains):
    """Of test crops: a picture of another place is marked in over 9 of 10 cases, the true partner in under 1 of 7."""
    source, target = (load_shipped(name).test for name in domains)
    thresholds = pretrained(domains[0]).manifest.structure
    lost = [structure(source, np.roll(target, shift, axis=0)) for shift in (20, 50, 80, 110)]
    assert np.mean([doubtful(each, thresholds) for each in lost]) > 0.9
    assert doubtful(structure(source, target), thresholds).mean() < 1 / 7
