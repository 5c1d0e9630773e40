"""What a shell completes: by the completion that click runs for it, against a real server over mutual TLS."""

from __future__ import annotations

import re
import shutil
import subprocess
import time

import pytest
from click.shell_completion import BashComplete

from ddib_fed.cli import completing
from ddib_fed.cli.main import cli, run
from ddib_fed.v1 import common_pb2
from ddib_fed.v1 import translation_pb2 as pb
from tests.client.scripted_source import TARGET, SourceNodeDouble, npy, points


def completed(words: list[str], begun: str = "") -> list[str]:
    made = BashComplete(cli, {}, "ddib", "_DDIB_COMPLETE").get_completions(words, begun)
    return [each.value for each in made]


@pytest.fixture
def north(tmp_path):
    node = SourceNodeDouble(tmp_path)
    yield node
    node.stop()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell, capsys):
    """It asks this very command."""
    assert run(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_DDIB_COMPLETE={shell}_complete" in script
    program = shutil.which(shell)
    if program is not None:
        subprocess.run([program, "-n"], input=script.encode(), check=True)


def test_commands_options_and_models_are_completed():
    """Without a node."""
    assert completed([], "tran") == ["translate"]
    assert completed(["job"], "su") == ["submit"]
    assert "--quality" in completed(["translate"], "--q")
    assert completed(["model", "show"], "sat") == ["satellite", "satellite-as-relief"]
    assert completed(["model", "get"], "moo") == ["moons"]
    assert completed(["translate", "--solver"], "un") == ["unipc"]
    for words in (
        ["init", "node", "--model"],
        ["privacy", "report", "--model"],
        ["model", "interpolate", "a.npy", "b.npy", "--target"],
        ["translate", "a.npy", "--source"],
    ):
        assert completed(words, "moo") == ["moons"]


def test_domains_jobs_and_classes_are_asked_of_the_node(north, tmp_path, capsys, monkeypatch):
    """Each with what it is; the profile is the one of the command line."""
    monkeypatch.setattr(completing, "PATIENCE_S", 60.0)
    profile = ["--profile", str(north.profile_path)]
    (tmp_path / "scan.npy").write_bytes(npy(points(10)))
    assert run(["job", "submit", str(tmp_path / "scan.npy"), "--to", TARGET, *profile, "-q"]) == 0
    job = capsys.readouterr().out.strip()
    assert completed(["translate", *profile, "--to"]) == [TARGET]
    assert completed(["translate", *profile, "--to"], "west") == []
    assert completed(["job", "show", *profile], "job") == [job]
    kind = {"sample_kind": common_pb2.SAMPLE_KIND_PICTURE, "sample_shape": [1, 8, 8], "classes": 2}
    answer = pb.ListDomainsResponse(
        institution="north.example", domain="scans", class_names=["ct", "mr"], **kind
    )
    for institution, names in (("south.example", ["coast", "ridge"]), ("west.example", ["cat", "dog"])):
        answer.domains.add(institution=institution, domain="maps", class_names=names, status="ready", **kind)
    north.script.listed = answer
    classes = ["translate", *profile, "--to", "south.example/maps", "--target-class"]
    assert completed(classes) == ["coast", "ridge"]
    assert completed(["translate", *profile, "--source-class"], "m") == ["mr"]


def test_a_node_that_is_away_gives_no_words_and_no_noise(north, capsys):
    """Tab answers soon, whatever happened."""
    profile = ["--profile", str(north.profile_path)]
    north.stop()
    begun = time.monotonic()
    assert completed(["job", "show", *profile]) == []
    assert completed(["job", "show", "--profile", "nowhere.toml"]) == []
    assert time.monotonic() - begun < 2 * completing.PATIENCE_S + 20
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_peers_are_those_of_the_node(north, tmp_path, capsys):
    """Of the node.toml in this folder, or of --config."""
    config, south = ["--config", str(tmp_path / "north" / "node.toml")], tmp_path / "south"
    assert completed(["peer", "test", *config]) == []
    words = ["init", "node", "--institution", "south.example", "--role", "target", "--model", "moons"]
    assert run([*words, "--out", str(south)]) == 0
    fingerprint = re.search(r"SHA256:\S+", capsys.readouterr().out)[0]
    peer_file = str(south / "south.example.peer")
    assert run(["peer", "add", peer_file, "--fingerprint", fingerprint, *config]) == 0
    for command in (
        ["peer", "test", *config],
        *(["audit", act, *config, "--peer"] for act in ("show", "anchors")),
    ):
        assert completed(command, "so") == ["south.example"]
    assert completed(["calibrate", *config, "--peer"]) == ["south.example/"]
