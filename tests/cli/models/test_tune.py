"""`ddib model tune` learns, stores and says what it learned; `--grid learned` and `--quality` use it or are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ddib_fed.cli.model import model
from ddib_fed.cli.translate import translate
from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.training import tune as run
from ddib_fed.training.tune import Effort
from tests.models.examples import manifest, state


@pytest.fixture
def ddib(monkeypatch):
    """Run a command; errors of ours come out as they are. Little is spent on a leg."""
    monkeypatch.setattr(run, "POINTS", Effort(16, 8, 8, (3,), 8, 1, 1, 1))
    monkeypatch.setattr(run, "REFERENCE", 8)

    def call(group, *arguments):
        return CliRunner().invoke(
            group, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False
        )

    return call


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


def test_a_quality_stands_for_settings_and_goes_with_no_others(ddib, small, tmp_path):
    """Draft needs learned steps; beside --evaluations it is refused."""
    np.save(tmp_path / "p.npy", np.random.default_rng(0).normal(size=(20, 2)))
    way = (tmp_path / "p.npy", "--source", small, "--target", small, "--out", tmp_path / "out")
    with pytest.raises(SettingsInvalid, match="no evaluations, not of 12"):
        ddib(translate, *way, "--quality", "draft")
    with pytest.raises(SettingsInvalid, match="chooses evaluations itself"):
        ddib(translate, *way, "--quality", "exact", "--evaluations", 50)
