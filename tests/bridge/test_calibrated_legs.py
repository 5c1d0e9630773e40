"""The source works in the basis of the calibration, the target in its own; nothing else about a translation changes."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.gaussianity import measure
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import Asked, draw_samples, interpolate_pictures, translate_array
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.local_party import open_party
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Leg, ToEncode
from ddib_fed.engine.stack import Trajectory
from ddib_fed.errors import SettingsInvalid
from ddib_fed.guidance import UNGUIDED, Guidance
from ddib_fed.models.units import ChannelMap
from tests.node.tiny_nodes import gaussian, tiny_bundle
from tests.runs.tiny_models import pictures, tiny

FEW = SolverSettings("unipc", 3, 6)
WITHIN = 2e-5
"""Of a number of a latent: float32, rotated twice in each evaluation."""


def turned(seed=0, sign=1.0):
    """A random rotation of three channels; with sign -1 it mirrors, too."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    q[:, 0] *= sign * np.linalg.det(q)
    return ChannelMap(rotation=tuple(map(tuple, q.tolist())))


@pytest.fixture(scope="module")
def north():
    return open_party(tiny("north", seed=1, channels=3, soften_sigma=0.02))


@pytest.fixture(scope="module")
def south():
    return open_party(tiny("south", seed=2, channels=3))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_calibrated_latent_is_the_plain_one_rotated(north, south, sign):
    """With its softening; and what the target makes of it is what it makes of that latent, in its own basis."""
    x, calibration = pictures(2, channels=3), turned(sign=sign)
    plain, calibrated = (
        translate_array(x, north, south, Asked(FEW, calibration=each)) for each in (None, calibration)
    )
    assert np.allclose(calibrated.latent, calibration.apply(plain.latent), atol=WITHIN)
    assert np.abs(calibrated.latent - plain.latent).max() > 0.1
    model = south.model
    again = integrate(model.plan(FEW).decoder(torch.from_numpy(calibrated.latent.copy())), model.plain)
    assert np.allclose(calibrated.translated, np.clip(model.denormalise(again.numpy()), -1, 1), atol=1e-5)


@pytest.mark.slow
def test_a_round_trip_is_as_exact_as_without(north, south):
    x = 0.9 * pictures(2, channels=3)
    solver = SolverSettings(evaluations=24)
    errors = [
        np.abs(
            translate_array(x, north, south, Asked(solver, soften=0.0, cycle=True, calibration=each)).back - x
        ).max()
        for each in (None, turned())
    ]
    assert errors[1] < 2 * errors[0] + 1e-4


def test_a_way_back_ends_in_the_units_of_the_data(north):
    """A model bridged to itself by the identity is the plain one; by a rotation it is not."""
    x = 0.9 * pictures(1, channels=3)
    identity = ChannelMap(rotation=((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    plain, same, other = (
        translate_array(x, north, north, Asked(FEW, soften=0.0, cycle=True, calibration=each))
        for each in (None, identity, turned())
    )
    assert np.array_equal(plain.back, same.back)
    assert np.abs(plain.translated - other.translated).max() > 0.05


def test_white_noise_stays_white_noise(north, south):
    x = pictures(8, channels=3)
    plain, calibrated = (
        translate_array(x, north, south, Asked(FEW, calibration=each)).latent for each in (None, turned())
    )
    before, after = (measure(torch.from_numpy(latent)) for latent in (plain, calibrated))
    assert after.std == pytest.approx(before.std, abs=1e-3)
    assert after.correlation == pytest.approx(before.correlation, abs=0.02)


def test_a_single_channel_is_mirrored_or_not():
    north, south = (open_party(tiny(name, seed=seed)) for seed, name in enumerate(("north", "south")))
    x = pictures(2)
    plain, mirrored = (
        translate_array(x, north, south, Asked(FEW, calibration=each)).latent
        for each in (None, ChannelMap(rotation=((-1.0,),)))
    )
    assert np.allclose(plain, -mirrored, atol=1e-6)


def test_samples_and_the_ends_of_an_interpolation_are_the_targets_own(north, south):
    """A calibration is the source's: who decodes does so in its own basis."""
    asked = Asked(FEW, calibration=turned())
    assert np.array_equal(draw_samples(south, 2, asked), draw_samples(south, 2, Asked(FEW)))
    x = pictures(2, channels=3)
    ends = interpolate_pictures(x, north, south, (0.0, 1.0), asked)
    assert np.allclose(ends, translate_array(x, north, south, asked).translated, atol=1e-4)


@pytest.mark.slow
def test_guidance_is_inside_the_rotation():
    """What guides, and what clips, sees the model's own basis."""
    model = DomainModel(tiny(channels=3, num_classes=3, class_dropout=True))
    guidance, calibration = Guidance(scale=2.0, clip=True), turned()
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    level = next(model.plan(FEW).decoder(x)).level
    label = model.condition(1, 1, guidance)
    with torch.no_grad():
        plain = model.denoiser(guidance)(model.out_of_basis(x, calibration), level, label)
        found = model.denoiser(guidance, calibration)(x, level, label)
    torch.testing.assert_close(found, model.into_basis(plain, calibration), atol=1e-5, rtol=1e-5)


def test_one_calibration_is_one_denoiser(north):
    """The batcher merges queries of the same object alone: an equal map from another contract shares it."""
    model = north.model
    assert model.denoiser(UNGUIDED, turned()) is model.denoiser(UNGUIDED, turned())
    assert model.denoiser(UNGUIDED, turned()) is not model.denoiser(UNGUIDED, turned(1))
    assert model.denoiser() is model.plain


def test_calibrated_legs_share_network_calls(north):
    model, calibration = north.model, turned()
    batcher = Batcher(model, rows=64)
    entered, go_on = threading.Event(), threading.Event()

    def hold(step, of):
        if step == 1:
            entered.set()
            go_on.wait(10)

    def submit(seed, on_step=None):
        x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
        return batcher.submit(Trajectory("encode", x, FEW, calibration=calibration), on_step=on_step)

    try:
        first = submit(0, hold)
        assert entered.wait(10)
        rest = [submit(seed) for seed in (1, 2, 3)]
        go_on.set()
        found = [future.result(10) for future in (first, *rest)]
        alone = submit(3).result(10)
        assert batcher.counters["calls"] <= 6 + 7
    finally:
        batcher.close()
    torch.testing.assert_close(found[-1], alone, atol=1e-4, rtol=1e-4)


def test_a_map_that_is_no_rotation_is_refused_at_the_leg():
    curve = ChannelMap(quadratic=((0.0, 1.0, 0.1),))
    for asked in (lambda: Leg(calibration=curve), Asked(calibration=curve).leg):
        with pytest.raises(SettingsInvalid, match="only a rotation") as refused:
            asked()
        assert "--calibration" in refused.value.hint


def test_points_and_other_channels_have_no_calibration(north):
    points = open_party(tiny_bundle())
    with pytest.raises(SettingsInvalid, match="model of points"):
        translate_array(gaussian(4), points, points, Asked(FEW, calibration=turned()))
    grey = ChannelMap(rotation=((-1.0,),))
    with pytest.raises(SettingsInvalid, match="1 channels, and pictures of north have 3"):
        translate_array(pictures(1, channels=3), north, north, Asked(FEW, calibration=grey))
    with pytest.raises(SettingsInvalid, match="model of points"):
        points.encode(ToEncode(0, gaussian(4)), Leg(calibration=turned()))
