"""`ddib calibrate --local`: a calibration of two models in this process, as a file with the next command."""

import shlex
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from ddib_fed.calibration.record import Calibration
from ddib_fed.cli.main import cli
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import AlreadyExists, ShapeMismatch, UsageError
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.models.bundle import save_bundle
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.node.operator import Node
from tests.node.picture_examples import save_pictures_model
from tests.runs.tiny_models import tiny

CENTRES = np.array([[0.9, -0.3, 0.0], [-0.8, 0.7, -0.2], [0.0, -0.6, 0.8], [-0.4, -0.2, -0.3]])


def coloured(count: int, seed: int) -> np.ndarray:
    """Pictures of four colours in unequal shares, so that no other rotation fits them."""
    rng = np.random.default_rng(seed)
    chosen = CENTRES[rng.choice(4, (count, 8, 8), p=[0.5, 0.25, 0.15, 0.1])]
    mixed = 0.9 * chosen + 0.05 * rng.standard_normal(chosen.shape)
    return np.clip(np.moveaxis(mixed, 3, 1), -1, 1).astype(np.float32)


def write(folder: Path, stack: np.ndarray) -> None:
    folder.mkdir()
    for number, pixels in enumerate(to_pixels(stack)):
        (folder / f"{number:03}.png").write_bytes(encode_png(pixels))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models of 3 channels and two of grey, in the working folder."""
    for name, channels in (("north", 3), ("south", 3), ("t1", 1), ("t2", 1)):
        bundle = tiny(name, channels=channels, normalisation=Normalisation(mean=-0.3, std=0.3))
        save_bundle(tmp_path / name, bundle.manifest, bundle.state)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> tuple[str, BaseException | None]:
    done = CliRunner().invoke(cli, ["calibrate", "--local", *words])
    return done.output, done.exception


def test_anchors_give_a_rotation_and_the_next_command(desk: Path) -> None:
    """The swap of two channels is found exactly; the file names no folder, and nothing crosses."""
    x = coloured(6, 1)
    write(desk / "A", x)
    write(desk / "B", x[:, [1, 0, 2]])
    shown, raised = run("north", "south", "--anchors", "A", "B", "--days", "30", "--out", "swap.json")
    assert raised is None, shown
    found = Calibration.open(desk / "swap.json")
    assert np.allclose(found.map.matrix, [[0, 1, 0], [1, 0, 0], [0, 0, 1]], atol=1e-3)
    assert (found.made.method, found.made.anchors, found.made.crossed_bytes) == ("anchors", 6, 0)
    assert (found.expires - found.made.created).days == 30
    assert found.made.command == "ddib calibrate --local north south --kind rotation --seed 0 --anchors"
    assert "nothing but the calibration itself" in shown
    assert "ddib translate PICTURES --source north --target south --calibration swap.json" in shown
    before = (desk / "swap.json").read_bytes()
    _, raised = run("north", "south", "--anchors", "A", "B", "--out", "swap.json")
    assert isinstance(raised, AlreadyExists)
    assert (desk / "swap.json").read_bytes() == before


@pytest.mark.slow
def test_an_aggregate_finds_the_rotation_and_says_what_would_cross(desk: Path) -> None:
    """Between pictures that are no pairs; the same seed gives the same noise, map and figures, to the bit."""
    write(desk / "A", coloured(240, 1))
    write(desk / "B", coloured(260, 2)[:, [1, 0, 2]])
    words = ("north", "south", "--pictures", "A", "--pictures", "B", "--epsilon", "8")
    shown, raised = run(*words)
    assert raised is None, (shown, raised)
    found = Calibration.open(desk / "calibration.json")
    assert np.abs(found.map.matrix - [[0, 1, 0], [1, 0, 0], [0, 0, 1]]).max() < 0.3
    assert found.made.crossed_bytes > 1000
    assert (found.made.epsilon, found.made.delta) == (8.0, 1e-5)
    assert "epsilon 8, delta 1e-05 for each picture" in shown
    _, raised = run(*words, "--out", "again.json")
    assert raised is None
    again = Calibration.open(desk / "again.json")
    assert (again.map, again.effect, again.made.aggregate_sha256) == (
        found.map,
        found.effect,
        found.made.aggregate_sha256,
    )


def test_what_cannot_be_is_said_before_anything_is_read(desk: Path) -> None:
    del desk
    for words in (
        ("north", "south", "--pictures", "A"),
        ("north", "south", "--anchors", "A", "B", "--epsilon", "2"),
        ("north", "south", "--config", "node.toml"),
        ("north", "south"),
        ("north", "south", "--kind", "tone", "--anchors", "A", "B"),
        ("t1", "t2", "--anchors", "A", "B"),
        ("t1", "t2", "--kind", "tone"),
        ("moons", "checkerboards"),
    ):
        _, raised = run(*words)
        assert isinstance(raised, UsageError), (words, raised)
        assert raised.hint
    _, raised = run("north", "t1")
    assert isinstance(raised, ShapeMismatch)


CURVE = ChannelMap(quadratic=((0.5, -1.0, 0.1),))
NODE = """
[node]
institution = "north.example"
name = "node-1"
roles = ["source"]
listen = "127.0.0.1:7443"
address = "localhost:7443"
[model]
domain = "scans"
"""


@pytest.fixture
def north(tmp_path):
    (tmp_path / "node.toml").write_text(NODE)
    save_pictures_model(tmp_path / "model", "scans", seed=1)
    return Node.open(tmp_path / "node.toml")


def parsed(line: str) -> dict[str, Any]:
    """The parameters of a command as an operator would paste it."""
    command, (_ddib, *words) = cli, shlex.split(line)
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
    return command.make_context(line, words).params
