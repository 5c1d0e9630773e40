"""What is kept of a picture's structure, and what is called doubtful."""

import numpy as np
import pytest

from ddib_fed.data.shipped import load_shipped
from ddib_fed.evaluation.metrics import (
    doubtful,
    expected,
    structure,
)
from ddib_fed.models.bundle import pretrained
from ddib_fed.models.units import ChannelMap, Normalisation
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


def rotation_between(domains) -> tuple[ChannelMap, tuple[Normalisation, Normalisation]]:
    """The rotation nearest to the pixels of the test pairs, in the units of both models."""
    units = tuple(pretrained(name).manifest.normalisation.plain for name in domains)
    u, v = (
        np.moveaxis(each.apply(load_shipped(name).test), 1, -1).reshape(-1, 3)
        for each, name in zip(units, domains, strict=True)
    )
    left, _, right = np.linalg.svd(v.T.astype(np.float64) @ u)
    return ChannelMap(rotation=tuple(map(tuple, (left @ right).tolist()))), units


@pytest.mark.slow
@pytest.mark.parametrize("domains", [("satellite", "relief")])
def test_land_and_sea_exchanged_is_marked_under_a_calibration_and_true_partners_are_not(domains):
    """True test pictures with each colour put on the other side of the picture's mean: coasts stay where they are."""
    source, target = (load_shipped(name).test for name in domains)
    rotation, units = rotation_between(domains)
    channels = units[1].apply(target)
    exchanged = units[1].undo(2 * channels.mean(axis=(2, 3), keepdims=True) - channels).clip(-1, 1)
    manifest = pretrained(domains[0]).manifest
    expects = expected(manifest, rotation)
    marked = {
        name: doubtful(structure(source, stack, under), manifest.structure).mean()
        for name, stack, under in (
            ("exchanged, none", exchanged, None),
            ("exchanged", exchanged, expects),
            ("true", target, expects),
            ("lost", np.roll(target, 50, axis=0), expects),
        )
    }
    assert marked["exchanged, none"] < 0.3
    assert marked["exchanged"] > 0.95
    assert marked["true"] < 0.15
    assert marked["lost"] > 0.9
