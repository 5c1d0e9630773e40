"""Learned steps in a translation: each side follows its own, in a calibration's basis too, and scenes are refused."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.grids import make_grid
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.solvers import unipc_in
from ddib_fed.engine.arrays import Asked, translate_array
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.local_party import open_party
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.stack import Trajectory
from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.sidecars import Tuned
from tests.engine.test_calibrated_legs import turned
from tests.models.test_tuned import leg
from tests.runs.tiny_models import pictures, tiny

LEARNED = SolverSettings(evaluations=6, grid="learned")
SOFT = 0.1


def tuned(bundle, name="uniform-lambda"):
    """With whitened steps of order 2 in both directions, on a named grid."""
    legs = []
    for stage, sigma in (("encode", SOFT), ("decode", 0.0)):
        start = -math.log(sigma) if sigma else None
        lams = tuple(level.lam for level in make_grid(bundle.schedule, name, 6, lambda_max=start).levels)
        legs.append(leg(stage, 6, sigma=sigma, order=2, coordinates="spectrum", lams=lams))
    weights = bundle.manifest.weights_sha256
    return replace(bundle, tuned=Tuned(weights_sha256=weights, legs=tuple(legs)))


def spectral(name, seed):
    return tiny(name, seed=seed, channels=3, spectral=True, soften_sigma=SOFT)


@pytest.fixture(scope="module")
def north():
    return open_party(tuned(spectral("north", 1)))


@pytest.fixture(scope="module")
def south():
    return open_party(tuned(spectral("south", 2), "karras"))


def test_each_side_follows_the_steps_of_its_own_model(north, south):
    """The latent decoded by hand along the target's steps is the translation; there and back, four legs."""
    x = 0.9 * pictures(2, channels=3)
    found = translate_array(x, north, south, Asked(LEARNED, cycle=True))
    model = south.model
    grid = make_grid(model.bundle.schedule, "karras", 6).reversed()
    solver = unipc_in(model.frame(), torch.from_numpy(found.latent.copy()), grid, order=2)
    by_hand = model.denormalise(integrate(solver, model.denoiser()).numpy())
    assert np.allclose(found.translated, np.clip(by_hand, -1, 1), atol=1e-5)
    assert found.back.shape == x.shape


def test_under_a_calibration_the_latent_is_the_plain_one_rotated(north, south):
    """Whitening turns with the channels."""
    x, calibration = pictures(2, channels=3), turned()
    plain, turned_ = (
        translate_array(x, north, south, Asked(LEARNED, calibration=each)) for each in (None, calibration)
    )
    assert np.allclose(turned_.latent, calibration.apply(plain.latent), atol=1e-4)


def test_whitened_steps_are_merged_with_other_work(north):
    """The node's engine asks the network for all at once, and each gets what it gets alone."""
    model = north.model
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    batcher = Batcher(model, rows=8)
    try:
        others = [Trajectory("decode", z, settings) for settings in (LEARNED, SolverSettings(evaluations=6))]
        found = [batcher.submit(each) for each in [*others, *others]]
        ends = [each.result(timeout=60) for each in found]
    finally:
        batcher.close()
    alone = integrate(others[0].on(model).solver, model.denoiser())
    assert torch.allclose(ends[0], alone, atol=1e-4)
    assert torch.allclose(ends[2], alone, atol=1e-4)
    assert not torch.allclose(ends[1], alone, atol=1e-2)


def test_scenes_in_tiles_are_refused():
    """Whitening is of pictures of the model's own size."""
    model = DomainModel(tuned(spectral("north", 1)).of_scenes(12, 12))
    with pytest.raises(SettingsInvalid, match="pictures of the model's own size"):
        Trajectory("decode", torch.zeros(1, 3, 12, 12), LEARNED).on(model)


def test_a_target_without_steps_is_refused_before_anything_is_encoded(north):
    """The error names the target's model."""
    bare = open_party(spectral("south", 2))
    with pytest.raises(SettingsInvalid, match="south has learned steps of no evaluations"):
        translate_array(pictures(1, channels=3), north, bare, Asked(LEARNED))
