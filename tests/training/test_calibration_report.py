"""What is measured of a calibration: colours nearer, latents as white, round trips as exact, translations nearer."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings
from ddib_fed.engine.local_party import LocalParty, open_party
from ddib_fed.evaluation.bootstrap import resample
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.training.calibrating import (
    Anchors,
    Ways,
    colour_distance,
    compared,
    map_alone,
    paired,
    there_and_back,
    unpaired,
)
from tests.runs.tiny_models import pictures, tiny

UNITS = Normalisation(), Normalisation()
SWAP = ChannelMap(rotation=((0, 1, 0), (1, 0, 0), (0, 0, 1)))
IDENTITY = ChannelMap(rotation=((1, 0, 0), (0, 1, 0), (0, 0, 1)))
FEW = ArraySettings(SolverSettings("unipc", 3, 6))
WEIGHTS = np.array([1.0, 0.3, 0.1], np.float32)[:, None, None]


def skewed(count: int, seed: int) -> np.ndarray:
    return pictures(count, channels=3, seed=seed) * WEIGHTS


def test_a_right_map_brings_the_colours_nearer_and_a_needless_one_farther() -> None:
    """With intervals that tell both from none; the map that changes nothing is no difference."""
    source, target = skewed(60, 1), skewed(60, 2)[:, [1, 0, 2]]
    right = colour_distance(source, target, SWAP, UNITS)
    assert right.verdict == "better"
    assert right.without is not None
    assert right.calibrated.value < 0.3 * right.without.value
    assert right.calibrated.low < right.calibrated.value < right.calibrated.high
    assert colour_distance(source, skewed(60, 2), SWAP, UNITS).verdict == "worse"
    assert colour_distance(source, target, IDENTITY, UNITS).verdict == "no difference"


def test_the_map_alone_goes_from_one_models_units_to_the_others() -> None:
    """With the units of both."""
    units = Normalisation(mean=0.5, std=0.25), Normalisation(mean=-0.25, std=0.5)
    x = np.full((1, 3, 2, 2), 0.5, np.float32) + np.array([0.1, 0.0, -0.1], np.float32)[:, None, None]
    found = map_alone(x, SWAP, units)
    assert found[0, :, 0, 0] == pytest.approx([-0.25, -0.05, -0.45], abs=1e-6)


def test_a_gain_is_of_the_same_pictures() -> None:
    """Its interval is far narrower than those of the two figures, and decides."""
    rng = np.random.default_rng(1)
    without = rng.normal(20, 3, 40)
    row = compared("PSNR, dB", [without + 0.5 + 0.01 * rng.normal(size=40), without], resample(40))
    assert row.gain is not None
    assert row.without is not None
    assert row.gain.value == pytest.approx(row.calibrated.value - row.without.value)
    assert row.gain.high - row.gain.low < 0.1 * (row.calibrated.high - row.calibrated.low)
    assert row.verdict == "better"
    assert compared("PSNR, dB", [without], resample(40)).verdict == ""


@pytest.fixture(scope="module")
def parties() -> tuple[LocalParty, LocalParty]:
    return open_party(tiny("north", seed=1, channels=3)), open_party(tiny("south", seed=2, channels=3))


def test_a_rotation_leaves_whiteness_and_round_trip_as_they_were(
    parties: tuple[LocalParty, LocalParty],
) -> None:
    """Within what the pictures' own spread lets one see: a rotation is another basis for the same paths."""
    north, south = parties
    x = pictures(6, channels=3)
    ways = Ways(south, north, SWAP, north)
    heard: list[tuple[int, int]] = []
    stages = there_and_back(x, ways, FEW, on_progress=lambda *at: heard.append(at))
    assert heard[-1][0] == heard[-1][1]
    assert stages[1] is not None
    assert not np.allclose(stages[0].translated, stages[1].translated, atol=0.01)
    white, back = unpaired(x, stages)
    assert white.without is not None
    assert white.calibrated.value == pytest.approx(white.without.value, rel=0.2)
    assert not white.judges
    assert not back.judges
    alone, none = there_and_back(x, Ways(south, north, SWAP, None), FEW)
    assert none is None
    assert np.array_equal(alone.translated, stages[0].translated)
    assert all(row.without is None for row in unpaired(x, (alone, None)))


def test_translations_are_judged_by_their_truth(parties: tuple[LocalParty, LocalParty]) -> None:
    """Here the truth is the calibrated translation itself."""
    north, south = parties
    x = pictures(6, channels=3)
    stages = there_and_back(x, Ways(south, north, SWAP, north), FEW)
    anchors = Anchors(tuple("abcdef"), x, stages[0].translated)
    rows = {row.name: row for row in paired(stages, x, anchors)}
    assert rows["PSNR, dB"].calibrated.value == 120
    assert {row.verdict for row in rows.values() if row.judges} == {"better"}
    assert [row.name for row in rows.values() if row.judges] == ["PSNR, dB", "SSIM"]
    assert rows["SSIM"].alone is not None
    assert rows["SSIM"].alone.value < 0.9
