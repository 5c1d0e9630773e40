"""`ddib model list|get`: the models that ship, and those of a node."""

from __future__ import annotations

import json

from ddib_fed.cli.main import run
from ddib_fed.errors import ExitCode
from ddib_fed.models.bundle import load_bundle
from ddib_fed.models.catalogue import shipped_names


def test_shipped_models_are_listed_and_copied(tmp_path, capsys):
    """A table for people, numbers for scripts; a copy can be opened."""
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
