"""The encoder mixed: of the source alone, and known to the gate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ddib_fed.diffusion.plans import ENCODERS, SolverSettings
from ddib_fed.engine.arrays import Asked, translate_array
from ddib_fed.engine.gate import pass_latent
from ddib_fed.engine.local_party import open_party
from ddib_fed.engine.party import Leg
from ddib_fed.errors import LatentNotGaussian, SettingsInvalid
from ddib_fed.guidance import Guidance
from ddib_fed.models.bundle import make_bundle
from ddib_fed.models.units import ChannelMap
from ddib_fed.networks.spectrum import cosines, spectrum_of
from ddib_fed.networks.spectrum import pictures as from_cosines
from tests.runs.tiny_models import pictures, tiny

FEW = SolverSettings("unipc", 3, 6, encoder="mixed")
TURN = ChannelMap(rotation=((0, 1, 0), (-1, 0, 0), (0, 0, 1)))


def spectral(name, seed, soften_sigma=0.0):
    """A tiny model with a mean and a spectrum as pictures have them: coarse structure varies most."""
    plain = tiny(name, seed=seed, channels=3, soften_sigma=soften_sigma, spectral=True)
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.arange(8.0)
    logs = 2.0 - 0.5 * torch.hypot(coarse[:, None], coarse) + 0.3 * torch.randn(3, 8, 8, generator=generator)
    mean = 0.2 * torch.randn(3, 8, 8, generator=generator)
    state = {**plain.state, "spectrum.mean": mean, "spectrum.log_variance": logs}
    return make_bundle(plain.manifest, state)


@pytest.fixture(scope="module")
def north():
    return open_party(spectral("north", 1))


@pytest.fixture(scope="module")
def south():
    return open_party(spectral("south", 2))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_works_on_scenes(encoder):
    """Tile by tile, since the spectrum is that of a tile; the way back undoes it."""
    sides = [open_party(spectral(*each).of_scenes(12, 16)) for each in (("north", 1), ("south", 2))]
    x = pictures(1, channels=3)
    scene = np.tile(x, (1, 1, 2, 2))[:, :, :12, :16]
    asked = Asked(SolverSettings("unipc", 3, 24, encoder=encoder), cycle=True, calibration=TURN)
    found = translate_array(scene, *sides, asked)
    assert found.latent.shape == scene.shape
    assert np.abs(found.back - scene).max() < 0.05


@pytest.mark.slow
def test_a_cycle_comes_back_by_the_same_encoder(north, south):
    """The target encodes its translation by its network, and the source undoes its own encoder."""
    x = 0.8 * pictures(2, channels=3)
    found = translate_array(x, north, south, Asked(replace(FEW, evaluations=24), cycle=True))
    assert np.abs(found.back - x).max() < 0.02
    assert np.abs(found.latent_again - found.latent).max() < 0.02


def test_mixed_lies_half_way(north):
    """Between the estimate of v by the network and that of Gaussian pictures of its mean and spectrum."""
    model = north.model
    x, level = torch.from_numpy(pictures(2, channels=3)), model.bundle.schedule.level(0.5)
    network, mixed = (model.denoiser(encoder=each)(x, level) for each in ENCODERS)
    spectrum = spectrum_of(model.plain.network)
    mean, variance = spectrum.mean, spectrum.log_variance.exp()
    total = level.alpha**2 * variance + level.sigma**2
    # Of Gaussian x0, E[x0 | x] and E[eps | x] are linear in x, frequency by frequency.
    white = cosines(x - level.alpha * mean) / total
    x0 = mean + from_cosines(level.alpha * variance * white)
    linear = level.alpha * from_cosines(level.sigma * white) - level.sigma * x0
    assert torch.allclose(mixed, (network + linear) / 2, atol=1e-5)
    assert float((network - linear).abs().max()) > 0.01


def test_a_source_without_a_spectrum_is_refused(south):
    """The target needs none."""
    plain = open_party(tiny("plain", channels=3))
    with pytest.raises(SettingsInvalid, match="plain has no mean and spectrum") as caught:
        translate_array(pictures(1, channels=3), plain, south, Asked(FEW))
    assert "--encoder" in (caught.value.hint or "")
    few = SolverSettings(evaluations=2, encoder="mixed")
    assert translate_array(pictures(1, channels=3), south, plain, Asked(few, cycle=True)).back is not None


def test_refuses_what_does_not_go_together(north):
    with pytest.raises(SettingsInvalid, match="no encoder 'cubic'"):
        north.model.plan(replace(FEW, encoder="cubic"))
    with pytest.raises(SettingsInvalid, match="cannot be guided"):
        north.model.check_encoder("mixed", Guidance(scale=2.0, encoding=True))


def test_the_gate_is_wider_for_them_and_is_one_still():
    """A flat picture's whitened latent is weak; noise of that strength is none of the network's."""
    weak = 0.45 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert pass_latent(weak, Leg(FEW)).std == pytest.approx(0.45, abs=0.02)
    for latent, encoder in ((weak, "ode"), (0.25 * weak, "mixed"), (torch.ones(1, 3, 32, 32), "mixed")):
        with pytest.raises(LatentNotGaussian):
            pass_latent(latent, Leg(SolverSettings(encoder=encoder)))
