"""`ddib model` lists, trains, samples, tunes and shows models, refuses to overwrite, and explains what is wrong."""

from __future__ import annotations

import json

import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.cli.model import model
from ddib_fed.cli.translate import translate
from ddib_fed.errors import AlreadyExists, ExitCode, ModelNotFound, SettingsInvalid, UsageError
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.models.catalogue import shipped_names
from ddib_fed.training import tune
from ddib_fed.training.config import seconds
from ddib_fed.training.tune import Effort
from tests.models.examples import manifest, state

SMALL = ("--steps", "30", "--batch", "64", "--set", "width=16")


def test_times_are_read_as_people_write_them(ddib, tmp_path):
    for text, value in (("90", 90), ("90s", 90), ("2m", 120), ("1h30m", 5400), ("0.5m", 30)):
        assert seconds(text) == value
    for text in ("m", "2x", "0s", "1 m"):
        with pytest.raises(UsageError, match=r"--time: .*is no time"):
            ddib(model, "train", "--domain", "moons", "--out", tmp_path / "m", "--time", text)
    assert not (tmp_path / "m").exists()


def test_a_shipped_model_is_sampled(ddib, tmp_path):
    ddib(model, "sample", "moons", "--n", "500", "--evaluations", "12", "--out", tmp_path / "s")
    assert np.load(tmp_path / "s" / "samples.npy").shape == (500, 2)
    assert (tmp_path / "s" / "samples.png").exists()
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert report["target_cloud"]["sliced_w2"] < 3 * report["target_cloud"]["sliced_w2_floor"]
    with pytest.raises(AlreadyExists):
        ddib(model, "sample", "moons", "--out", tmp_path / "s")


def test_a_model_is_shown_as_text_and_as_json(ddib, tmp_path):
    assert "checkerboards" in ddib(model, "show", "1").output
    shown = json.loads(ddib(model, "show", "1", "--format", "json").output)
    assert shown["domain"] == "checkerboards"
    assert "ddib model train" in shown["training"]["command"]

    with pytest.raises(ModelNotFound):
        ddib(model, "show", tmp_path / "absent")


@pytest.mark.slow
def test_a_name_that_is_a_folder_too_is_refused(ddib, tmp_path, monkeypatch):
    """It would be open which of the two translates."""
    np.save(tmp_path / "cells.npy", np.random.default_rng(0).normal(size=(300, 2)))
    monkeypatch.chdir(tmp_path)
    ddib(model, "train", "--data", "cells.npy", "--out", "moons", *SMALL)
    with pytest.raises(UsageError, match="folder") as caught:
        ddib(model, "show", "moons")
    assert "./moons" in caught.value.hint
    assert "cells" in ddib(model, "show", "./moons").output


def test_shipped_models_are_listed_and_copied(tmp_path, capsys):
    """A table for people, names alone with -q, numbers for scripts; a copy can be opened."""
    assert run(["model", "list"]) == 0
    assert "picture 3x32x32" in capsys.readouterr().out
    assert run(["model", "list", "-q"]) == 0
    assert capsys.readouterr().out.split() == list(shipped_names())
    assert run(["model", "list", "--format", "json"]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert listed["relief"]["evaluations"] == [12, 16, 20]
    assert listed["relief"]["parameters"] == 1_971_308
    words = ["model", "get", "relief", "--out", str(tmp_path / "mine")]
    assert run([*words, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == load_bundle(tmp_path / "mine").digest
    assert run(words) == ExitCode.CONFLICT
    assert run([*words, "--force"]) == 0


@pytest.fixture(autouse=True)
def _little(monkeypatch):
    """Little is spent on a leg."""
    monkeypatch.setattr(tune, "POINTS", Effort(16, 8, 8, (3,), 8, 1, 1, 1))
    monkeypatch.setattr(tune, "REFERENCE", 8)


@pytest.fixture
def small(tmp_path):
    save_bundle(tmp_path / "m", manifest(), state())
    return tmp_path / "m"


def test_several_numbers_are_learned_and_told(ddib, small):
    """As the command is written in the docs; the file notes what learned it."""
    said = ddib(model, "tune", small, "--evaluations", 3, 4).output
    tuned = load_bundle(small).tuned
    assert tuned.evaluations == (3, 4)
    assert tuned.command == "ddib model tune MODEL --evaluations 3 4"
    assert "encode in 3" in said
    assert f"default at 4: {tuned.legs[1].default_error.mean:.1e}, at 48" in said
    assert "decode in 4" in ddib(model, "show", small).output
    assert (
        json.loads(ddib(model, "show", small, "--format", "json").output)["steps"]["legs"][0]["evaluations"]
        == 3
    )


def test_learned_steps_translate_and_what_was_not_learned_is_refused(ddib, small, tmp_path):
    """The number must be one of those learned, and the error names them."""
    ddib(model, "tune", small, "--evaluations", 4)
    np.save(tmp_path / "p.npy", np.random.default_rng(0).normal(size=(20, 2)))
    way = (tmp_path / "p.npy", "--source", small, "--target", small, "--grid", "learned", "--out")
    ddib(translate, *way, tmp_path / "out", "--evaluations", 4)
    assert json.loads((tmp_path / "out" / "p.json").read_text())["solver"]["grid"] == "learned"
    with pytest.raises(SettingsInvalid, match="small has learned steps of 4 evaluations, not of 5"):
        ddib(translate, *way, tmp_path / "no", "--evaluations", 5)
