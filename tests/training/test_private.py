"""DP-SGD: gradients of single samples, the key, the accounts, and private runs from data to manifest."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ddib_fed.errors import SettingsInvalid, StateConflict
from ddib_fed.models.bundle import load_bundle
from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import MlpConfig, UNetConfig
from ddib_fed.training import private as private_module
from ddib_fed.training.config import PrivateTrainConfig
from ddib_fed.training.private import (
    CLIP,
    DRAWS,
    KEY_FILE,
    Draws,
    RunKey,
    SampleGradients,
    add_clipped,
    key_of_run,
    least_noise,
    open_private,
    refuse_layers,
    spent_epsilon,
)
from ddib_fed.training.run import latest_checkpoint, train
from tests.networks.picture_networks import filled
from tests.training.examples import TINY_NETWORK, spots_source, stop_at

pytest.importorskip("opacus")


@pytest.fixture(autouse=True, scope="module")
def accounts():
    """The accountant takes seconds: each account is made once."""
    with pytest.MonkeyPatch.context() as patch:
        for account in (least_noise, spent_epsilon):
            patch.setattr(private_module, account.__name__, cache(account))
        yield


NETWORKS = {
    "points": (MlpConfig(width=16, blocks=2, embedding=8, features=4), (2,)),
    "pictures": (
        UNetConfig(
            image_size=16, out_channels=3, model_channels=32, channel_mult=(1, 2), num_res_blocks=1, norm_groups=8,
            attention_resolutions=(2,), use_scale_shift_norm=True, patch=2, global_mean=True, num_classes=2,
        ),
        (3, 16, 16),
    ),
}  # fmt: skip


def network_of(name):
    """With weights in the layers that start at zero, so that every gradient is something."""
    torch.manual_seed(0)
    return filled(build_network(NETWORKS[name][0])).train()


def draws_of(name, count=3, draws=2):
    shape = NETWORKS[name][1]
    labels = None
    if getattr(NETWORKS[name][0], "num_classes", None):
        labels = torch.arange(count * draws).reshape(count, draws) % 2
    full = (count, draws, *shape)
    return Draws(torch.randn(full), torch.rand(count, draws), torch.randn(full), labels)


@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_the_gradients_of_each_sample_alone(name):
    """By the ordinary backward pass, one sample at a time, of the mean over its draws."""
    network, draws = network_of(name), draws_of(name)
    gradients, losses = SampleGradients(network)(draws)
    for i in range(3):
        extra = {} if draws.labels is None else {"y": draws.labels[i]}
        network.zero_grad()
        loss = (network(draws.x[i], draws.times[i], **extra) - draws.target[i]).square().mean()
        loss.backward()
        assert torch.allclose(losses[i], loss, rtol=1e-4)
        largest = max(float(parameter.grad.abs().max()) for parameter in network.parameters())
        for parameter, found in zip(network.parameters(), gradients, strict=True):
            assert torch.allclose(parameter.grad, found[i], rtol=1e-3, atol=1e-5 * largest)


def sums_of(network, *some):
    sums = [torch.zeros_like(parameter) for parameter in network.parameters()]
    for draws in some:
        add_clipped(sums, SampleGradients(network)(draws)[0])
    return torch.cat([each.reshape(-1) for each in sums])


@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_no_sample_counts_for_more_than_the_clip(scale):
    """Also one whose gradient is larger than a float32's square root, alone or beside others."""
    network, draws = network_of("points"), draws_of("points", count=8)
    one = draws_of("points", count=1)
    planted = Draws(one.x, one.times, one.target * scale)
    assert float(sums_of(network, planted).norm()) <= CLIP * (1 + 1e-5)
    moved = sums_of(network, draws, planted) - sums_of(network, draws)
    assert float(moved.norm()) <= CLIP * (1 + 1e-3)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(4), nn.Dropout(0.1), nn.InstanceNorm2d(4, track_running_stats=True)]
)
def test_layers_that_mix_samples_are_refused(layer):
    refuse_layers(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0), nn.GroupNorm(1, 2)))
    with pytest.raises(SettingsInvalid, match=type(layer).__name__):
        refuse_layers(nn.Sequential(nn.Linear(2, 2), layer))


KEY = RunKey(bytes(32))


def test_each_sample_takes_part_with_the_rate_and_on_its_own():
    """The size of a Poisson sample varies as that of independent coins."""
    sizes = [len(KEY.chosen(step, 1_000, 0.1)) for step in range(400)]
    assert np.mean(sizes) == pytest.approx(100, abs=2)
    assert np.std(sizes) == pytest.approx(np.sqrt(90), rel=0.15)
    assert len(KEY.chosen(0, 10, 1.0)) == 10


def test_a_key_is_made_once_and_kept_private(tmp_path):
    made = key_of_run(tmp_path, begun=False)
    assert (tmp_path / KEY_FILE).stat().st_mode & 0o777 == 0o600
    assert key_of_run(tmp_path, begun=True) == made
    assert made.secret.hex() not in repr(made)


