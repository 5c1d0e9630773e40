"""`ddib model` trains, samples, shows and imports, refuses to overwrite, and explains what is wrong."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ddib_fed.cli.model import model
from ddib_fed.errors import AlreadyExists, ModelNotFound, UsageError
from ddib_fed.models.bundle import load_bundle
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


def test_times_are_read_as_people_write_them(ddib, tmp_path):
    for text, value in (("90", 90), ("90s", 90), ("2m", 120), ("1h30m", 5400), ("0.5m", 30)):
        assert seconds(text) == value
    for text in ("m", "2x", "0s", "1 m"):
        with pytest.raises(UsageError, match=r"--time: .*is no time"):
            ddib("train", "--domain", "moons", "--out", tmp_path / "m", "--time", text)
    assert not (tmp_path / "m").exists()


def test_a_shipped_model_is_sampled(ddib, tmp_path):
    ddib("sample", "moons", "--n", "500", "--evaluations", "12", "--out", tmp_path / "s")
    assert np.load(tmp_path / "s" / "samples.npy").shape == (500, 2)
    assert (tmp_path / "s" / "samples.png").exists()
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert report["target_cloud"]["sliced_w2"] < 3 * report["target_cloud"]["sliced_w2_floor"]
    with pytest.raises(AlreadyExists):
        ddib("sample", "moons", "--out", tmp_path / "s")


def test_a_model_is_shown_as_text_and_as_json(ddib, tmp_path):
    assert "checkerboards" in ddib("show", "1").output
    shown = json.loads(ddib("show", "1", "--format", "json").output)
    assert shown["domain"] == "checkerboards"
    assert "ddib model train" in shown["training"]["command"]

    with pytest.raises(ModelNotFound):
        ddib("show", tmp_path / "absent")


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
