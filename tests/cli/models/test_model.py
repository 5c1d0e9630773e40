"""`ddib model` trains, samples, shows and imports, refuses to overwrite, and explains what is wrong."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from ddib_fed.cli.model import model
from ddib_fed.errors import AlreadyExists, ModelNotFound, UsageError
from ddib_fed.models.bundle import load_bundle
from ddib_fed.networks.mlp import SyntheticModel
from ddib_fed.training.config import seconds

SMALL = ("--steps", "30", "--batch", "64", "--set", "width=16")


@pytest.fixture
def ddib():
    """Run a command of the group; errors of ours come out as they are."""

    def call(*arguments):
        return CliRunner().invoke(
            model, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False
        )

    return call


@pytest.mark.slow
def test_a_domain_by_its_index_is_trained_into_a_bundle(ddib, tmp_path):
    result = ddib("train", "--domain", "0", "--out", tmp_path / "m", *SMALL)
    assert "sliced-W2" in result.output
    assert load_bundle(tmp_path / "m").manifest.domain == "moons"


@pytest.mark.slow
def test_points_of_ones_own_are_trained_into_a_bundle(ddib, tmp_path):
    np.save(tmp_path / "cells.npy", np.random.default_rng(0).normal(size=(300, 2)))
    ddib("train", "--data", tmp_path / "cells.npy", "--out", tmp_path / "m", *SMALL)
    assert load_bundle(tmp_path / "m").manifest.domain == "cells"


@pytest.mark.slow
def test_a_finished_model_is_not_overwritten(ddib, tmp_path):
    ddib("train", "--domain", "moons", "--out", tmp_path / "m", *SMALL)
    with pytest.raises(AlreadyExists):
        ddib("train", "--domain", "moons", "--out", tmp_path / "m", *SMALL)


@pytest.mark.parametrize(
    "options", [(), ("--domain", "moons", "--data", "x.npy"), ("--domain", "0", "--time", "1s")]
)
def test_options_that_contradict_each_other_are_a_usage_error(ddib, tmp_path, options):
    with pytest.raises(UsageError):
        ddib("train", *options, "--out", tmp_path / "m", *SMALL)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("text", "value"), [("90", 90), ("90s", 90), ("2m", 120), ("1h30m", 5400), ("0.5m", 30)]
)
def test_times_are_read_as_people_write_them(text, value):
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "m", "2x", "-3s", "0s", "2m!", "1 m"])
def test_what_is_no_time_is_refused(ddib, tmp_path, text):
    with pytest.raises(UsageError, match=r"--time: .*is no time"):
        ddib("train", "--domain", "moons", "--out", tmp_path / "m", "--time", text)


def test_a_shipped_model_is_sampled(ddib, tmp_path):
    ddib("sample", "moons", "--n", "500", "--evaluations", "12", "--out", tmp_path / "s")
    assert np.load(tmp_path / "s" / "samples.npy").shape == (500, 2)
    assert (tmp_path / "s" / "samples.png").exists()
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert report["target_cloud"]["sliced_w2"] < 3 * report["target_cloud"]["sliced_w2_floor"]
    with pytest.raises(AlreadyExists):
        ddib("sample", "moons", "--out", tmp_path / "s")


def test_a_model_is_shown_as_text_and_as_json(ddib):
    assert "checkerboards" in ddib("show", "1").output
    shown = json.loads(ddib("show", "1", "--format", "json").output)
    assert shown["domain"] == "checkerboards"
    assert "ddib model train" in shown["training"]["command"]


def test_a_model_that_is_not_there_is_named(ddib, tmp_path):
    with pytest.raises(ModelNotFound):
        ddib("show", tmp_path / "absent")


def test_a_checkpoint_of_the_public_code_becomes_a_bundle(ddib, tmp_path):
    torch.manual_seed(0)
    torch.save(SyntheticModel(num_channels=32, num_res_blocks=1).state_dict(), tmp_path / "ema.pt")
    ddib("import", "--synthetic", tmp_path / "ema.pt", "--out", tmp_path / "m", "--domain", "moons")
    made = load_bundle(tmp_path / "m").manifest
    assert (made.network.kind, made.parameterisation, made.schedule.steps) == ("synthetic", "eps", 4000)


@pytest.mark.slow
def test_a_name_that_is_a_folder_too_is_refused(ddib, tmp_path, monkeypatch):
    """It would be open which of the two translates."""
    np.save(tmp_path / "cells.npy", np.random.default_rng(0).normal(size=(300, 2)))
    monkeypatch.chdir(tmp_path)
    ddib("train", "--data", "cells.npy", "--out", "moons", *SMALL)
    with pytest.raises(UsageError, match="folder") as caught:
        ddib("show", "moons")
    assert "./moons" in caught.value.hint
    assert "cells" in ddib("show", "./moons").output
