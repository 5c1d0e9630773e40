"""A party of latents: an autoencoder before and behind the ODE."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from ddib_fed.diffusion.plans import SolverSettings, decode, encode
from ddib_fed.engine import model as engine_model
from ddib_fed.engine.batcher import Recipe
from ddib_fed.engine.local_party import LocalParty, open_party
from ddib_fed.engine.party import Leg, ToDecode, ToEncode
from ddib_fed.errors import BundleInvalid
from ddib_fed.latent import Latent
from ddib_fed.models.bundle import load_bundle
from tests.engine.latent_models import CHANNELS, FACTOR, SIZE, autoencoder, latent_model, saved

SETTINGS = SolverSettings(
    evaluations=4, depth=0.9
)  # of less depth no latent is refused: the weights are random


def pictures(count: int, size: int = SIZE, dims: int = 2) -> np.ndarray:
    generator = torch.Generator().manual_seed(5)
    return (0.5 * torch.randn(count, 1, *(size,) * dims, generator=generator)).clamp(-1, 1).numpy()


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("beside", [False, True])
def test_the_ode_runs_on_the_latents_of_the_autoencoder(dims: int, beside: bool) -> None:
    size = SIZE if dims == 2 else 16
    bundle = latent_model(encoder=autoencoder(dims=dims, size=size), size=size)
    party = (
        LocalParty(open_party(bundle).model, Recipe(bundle, merge_pixels=512).warm())
        if beside
        else open_party(bundle)
    )
    samples, model = pictures(1, size, dims), bundle.manifest
    encoded = party.encode(ToEncode(0, samples), Leg(SETTINGS))
    assert encoded.latent.data.shape == (1, CHANNELS, *(size // FACTOR,) * dims)
    network, units = bundle.autoencoder.network(), model.latents.normalisation
    z = units.apply(network.encode(torch.from_numpy(model.normalisation.apply(samples))).numpy())
    by_hand = replace(SETTINGS, grid="uniform-lambda") if dims == 3 else SETTINGS  # as of volumes
    expected = encode(torch.from_numpy(z), bundle.denoiser(), bundle.schedule, by_hand)
    np.testing.assert_allclose(encoded.latent.data, expected.numpy(), atol=1e-5)
    decoded = party.decode(ToDecode(0, encoded.latent), replace(Leg(SETTINGS), round_trip=True))
    back = decode(expected, bundle.denoiser(), bundle.schedule, by_hand).numpy()
    assert decoded.samples.shape == samples.shape
    wanted = model.normalisation.undo(network.decode(torch.from_numpy(units.undo(back))).numpy())
    np.testing.assert_allclose(decoded.samples, wanted, atol=2e-5)
    # What was decoded is encoded again as latents: the autoencoder has no part in it.
    again = encode(torch.from_numpy(back), bundle.denoiser(), bundle.schedule, by_hand)
    np.testing.assert_allclose(decoded.again.latent.data, again.numpy(), atol=1e-4)
    party.close()


def test_softening_is_of_the_latents_and_follows_from_the_picture() -> None:
    party, samples, seen = open_party(latent_model(soften_sigma=0.2)), pictures(1), []

    def noise(given: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        seen.append((given, shape))
        return np.ones(shape, np.float32)

    soft = party.encode(ToEncode(0, samples, noise=noise), Leg(SETTINGS)).latent.data
    assert seen[0][1] == (1, CHANNELS, SIZE // FACTOR, SIZE // FACTOR)
    np.testing.assert_array_equal(seen[0][0], samples)
    plain = party.encode(ToEncode(0, samples), Leg(SETTINGS, soften=0.0)).latent.data
    assert np.abs(soft - plain).mean() > 0.05


def test_a_large_picture_is_encoded_and_decoded_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = latent_model().of_scenes(90, 130)
    model, samples = open_party(bundle).model, pictures(1, 160)[..., :90, :130]
    assert model.latent_shape == (CHANNELS, 23, 33)
    whole = model.into_units(samples)
    back = model.out_of_units(whole)
    monkeypatch.setattr(engine_model, "WHOLE", 32 * 32)
    largest = []
    hook = register_module_forward_pre_hook(lambda _, given: largest.append(given[0].shape[2:].numel()))
    tiled = model.into_units(samples)
    hook.remove()
    assert max(largest) <= 40 * 40  # a layer never sees the whole, so that memory has a bound
    assert whole.shape == tiled.shape == (1, CHANNELS, 23, 33)
    assert back.shape == model.out_of_units(tiled).shape == samples.shape
    # Normalisation over a tile is not that over the picture, so they are alike and not equal.
    assert np.corrcoef(whole.flatten(), tiled.flatten())[0, 1] > 0.9
    party = open_party(bundle)
    found = party.encode(ToEncode(0, samples), Leg(SETTINGS))
    assert party.decode(ToDecode(0, found.latent), Leg(SETTINGS)).samples.shape == samples.shape


def test_a_bundle_holds_the_autoencoder_that_its_manifest_names(tmp_path) -> None:
    bundle = latent_model()
    folder = saved(bundle, tmp_path / "north")
    found = load_bundle(folder)
    assert found.digest == bundle.digest
    z = Latent.from_array(np.random.default_rng(0).standard_normal((1, CHANNELS, 8, 8)).astype(np.float32))
    one, other = (open_party(each).decode(ToDecode(0, z), Leg(SETTINGS)).samples for each in (bundle, found))
    np.testing.assert_array_equal(one, other)
    foreign = saved(latent_model(encoder=autoencoder(seed=9)), tmp_path / "foreign")
    for name in ("autoencoder.json", "autoencoder.safetensors"):
        (folder / name).write_bytes((foreign / name).read_bytes())
    with pytest.raises(BundleInvalid, match="another autoencoder than the model"):
        load_bundle(folder)
    for name in ("autoencoder.json", "autoencoder.safetensors"):
        (folder / name).unlink()
    with pytest.raises(BundleInvalid, match="its autoencoder is missing"):
        load_bundle(folder)
