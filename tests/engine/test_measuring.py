"""Bounds hold for the latents that they are of, and not for others; a model's own lie beside its weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddib_fed.engine.gate import (
    FEWEST_PICTURES,
    NAMES,
    beyond,
    measure_allowances,
    picture_allowances,
    profile,
    unmeasurable,
)
from ddib_fed.engine.model import DomainModel
from tests.node.tiny_nodes import tiny_bundle
from tests.runs.tiny_models import pictures, tiny


def rows(count: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    drawn = torch.Generator().manual_seed(seed)
    made = torch.randn(count, 2, 3, 16, 16, generator=drawn)
    return np.stack([profile(scale * z, x).numpy() for z, x in made])


@pytest.fixture(scope="module")
def allowed():
    return picture_allowances(rows(200))


def test_further_latents_of_the_same_kind_pass(allowed):
    """One in a hundred may not, by the promise."""
    refused = [bool(beyond(row, allowed)) for row in rows(300, seed=1)]
    assert np.mean(refused) <= 0.01


@pytest.mark.parametrize("scale", [0.55, 1.8])
def test_noise_of_another_scale_is_refused(allowed, scale):
    """By its figures alone, of 16 x 16 pixels; smaller changes show beside the picture, see SECURITY.md."""
    assert all(beyond(row, allowed) for row in rows(20, seed=2, scale=scale))


def test_what_is_out_of_bounds_is_named_with_its_bound(allowed):
    """On both sides."""
    middle = (np.asarray(allowed.low) + np.asarray(allowed.high)) / 2
    assert not beyond(middle, allowed)
    for bound, step in ((allowed.low[3], -0.01), (allowed.high[3], 0.01)):
        row = middle.copy()
        row[3] = bound
        assert not beyond(row, allowed)
        row[3] = bound + step
        assert beyond(row, allowed) == {NAMES[3]: (pytest.approx(bound + step), bound)}


def test_a_model_of_pictures_is_measured_however_little_time_there_is():
    """Its allowances name its weights; the fewest pictures are encoded in any case, and the cause is said of others."""
    model = DomainModel(tiny("north", size=16))
    some = pictures(80, size=16)
    found = measure_allowances(model, some, command="c")
    assert found.weights_sha256 == model.manifest.weights_sha256
    assert (found.measured, found.checked, found.command) == (64, 16, "c")
    hurried = measure_allowances(model, some, within_s=0.0)
    assert FEWEST_PICTURES <= hurried.measured + hurried.checked < 80
    assert unmeasurable(model, FEWEST_PICTURES) == ""
    assert f"and there are {FEWEST_PICTURES - 1}" in unmeasurable(model, FEWEST_PICTURES - 1)
    assert "points" in unmeasurable(DomainModel(tiny_bundle()), 10_000)
