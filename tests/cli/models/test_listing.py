"""`ddib model list|get`: the models that ship, and those of a node."""

from __future__ import annotations

import json

from ddib_fed.cli.main import run
from ddib_fed.errors import ExitCode
from ddib_fed.models.bundle import load_bundle
from ddib_fed.models.catalogue import shipped_names


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


def test_models_of_a_node_are_listed_with_which_is_active(tmp_path, capsys):
    """By digest, which `activate` takes, and its beginning too."""
    config = str(tmp_path / "north" / "node.toml")
    words = [
        "--institution",
        "north.example",
        "--role",
        "source",
        "--model",
        "moons",
        "--out",
        str(tmp_path / "north"),
    ]
    assert run(["init", "node", *words]) == 0
    assert run(["model", "get", "moons", "--out", str(tmp_path / "other")]) == 0
    assert run(["model", "install", str(tmp_path / "other"), "--config", config]) == 0
    capsys.readouterr()
    assert run(["model", "list", "--config", config, "--format", "json"]) == 0
    (only,) = json.loads(capsys.readouterr().out)
    assert (only["name"], only["active"], only["configured"]) == ("moons", True, True)
    assert run(["model", "list", "--config", config, "-q"]) == 0
    assert capsys.readouterr().out.strip() == only["digest"]
    assert run(["model", "activate", only["digest"][:6], "--config", config, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["active"] == only["digest"]
    assert run(["model", "activate", "0" * 8, "--config", config]) == ExitCode.NOT_FOUND
    assert "ddib model list" in capsys.readouterr().err
