"""Flicker tells slices that jump from slices that change steadily."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.formats.intensity import measure_flicker, measure_seams

STEADY = np.linspace(0, 100, 12)[:, None, None, None] + np.mgrid[0:8, 0:8][1][None, :, :, None]


def test_a_steady_change_does_not_flicker_and_jumps_do():
    jumping = STEADY + np.where(np.arange(12) % 2, 10, -10)[:, None, None, None]
    found = measure_flicker(STEADY, jumping)
    assert found is not None
    assert found.record["source"] < 1e-6
    width = float(np.ptp(jumping))
    assert found.record["translation"] == pytest.approx(20 / width, abs=1e-6)
    assert found.record["brightness_translation"] == pytest.approx(20 / width, abs=1e-6)


def test_a_step_at_an_edge_is_seen_there_alone():
    picture = np.random.default_rng(0).normal(size=(32, 32, 1))
    stepped = picture.copy()
    stepped[16:] += 20
    at, beside = (measure_seams(picture, stepped, [row], []) for row in (16, 15))
    assert at is not None
    assert beside is not None
    assert at.record["translation"] > 10
    assert beside.record["translation"] < 1.5
