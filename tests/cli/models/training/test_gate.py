"""`ddib model gate` measures and stores; training does it by itself, and retraining drops what is of other weights."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ddib_fed.cli.models.model import model
from ddib_fed.errors import BundleInvalid, InputError
from ddib_fed.models.allowances import GATE_FILE
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.training.run import train
from ddib_fed.training.settings.config import PointTrainConfig
from tests.models.examples import manifest, state


def ddib(*arguments: object) -> str:
    """Run `ddib model ...`; errors of ours come out as they are."""
    return (
        CliRunner()
        .invoke(model, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False)
        .output
    )


@pytest.fixture
def small(tmp_path):
    save_bundle(tmp_path / "m", manifest(), state())
    return tmp_path / "m"


@pytest.fixture
def points(tmp_path):
    path = tmp_path / "points.npy"
    np.save(path, np.random.default_rng(0).standard_normal((1_200, 2)).astype(np.float32))
    return path


def test_what_was_measured_is_stored_and_shown(small, points):
    """The digest stays; the command is noted without its paths."""
    before = load_bundle(small)
    assert "fixed bounds alone" in ddib("show", small)
    said = ddib("gate", small, "--data", points)
    after = load_bundle(small)
    assert after.digest == before.digest
    assert after.allowances.command == "ddib model gate MODEL --data PATH"
    assert f"{after.allowances.measured} honest sets of points" in said
    assert f"{after.allowances.measured} honest sets of points" in ddib("show", small)
    shown = json.loads(ddib("show", small, "--format", "json"))
    assert shown["gate"]["digest"] == after.allowances.digest()


def test_a_file_of_other_weights_is_replaced(small, points):
    """As the error about it says."""
    (small / GATE_FILE).write_text("{}")
    with pytest.raises(BundleInvalid, match=GATE_FILE):
        load_bundle(small)
    ddib("gate", small, "--data", points)
    assert load_bundle(small).allowances is not None


def test_too_few_points_are_refused(small, tmp_path):
    """Nothing is written."""
    np.save(tmp_path / "few.npy", np.zeros((300, 2), np.float32))
    with pytest.raises(InputError, match="too few"):
        ddib("gate", small, "--data", tmp_path / "few.npy")
    assert not (small / GATE_FILE).exists()


def test_training_measures_and_another_run_in_its_place_measures_again(tmp_path):
    """The file names the weights that it is of."""
    config = PointTrainConfig(domain="moons", steps=3, batch=2_048, width=16)
    first = train(config, tmp_path / "m")
    assert first.allowances is not None
    assert first.allowances.command == "at the end of training"
    again = train(config.model_copy(update={"seed": 1}), tmp_path / "m", force=True)
    assert again.allowances is not None
    assert again.allowances.weights_sha256 == again.manifest.weights_sha256 != first.manifest.weights_sha256
