"""What a target publishes: bounds, noise, privacy's arithmetic, and what a reader refuses."""

import json
import math
from statistics import NormalDist

import numpy as np
import pytest

from ddib_fed.calibration.aggregate import (
    MAX_BYTES,
    QUANTUM,
    Aggregate,
    Cells,
    default_cells,
    histogram,
    noise_sigma,
    read_aggregate,
)
from ddib_fed.errors import InputError
from ddib_fed.models.units import Normalisation
from tests.calibration.examples import make_aggregate

UNITS = Normalisation(std=0.5)
SMALL = Cells(channels=3, bins=4)


def pictures(count: int = 200, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).uniform(-1, 1, (count, channels, 4, 4)).astype(np.float32)


def made(**asked: object) -> Aggregate:
    return make_aggregate(pictures(), UNITS, "relief", generator=np.random.default_rng(2), **asked)  # type: ignore[arg-type]


def test_the_histogram_is_that_of_numpy() -> None:
    units = UNITS.apply(pictures())
    expected, _ = np.histogramdd(
        np.clip(np.moveaxis(units, 1, -1).reshape(-1, 3), -2.999, 2.999), bins=4, range=[(-3, 3)] * 3
    )
    found = histogram(units, SMALL)
    assert np.allclose(found, expected / expected.sum())


def test_the_noise_spends_exactly_epsilon_and_delta() -> None:
    """The condition of Balle and Wang with the sensitivity sqrt(2) / M, and less noise than the classical one."""
    phi = NormalDist().cdf
    for epsilon in (0.1, 1.0, 8.0):
        ratio = noise_sigma(1000, epsilon, 1e-5) / (math.sqrt(2) / 1000)
        lost = math.exp(epsilon) * phi(-0.5 / ratio - epsilon * ratio)
        assert phi(0.5 / ratio - epsilon * ratio) - lost == pytest.approx(1e-5, rel=1e-6)
        assert ratio < math.sqrt(2 * math.log(1.25 / 1e-5)) / epsilon


def test_the_noise_that_is_added_has_the_stated_deviation() -> None:
    exact = histogram(UNITS.apply(pictures()), default_cells(3, 200))
    found = made()
    assert np.std(found.shares - exact) == pytest.approx(found.sigma, rel=0.15)
    assert np.isclose((found.shares / QUANTUM) % 1, 0, atol=1e-6).sum() > 0


def test_noise_that_leaves_is_another_each_time() -> None:
    first, second = (make_aggregate(pictures(), UNITS, "relief", cells=SMALL) for _ in range(2))
    assert first.counts != second.counts


@pytest.mark.parametrize(
    "changed",
    [
        {"counted": 199},
        {"epsilon": 9.0},
        {"epsilon": 0.5},  # the noise is that of epsilon 1
        {"sigma": 1e-5},
        {"counts": [0] * 63},
        {"counts": [3_000_000] * 64},
        {"counts": [0.5] * 64},
        {"cells": {"channels": 3, "bins": 17}},
        {"domain": "no domain"},
        {"extra": 1},
    ],
)
def test_a_reader_refuses_what_breaks_the_bounds(changed: dict[str, object]) -> None:
    content = json.loads(made(cells=SMALL).canonical) | changed
    with pytest.raises(InputError, match="no aggregate"):
        read_aggregate(json.dumps(content).encode())


def test_a_reader_refuses_what_is_too_long_or_no_json() -> None:
    with pytest.raises(InputError, match="more than an aggregate may have"):
        read_aggregate(b" " * (MAX_BYTES + 1))
    with pytest.raises(InputError, match="JSON"):
        read_aggregate(b"[" * 5000)


def test_ten_pictures_of_one_patient_have_more_than_ten_times_epsilon() -> None:
    """As docs/calibration.md says: at the same delta, the noise hides a move ten times as far only within 14.4."""
    assert noise_sigma(100, 14.43, 1e-5) == pytest.approx(noise_sigma(1000, 1.0, 1e-5), rel=1e-3)
