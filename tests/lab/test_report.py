"""The attacks read what can be read, and nothing of noise; the report is stored beside the weights and shown."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ddib_fed import Model
from ddib_fed.cli.model import model
from ddib_fed.errors import BundleInvalid, UsageError
from ddib_fed.lab.commands import privacy
from ddib_fed.lab.report import (
    DECODING,
    Attack,
    copies_of,
    correlation_matrix,
    first_by_correlation,
    fit_inverter,
    membership_of,
    privacy_report,
)
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.models.sidecars import PrivacyReport
from ddib_fed.networks.spectrum import cosines
from ddib_fed.networks.spectrum import pictures as from_cosines
from tests.models.examples import manifest, state
from tests.runs.tiny_models import pictures, tiny


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_latent_that_is_its_sample_is_found_and_noise_is_not():
    """By correlation; constants and ties find nothing."""
    x = noise(20, 1, 8, 8)
    assert first_by_correlation(correlation_matrix(x, x)).all()
    assert first_by_correlation(correlation_matrix(noise(20, 1, 8, 8, seed=1), x)).mean() < 0.3
    assert not first_by_correlation(correlation_matrix(np.ones_like(x), x)).any()


def test_members_are_told_by_the_loss_where_the_others_are_of_another_kind():
    owner, attack = Model(tiny("north")), Attack(evaluations=6, seed=0)
    some, others = pictures(24), np.zeros((24, 1, 8, 8), np.float32)
    (told,) = membership_of(owner, others, some, attack)
    assert told["loss"]["value"] > 0.95
    (same,) = membership_of(owner, some, some, attack)
    assert same["loss"]["value"] == pytest.approx(0.5)


def test_training_pictures_that_are_drawn_again_are_found_and_others_are_not():
    """What a model draws has the pictures' shape and range; its own draws as training data are copies."""
    owner, others = Model(tiny()), pictures(8, seed=1)
    drawn = owner.sample(8, DECODING, seed=3)
    assert drawn.shape == others.shape
    assert np.abs(drawn).max() <= 1
    same, other = (copies_of(owner, train, others, Attack(seed=3)) for train in (drawn, pictures(24)))
    assert (same["drawn"], same["near"]["value"]) == (8, 1.0)
    assert same["samples"]["high"] < 0.1 < other["samples"]["low"]


@pytest.fixture
def small(tmp_path):
    save_bundle(tmp_path / "m", manifest(), state())
    return tmp_path / "m"


@pytest.fixture
def points(tmp_path):
    np.save(tmp_path / "points.npy", noise(300, 2))
    return tmp_path / "points.npy"


def run(group, *arguments):
    """Run a command; errors of ours come out as they are."""
    return (
        CliRunner()
        .invoke(group, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False)
        .stdout
    )


def test_the_command_attacks_stores_and_shows(small, points):
    """The digest stays, and a report of other weights is refused: it may come from anywhere."""
    before = load_bundle(small)
    asked = ("--model", small, "--data", points)
    said = run(privacy, "report", *asked)
    after = load_bundle(small)
    assert after.digest == before.digest
    assert "surrogate kernel ridge, read " in said
    assert "surrogate kernel ridge, read " in run(model, "show", small)
    assert after.privacy.command == "ddib privacy report --model MODEL --data PATH --seed 41"
    shown = json.loads(run(privacy, "report", *asked, "--format", "json"))
    assert shown == after.privacy.values()
    fields = json.loads((small / PrivacyReport.file).read_text())
    fields["weights_sha256"] = "0" * 64
    (small / PrivacyReport.file).write_text(json.dumps(fields))
    with pytest.raises(BundleInvalid, match="other weights"):
        load_bundle(small)


def test_membership_needs_training_data(small, points, tmp_path):
    """Given as a file of their own."""
    np.save(tmp_path / "own.npy", noise(200, 2, seed=8))
    usual = {"data": points, "samples": 96, "evaluations": 6}
    found = privacy_report(Model.open(small), Attack(training=tmp_path / "own.npy", **usual))
    assert found["membership"][0]["members"] > 30
    assert found["copies"] is None
    assert privacy_report(Model.open(small), Attack(**usual))["membership"] == []


def test_a_users_model_that_is_called_as_a_domain_is_not_attacked_by_the_domains_pictures():
    """The figures would say nothing about its own."""
    with pytest.raises(UsageError, match="data that do not ship"):
        privacy_report(Model(tiny("relief", channels=3, size=32)), Attack())


SIZE = 8


def drawn(count, seed=0):
    noise = torch.randn(count, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    places = torch.arange(float(SIZE))
    return (from_cosines(noise / (1.0 + torch.hypot(*torch.meshgrid(places, places, indexing="ij"))))).numpy()


def share_left(inverter, latents, originals):
    return float(np.square(inverter.inverse(latents) - originals).mean() / originals.var())


def test_a_whitened_picture_is_read():
    """A linear map by frequency, with the channels turned: the first surrogate finds it from few pairs."""
    turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    places = torch.arange(float(SIZE))
    gain = 1.0 + torch.hypot(*torch.meshgrid(places, places, indexing="ij"))

    def whiten(x):
        white = from_cosines(gain * cosines(torch.from_numpy(x)))
        return torch.einsum("ij,njhw->nihw", turn, white).numpy()

    known, other = drawn(64), drawn(32, seed=1)
    inverter = fit_inverter(whiten(known), known, steps=0)
    assert inverter.name == "frequency"
    assert share_left(inverter, whiten(other), other) < 0.01
