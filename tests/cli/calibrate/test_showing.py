"""What an operator reads about a calibration."""

from __future__ import annotations

import shlex
from typing import Any

import click
import pytest

from ddib_fed.cli.calibrate import how_jobs_use
from ddib_fed.cli.main import cli
from ddib_fed.models.units import ChannelMap
from ddib_fed.node.config import NodeConfig
from tests.calibration.examples import calibration
from tests.node.picture_examples import save_pictures_model

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
    return NodeConfig.load(tmp_path / "node.toml")


def parsed(line: str) -> dict[str, Any]:
    """The parameters of a command as an operator would paste it."""
    command, (_ddib, *words) = cli, shlex.split(line)
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), words.pop(0))
    return command.make_context(line, words).params


def test_a_curve_is_used_by_a_model_trained_with_it(north) -> None:
    """The commands can be pasted: the options are those of `ddib`, the files those of the node."""
    curve = calibration(kind="tone", map=CURVE)
    short = curve.sha256.hex()[:12]
    says, show, train, then = how_jobs_use(curve, north)
    assert "once this node's model is trained with it" in says
    for line in (show, train):
        assert north.folder / f"{short}.json" in parsed(line).values()
    assert f"--init {north.folder / 'model'} " in train
    assert f'bundle = "model-{short}" in {north.path}' in then
