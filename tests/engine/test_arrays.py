"""Pictures cross the bridge alike in any batch, in the units of each model, for the class that was asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings, draw_samples, interpolate_pictures
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.local_party import LocalParty, open_party
from ddib_fed.errors import LatentNotGaussian, ShapeMismatch
from ddib_fed.models.units import Normalisation
from tests.engine.stages import translate_array
from tests.runs.tiny_models import pictures, tiny

FEW = SolverSettings("unipc", 3, 6)


@pytest.fixture(scope="module")
def north():
    return open_party(tiny("north", seed=1, soften_sigma=0.02))


@pytest.fixture(scope="module")
def south():
    return open_party(tiny("south", seed=2, soften_sigma=0.1))


def in_twos(*parties):
    return [LocalParty(party.model, Batcher(party.model, rows=2, beside=False)) for party in parties]


@pytest.mark.slow
def test_a_cycle_has_every_stage_and_comes_back(north, south):
    """Without softening the way back undoes the way there; the translation is another picture."""
    x = 0.9 * pictures(3)
    found = translate_array(x, north, south, ArraySettings(SolverSettings(), soften=0.0, cycle=True))
    assert np.allclose(found.back, x, atol=5e-3)
    assert np.abs(found.translated - x).max() > 0.05
    assert found.latent.shape == found.latent_again.shape == x.shape
    one_way = translate_array(x, north, south, ArraySettings(SolverSettings(), soften=0.0))
    assert one_way.back is None
    assert np.array_equal(one_way.translated, found.translated)


@pytest.mark.slow
def test_batches_do_not_show(north, south):
    """Nor do neighbours: softening's noise belongs to the picture."""
    x = pictures(5)
    whole = translate_array(x, north, south, ArraySettings(FEW, cycle=True))
    parts = translate_array(x, *in_twos(north, south), ArraySettings(FEW, cycle=True))
    alone = translate_array(x[3:4], north, south, ArraySettings(FEW, cycle=True))
    for stage in ("latent", "translated", "latent_again", "back"):
        assert np.allclose(getattr(whole, stage), getattr(parts, stage), atol=1e-4), stage
        assert np.allclose(getattr(whole, stage)[3:4], getattr(alone, stage), atol=1e-4), stage


def test_the_source_softens_by_its_own_level_unless_told(north, south):
    """The models' manifests hold 0.02 and 0.1; on the way back nothing is softened."""
    x = pictures(1)
    own, same, other = (
        translate_array(x, north, south, ArraySettings(FEW, cycle=True, soften=sigma))
        for sigma in (None, 0.02, 0.05)
    )
    assert np.array_equal(own.latent, same.latent)
    assert np.abs(own.latent - other.latent).max() > 1e-3
    assert np.abs(own.latent_again - own.latent).mean() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("colours", ["opponent"])
def test_each_models_units_stay_inside(colours):
    """Numbers for each channel, other colours: a model bridged to itself in other units moves as the plain one."""
    x = 0.5 * pictures(2, channels=3)
    # Lightness lies around 0.7: what the model is given must be centred, or its latent is no noise.
    light = 0.7 if colours == "opponent" else 0.1
    scaled = Normalisation(mean=(light, -0.2, 0.0), std=(0.5, 0.25, 2.0), colours=colours)
    plain = open_party(tiny(channels=3))
    moved = open_party(tiny(channels=3, normalisation=scaled))
    inner = translate_array(scaled.apply(x), plain, plain, ArraySettings(FEW, soften=0.0))
    outer = translate_array(x, moved, moved, ArraySettings(FEW, soften=0.0))
    assert np.allclose(inner.latent, outer.latent, atol=1e-5)


def test_every_evaluation_is_told_once(south):
    told = []
    draw_samples(*in_twos(south), 3, ArraySettings(FEW), on_progress=lambda *now: told.append(now))
    assert told == [(done, 18) for done in range(1, 19)]


def test_samples_are_numbered(north):
    """The first five of a seed are the same however many are drawn, and in whatever batches."""
    many = draw_samples(north, 7, ArraySettings(FEW, seed=3))
    assert np.abs(many - draw_samples(north, 7, ArraySettings(FEW, seed=4))).max() > 1e-3
    assert np.allclose(many[:5], draw_samples(*in_twos(north), 5, ArraySettings(FEW, seed=3)), atol=1e-4)
    assert np.allclose(many[4:6], draw_samples(north, 2, ArraySettings(FEW, seed=3), first=4), atol=1e-4)
    assert np.abs(many[0] - many[1]).max() > 0.1


@pytest.mark.slow
def test_the_way_between_two_pictures_begins_and_ends_with_them(north):
    """Within one model; the middle is neither."""
    pair = 0.9 * pictures(2)
    found = interpolate_pictures(pair, north, north, [0.0, 0.5, 1.0], ArraySettings(soften=0.0))
    assert np.allclose(found[[0, 2]], pair, atol=5e-3)
    assert np.abs(found[1] - pair).max() > 0.1


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (0, 1, 8, 8)])
def test_refuses_pictures_of_another_shape(north, south, shape):
    with pytest.raises(ShapeMismatch):
        translate_array(np.zeros(shape, np.float32), north, south, ArraySettings(FEW))


def one_flat(count=1):
    x = pictures(count)
    x[0] = 2.5
    return x


def test_a_picture_whose_latent_is_no_noise_is_refused_as_by_a_node(north, south):
    x = one_flat(3)
    with pytest.raises(LatentNotGaussian):
        translate_array(x, north, south, ArraySettings(FEW))


def test_a_latent_of_less_depth_is_never_refused(north, south):
    """It still holds some of the picture, and is no noise: so do nodes."""
    x = one_flat()
    assert (
        len(translate_array(x, north, south, ArraySettings(replace(FEW, depth=0.3), soften=0.0)).latent) == 1
    )
