"""Two institutions train picture models from folders of their own with the nodes' commands, then translate."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddib_fed.data.pictures import read_image
from ddib_fed.models.bundle import load_bundle
from ddib_fed.node.config import NodeConfig
from ddib_fed.node.role import train_node
from ddib_fed.training.checkpoint import latest_checkpoint
from tests.e2e.harness import Node, Pair, ddib

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(300)]

SIZE = 16
TABLE = """images = "{folder}"
size = 16
network = ["model_channels=32", "channel_mult=1", "num_res_blocks=1"]
batch = 8
steps = 40
checkpoint_every = 10
"""


def textures(folder: Path, seed: int, count: int = 40) -> None:
    """Smooth grey textures as PNG files."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE)[None])
    for number in range(count):
        waves = np.fft.fft2(rng.normal(size=(SIZE, SIZE))) / (0.1 + frequency)
        field = np.real(np.fft.ifft2(waves))
        pixels = np.clip(128 + 40 * field / field.std(), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03d}.png")


def node_train(node: Node) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"{node.role}_node", "train", "--config", str(node.config_path)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return said


def kill_at(process: subprocess.Popen[str], step: int) -> None:
    """kill -9 as soon as it has said that it took `step` steps."""
    with process:
        assert process.stderr is not None
        lines = (re.match(r"training (\d+)/", line) for line in process.stderr)
        said = next((int(line[1]) for line in lines if line is not None and int(line[1]) >= step), None)
        process.send_signal(signal.SIGKILL)
    assert said is not None
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Both nodes set up, with a folder of pictures each and not yet a model; north's training was killed once."""
    folder = tmp_path_factory.mktemp("own")
    made = Pair.create(folder, "south-textures", domain="north-textures", pretrained=False)
    for seed, node in enumerate((made.north, made.south)):
        textures(node.folder / "pictures", seed)
        text = node.config_path.read_text()
        assert '# images = "pictures"' in text
        node.config_path.write_text(text.replace("seed = 0", TABLE.format(folder="pictures") + "seed = 0"))
    south = node_train(made.south)
    kill_at(node_train(made.north), 12)
    assert latest_checkpoint(made.north.folder / "model" / "run").info.step >= 10
    assert not (made.north.folder / "model" / "manifest.json").exists()
    assert "resuming after step" in finish(node_train(made.north))
    finish(south)
    return made


def test_a_killed_training_that_is_resumed_equals_one_that_was_not_killed(pair: Pair) -> None:
    """To the last bit of the weights, under the domain that node.toml names."""
    whole = pair.north.folder / "whole.toml"
    whole.write_text(pair.north.config_path.read_text().replace('bundle = "model"', 'bundle = "whole"'))
    train_node(NodeConfig.load(whole))
    files = [(pair.north.folder / name / "model.safetensors").read_bytes() for name in ("model", "whole")]
    assert files[0] == files[1]
    made = load_bundle(pair.north.folder / "model").manifest
    assert (made.domain, made.sample_shape, made.training.steps) == ("north-textures", (1, SIZE, SIZE), 40)


def test_what_they_trained_they_serve(pair: Pair, tmp_path: Path) -> None:
    """A picture of north's folder through both nodes and back, by the client's command."""
    try:
        pair.start()
        picture = pair.north.folder / "pictures" / "000.png"
        ddib("translate", picture, "--to", "south.example/south-textures", "--cycle", "--steps", 12,
             "--out", tmp_path, "--profile", pair.profile)  # fmt: skip
    finally:
        pair.north.stop()
        pair.south.stop()
    shapes = {path.name: read_image(path).pixels.shape for path in tmp_path.glob("*.png")}
    assert shapes == {"000.png": (SIZE, SIZE, 1), "000.returned.png": (SIZE, SIZE, 1)}
