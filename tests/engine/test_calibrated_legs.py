"""The source works in the basis of the calibration, the target in its own; nothing else about a translation changes."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import Asked, draw_samples, interpolate_pictures, translate_array
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.local_party import open_party
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Leg, ToEncode
from ddib_fed.engine.stack import Trajectory
from ddib_fed.errors import SettingsInvalid
from ddib_fed.guidance import Guidance
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
