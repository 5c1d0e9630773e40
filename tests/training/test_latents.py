"""A model of latents: what a run learns, what its bundle holds, and that it is resumed bit for bit."""

import numpy as np
import pytest

from ddib_fed.data.folder import expand
from ddib_fed.engine.local_party import open_party
from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.training.latents import AUGMENTED
from ddib_fed.training.run import open_run, train
from tests.engine.latent_models import CHANNELS, FACTOR, autoencoder
from tests.training.examples import TINY_NETWORK, tiny_pictures


@pytest.fixture
def encoder(tmp_path, spots):
    """The folder of an autoencoder of the pictures' size, with random weights."""
    made = autoencoder(size=spots.shape[1], channels=spots.shape[0])
    save_bundle(tmp_path / "encoder", made.manifest, made.state)
    return tmp_path / "encoder"


def of_latents(encoder, **change):
    return tiny_pictures(**{"latent": encoder, "network": {**TINY_NETWORK, "patch": 1}, **change})


def test_the_bundle_has_the_autoencoder_and_the_units_of_its_latents(encoder, spots, tmp_path) -> None:
    made = train(of_latents(encoder, predict="flow"), tmp_path / "model", source=spots)
    manifest, side = made.manifest, spots.shape[1] // FACTOR
    assert (manifest.sample_shape, manifest.latents.shape) == (spots.shape, (CHANNELS, side, side))
    assert (manifest.parameterisation, manifest.schedule.name) == ("flow", "flow")
    model = open_party(load_bundle(tmp_path / "model")).model
    units = model.into_units(expand(spots.train)).numpy()
    assert np.abs(units.mean((0, 2, 3))).max() < 0.2
    assert np.abs(units.std((0, 2, 3)) - 1).max() < 0.2
    assert (tmp_path / "model" / "run" / "samples.png").is_file()


def test_latents_of_scans_are_of_changed_pictures_too(encoder, spots, tmp_path) -> None:
    runs = (of_latents(encoder, augment=how) for how in ("none", "scan"))
    plain, scans = (open_run(run, spots, tmp_path, None, None).task(run).source for run in runs)
    gaps = np.abs(scans.train.reshape(AUGMENTED, *plain.train.shape) - plain.train).mean((2, 3, 4))
    assert (gaps.min(axis=1) > 0.01).tolist() == [False] + [True] * (AUGMENTED - 1)
    assert gaps[0].max() == np.abs(scans.held_out - plain.held_out).max() == 0


def test_windows_of_latents_are_refused(encoder, spots, tmp_path) -> None:
    with pytest.raises(SettingsInvalid, match="no windows are cut"):
        train(of_latents(encoder, crop=True, images=tmp_path / "pictures"), tmp_path / "model", source=spots)
