"""`ddib_fed.Model` on arrays: what it draws, encodes and decodes, where it writes, and what it refuses."""

import numpy as np
import pytest

from ddib_fed import Guidance, Model, Settings
from ddib_fed.errors import AlreadyExists, LatentNotGaussian, ModelNotFound, SettingsInvalid, UsageError
from ddib_fed.models.bundle import save_bundle
from tests.runs.tiny_models import pictures, tiny, tiny_classifier

FEW = Settings(evaluations=6)


def test_encoding_is_the_ode_in_the_models_units_and_decoding_its_way_back() -> None:
    moons = Model.open("moons")
    points = moons.sample(100, seed=3)
    x, latents = moons.units(points), moons.encode(points)
    np.testing.assert_allclose(moons.integrate(x), latents, atol=1e-5)
    np.testing.assert_allclose(
        moons.out_of_units(moons.integrate(latents, back=True)), moons.decode(latents), atol=1e-5
    )
    np.testing.assert_allclose(moons.decode(latents), points, atol=0.1)
    # Near the noise the best guess of x0 is the mean, which is 0 in the model's units: v is the noise.
    np.testing.assert_allclose(moons.velocity(latents, -5.0), 0.0, atol=2.0)


def test_pictures_are_softened_by_a_seed_and_clipped() -> None:
    model, x = Model(tiny("north", soften_sigma=0.05)), pictures(3)
    first, again, other = (model.encode(x, FEW, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    assert np.abs(model.encode(x[:1], FEW, seed=1) - first[:1]).max() < 1e-4
    assert np.abs(model.decode(first, FEW)).max() <= 1.0


def test_classes_are_those_of_the_model_or_of_its_classifier() -> None:
    plain, guide = tiny("plain"), tiny_classifier(3)
    model = Model(plain, classifier=guide)
    assert model.classes.count == 3
    drawn = model.sample(1, FEW, label="2", guidance=Guidance(classifier_scale=1.0))
    assert drawn.shape == (1, *model.shape)
    with pytest.raises(SettingsInvalid, match="has no classes"):
        Model(plain).sample(1, FEW, label="2")


def test_a_model_that_ships_is_not_written_to(tmp_path) -> None:
    moons = Model.open("moons")
    with pytest.raises(UsageError, match="ships with the package"):
        moons.put_steps([])
    with pytest.raises(UsageError, match="ships with the package"):
        moons.measure()
    Model.copy("moons", tmp_path / "moons")
    assert Model.open(tmp_path / "moons").digest == moons.digest
    with pytest.raises(AlreadyExists):
        Model.copy("moons", tmp_path / "moons")
    assert "moons" in [shipped.name for shipped in Model.shipped()]
    with pytest.raises(ModelNotFound):
        Model.open(tmp_path / "none")


def test_what_does_not_fit_is_refused_at_the_latest_when_it_is_used(tmp_path) -> None:
    made = tiny("north")
    save_bundle(tmp_path / "m", made.manifest, made.state)
    with pytest.raises(SettingsInvalid, match="no device"):
        Model.open(tmp_path / "m", device="abacus").sample(1, FEW)
    with pytest.raises(LatentNotGaussian):
        Model.open("moons").decode(np.full((200, 2), 50.0, np.float32))
    model = Model.open(tmp_path / "m")
    model.draw(tmp_path / "drawn", 1, FEW)
    with pytest.raises(AlreadyExists):
        model.draw(tmp_path / "drawn", 1, FEW)


def test_a_model_says_what_its_gate_refuses_at_a_source_and_at_a_target():
    """A source encodes again, and finds what a target cannot: noise that is no latent of these points."""
    moons, settings = Model.open("moons"), Settings(evaluations=12)
    x = moons.units(moons.sample(64))
    honest, noise = (
        moons.integrate(x, settings),
        np.random.default_rng(0).standard_normal(x.shape, np.float32),
    )
    assert moons.refusals(honest, settings, states=x) == [""]
    assert moons.refusals(noise, settings) == [""]
    assert "encoded again" in moons.refusals(noise, settings, states=x)[0]
    assert moons.refusals(np.zeros_like(x), settings) != [""]
