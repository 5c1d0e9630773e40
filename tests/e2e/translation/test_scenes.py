"""A scene larger than the models' pictures, through two nodes that work on it in overlapping tiles."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ddib_fed.cli.main import run
from ddib_fed.datasets.maps import cut_scene
from tests.e2e.harness import Pair

pytestmark = pytest.mark.e2e


def test_two_nodes_of_one_scene_size_translate_a_scene_there_and_back(tmp_path: Path) -> None:
    scene = cut_scene("satellite", 3, (330, 378), detail=1).transpose(1, 2, 0)
    Image.fromarray(scene).save(tmp_path / "scene.png")
    with tempfile.TemporaryDirectory(prefix="ddib-scenes-") as name:
        pair = Pair.create(Path(name), "relief", domain="satellite")
        for node in (pair.north, pair.south):
            node.edit('# scene = "512x512"', 'scene = "48x75"')
        try:
            pair.start()
            words = ["translate", str(tmp_path / "scene.png"), "--to", "south.example/relief", "--cycle"]
            words += ["--steps", "24", "--keep-latent", "--out", str(tmp_path / "out")]
            assert run([*words, "--profile", str(pair.profile)]) == 0
        finally:
            pair.stop()
    translated = np.asarray(Image.open(tmp_path / "out" / "scene.png"))
    assert translated.shape == scene.shape == (48, 75, 3)
    assert np.load(tmp_path / "out" / "scene.latent.npy").shape == (1, 3, 48, 75)
    record = json.loads((tmp_path / "out" / "scene.json").read_text())
    assert record["picture"]["cycle_psnr"] > 22
