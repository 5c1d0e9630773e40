"""`ddib model` lists, copies, trains, samples, shows, tunes and measures, and overwrites nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.cli.model import model
from ddib_fed.cli.translate import translate
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import (
    BundleInvalid,
    DdibError,
    ExitCode,
    InputError,
    SettingsInvalid,
    UsageError,
)
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.models.catalogue import shipped_names
from ddib_fed.models.sidecars import Allowances
from ddib_fed.training import tune as tuning
from ddib_fed.training.config import seconds
from ddib_fed.training.tune import Effort
from tests.models.examples import manifest, state
from tests.runs.tiny_models import pictures, tiny


def test_shipped_models_are_listed_and_copied(tmp_path, capsys):
    assert run(["model", "list"]) == 0
    assert "picture 3x32x32" in capsys.readouterr().out
    assert run(["model", "list", "--format", "json"]) == 0
    listed = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert list(listed) == list(shipped_names())
    assert listed["relief"]["evaluations"] == [12, 16, 20]
    assert listed["relief"]["parameters"] == 1_971_308
    words = ["model", "get", "relief", "--out", str(tmp_path / "mine")]
    assert run([*words, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == load_bundle(tmp_path / "mine").digest
    assert run(words) == ExitCode.CONFLICT
    assert run([*words, "--force"]) == 0


def test_times_are_read_as_people_write_them(ddib, tmp_path):
    for text, value in (("90", 90), ("90s", 90), ("2m", 120), ("1h30m", 5400), ("0.5m", 30)):
        assert seconds(text) == value
    for text in ("m", "2x", "0s", "1 m"):
        with pytest.raises(UsageError, match=r"--time: .*is no time"):
            ddib(model, "train", "--domain", "moons", "--out", tmp_path / "m", "--time", text)
    assert not (tmp_path / "m").exists()


def test_a_model_is_shown_as_text_and_as_json(ddib):
    said = ddib(model, "show", "1").output
    assert "checkerboards" in said
    shown = json.loads(ddib(model, "show", "1", "--format", "json").output)
    assert shown["domain"] == "checkerboards"
    assert "ddib model train" in shown["training"]["command"]
    reading = shown["privacy"]["readings"][0]["correlation"]
    figure = "{value:.3g} ({low:.3g} to {high:.3g})".format(**reading)
    assert f"correlation {figure}, " in said


def test_a_name_that_is_a_folder_too_is_refused(ddib, tmp_path, monkeypatch):
    made = tiny("cells")
    save_bundle(tmp_path / "moons", made.manifest, made.state)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="folder") as caught:
        ddib(model, "show", "moons")
    assert "./moons" in caught.value.hint
    assert "cells" in ddib(model, "show", "./moons").output


# Learned steps


@pytest.fixture
def points(tmp_path, monkeypatch):
    """A model of points; little is spent on a leg."""
    monkeypatch.setattr(tuning, "POINTS", Effort(16, 8, 8, (3,), 8, 1, 1, 1))
    monkeypatch.setattr(tuning, "REFERENCE", 8)
    save_bundle(tmp_path / "m", manifest(), state())
    return tmp_path / "m"


def test_learned_steps_are_told_and_translate_and_others_are_refused(ddib, points, tmp_path):
    """The file notes what learned it; the number must be one of those learned, and the error names them."""
    said = ddib(model, "tune", points, "--evaluations", 3, 4).output
    tuned = load_bundle(points).tuned
    assert tuned.evaluations == (3, 4)
    assert tuned.command == "ddib model tune MODEL --evaluations 3 4"
    assert f"default_error {tuned.legs[1].default_error.mean:.3g}" in said
    shown = json.loads(ddib(model, "show", points, "--format", "json").output)
    assert shown["steps"]["legs"][0]["evaluations"] == 3
    np.save(tmp_path / "p.npy", np.random.default_rng(0).normal(size=(20, 2)))
    way = (tmp_path / "p.npy", "--source", points, "--target", points, "--out")
    ddib(translate, *way, tmp_path / "out", "--grid", "learned", "--evaluations", 4)
    assert json.loads((tmp_path / "out" / "p.json").read_text())["solver"]["grid"] == "learned"
    for options, why in (
        (("--grid", "learned", "--evaluations", 5), "learned steps of 3, 4 evaluations, not of 5"),
        (("--quality", "draft"), "3, 4 evaluations, not of 12"),
        (("--quality", "exact", "--evaluations", 50), "chooses evaluations itself"),
    ):
        with pytest.raises(SettingsInvalid, match=why):
            ddib(translate, *way, tmp_path / "no", *options)


# The gate's bounds


@pytest.fixture
def small(tmp_path):
    made = tiny("north", size=16, soften_sigma=0.05)
    save_bundle(tmp_path / "m", made.manifest, made.state)
    return tmp_path / "m"


def folder_of(path: Path, count: int) -> Path:
    path.mkdir()
    for number, each in enumerate(to_pixels(pictures(count, size=16))):
        (path / f"{number:03}.png").write_bytes(encode_png(each))
    return path


def test_what_was_measured_is_stored_and_shown(ddib, small, tmp_path):
    """The weights stay, thresholds are added; the command is noted without its paths; a broken file is replaced."""
    before = load_bundle(small)
    assert "fixed bounds alone" in ddib(model, "show", small).output
    (small / Allowances.file).write_text("{}")
    with pytest.raises(BundleInvalid, match=Allowances.file):
        load_bundle(small)
    said = ddib(model, "measure", small, "--data", folder_of(tmp_path / "data", 60)).output
    after = load_bundle(small)
    assert after.manifest.structure is not None
    assert after.manifest.weights_sha256 == before.manifest.weights_sha256
    assert after.allowances.command == "ddib model measure MODEL --data PATH"
    assert f"measured on {after.allowances.measured} latents" in said
    shown = json.loads(ddib(model, "show", small, "--format", "json").output)
    assert shown["gate"]["digest"] == after.allowances.digest()


def test_what_cannot_be_measured_is_refused_with_its_cause(ddib, small, tmp_path):
    """Nothing is written if thresholds are not either; a picture that cannot be read is left out on request."""
    few = folder_of(tmp_path / "few", 30)
    (few / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DdibError):
        ddib(model, "measure", small, "--data", few)
    assert load_bundle(small).manifest.structure is None
    said = ddib(model, "measure", small, "--data", few, "--skip-bad").output
    assert "40 pictures are needed" in said
    assert load_bundle(small).manifest.structure is not None
    with pytest.raises(InputError, match="40 pictures are needed"):
        ddib(model, "measure", small, "--data", few, "--skip-bad")
    assert not (small / Allowances.file).exists()
    save_bundle(tmp_path / "points", manifest(), state())
    with pytest.raises(InputError, match="points of every set are encoded again"):
        ddib(model, "measure", tmp_path / "points")