@pytest.mark.parametrize("there", [None, b"short"])
def test_a_run_that_has_begun_needs_its_key(tmp_path, there):
    """Other noise on the same steps would spend twice."""
    if there is not None:
        (tmp_path / KEY_FILE).write_bytes(there)
    with pytest.raises(StateConflict, match=KEY_FILE.replace(".", r"\.")):
        key_of_run(tmp_path, begun=True)


def test_what_is_spent_is_what_opacus_says_of_the_same_steps():
    from opacus.accountants import PRVAccountant

    noise, own = least_noise(epsilon=3.0, delta=1e-4, rate=0.1, steps=50), PRVAccountant()
    for _ in range(50):
        own.step(noise_multiplier=noise, sample_rate=0.1)
    spent = spent_epsilon(noise=noise, delta=1e-4, rate=0.1, steps=50)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert spent == own.get_epsilon(1e-4)
    assert 2.9 < spent <= 3.0


@pytest.fixture
def points(tmp_path):
    path = tmp_path / "points.npy"
    np.save(path, np.random.default_rng(0).normal(3, 2, (600, 2)).astype(np.float32))
    return path


@pytest.fixture
def private(points):
    """A private run of a second."""
    return PrivateTrainConfig(
        data=points, steps=24, batch=54, warmup=5, width=16, blocks=1, checkpoint_every=7, samples=200, epsilon=8.0
    )  # fmt: skip


@pytest.mark.slow
def test_a_run_says_what_it_spent(private, tmp_path):
    """In the manifest, which survives a round trip; and what it plans, before it takes a step."""
    said = []
    made = train(private, tmp_path / "m", say=said.append).manifest
    spent = made.differential_privacy
    assert (spent.delta, spent.clip, spent.steps, spent.draws) == (0.1 / 540, CLIP, 24, DRAWS)
    assert spent.sampling_rate == pytest.approx(54 / 540)
    assert 7.9 < spent.epsilon <= 8.0
    assert load_bundle(tmp_path / "m").manifest == made
    assert any("epsilon 8 at delta 0.000185" in line for line in said)
    assert not (tmp_path / "m" / "run" / KEY_FILE).exists()


@pytest.mark.slow
def test_a_resumed_run_is_and_spends_what_an_uninterrupted_one_does(private, tmp_path):
    """With one key; three steps after the checkpoint it resumes from are taken again. Without it, it is refused."""
    kept, out = [], tmp_path / "stopped"

    def keep(progress):
        if progress.step == 1:
            kept.append((tmp_path / "through" / "run" / KEY_FILE).read_bytes())

    through = train(private, tmp_path / "through", keep)
    (out / "run").mkdir(parents=True)
    (out / "run" / KEY_FILE).write_bytes(kept[0])
    with pytest.raises(KeyboardInterrupt):
        train(private, out, stop_at(10))
    max((out / "run").glob("checkpoint-*")).unlink()
    assert latest_checkpoint(out / "run")[0].step == 7
    (out / "run" / KEY_FILE).unlink()
    with pytest.raises(StateConflict, match="spend twice"):
        train(private, out, resume=True)
    (out / "run" / KEY_FILE).write_bytes(kept[0])
    with pytest.raises(StateConflict):  # more steps need more noise in each
        train(private.model_copy(update={"steps": 600}), out, resume=True)
    resumed = train(private, out, resume=True)
    assert resumed.manifest.differential_privacy == through.manifest.differential_privacy
    assert resumed.manifest.weights_sha256 == through.manifest.weights_sha256
    after = train(private.model_copy(update={"name": "other"}), out, resume=True).manifest
    assert (after.name, after.differential_privacy) == ("other", through.manifest.differential_privacy)


@pytest.mark.slow
def test_pictures_have_no_figures_of_training_pictures(tmp_path):
    """Nor a spectrum; thresholds come from held-out pictures alone."""
    config = PrivateTrainConfig(
        kind="pictures", network=TINY_NETWORK, batch=8, steps=6, warmup=2, checkpoint_every=3, samples=2, flip=True,
        classes="given", label_dropout=0.2, dtype="float32", epsilon=8.0,
    )  # fmt: skip
    made = train(config, tmp_path / "m", source=spots_source()).manifest
    assert made.differential_privacy.steps == 6
    assert not [name for name in made.training.figures if "nearest" in name]
    assert not made.network.spectral
    assert made.structure.count <= 16


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": None, "domain": "moons"}, "domain"),
        ({"time_s": 5.0, "steps": None}, "time_s"),
        ({"data": None, "images": "x", "network": {"spectral": True}}, "spectral"),
        ({"data": None, "images": "x", "network": {"dropout": 0.1}}, "dropout"),
        ({"data": None, "images": "x", "augment": "scan"}, "augment"),
    ],
)
def test_settings_that_cannot_be_private_are_refused(points, change, said):
    with pytest.raises(ValidationError, match=said):
        PrivateTrainConfig(**{"data": points, "steps": 24, "epsilon": 8.0, **change})


def test_a_run_that_cannot_be_private_is_refused(private, tmp_path, monkeypatch):
    with pytest.raises(SettingsInvalid, match="600 of 540 training samples"):
        train(private.model_copy(update={"batch": 600}), tmp_path / "m")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingsInvalid, match="one process"):
        open_private(private, None, tmp_path / "m", None, None)
