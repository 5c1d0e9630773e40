"""docs/own-pictures.md is run: classes to classes in one process and through two nodes, with small checkpoints."""

from __future__ import annotations

import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from benchmarks.imagenet import FLAGS, SMALL, checkpoint
from ddib_fed.models.bundle import load_bundle
from tests.e2e.harness import Node, Pair, admit, ddib, free_port

pytestmark = pytest.mark.e2e

WHOLE = (Path(__file__).parents[3] / "docs" / "own-pictures.md").read_text(encoding="utf-8")
PAGE = WHOLE.partition("## Published checkpoints")[2].partition("\n## ")[0]
PAIRS = [(260, 261), (261, 262), (282, 283), (283, 284)]
SLOW = {
    "48": "6",
    "--device cuda --dtype float16": "--batch 1",
    "--classifier-scale 1.0": "--classifier-scale 10",
}
"""What the page asks of a machine with GPUs, and what is asked here; a random classifier says little with weight 1."""


def commands(*starts: str) -> list[list[str]]:
    """The page's commands that start so, as words; the flags are those of the small networks."""
    page = PAGE.replace("\\\n", " ")
    found = re.findall(r"^    (?:[a-z]+\$ )?(ddib[^\n]*)", page, re.MULTILINE)
    for old, new in SLOW.items():
        found = [re.sub(rf"(?<!\S){old}(?!\S)", new, line) for line in found]
    words = [shlex.split(line.replace("$MODEL_FLAGS", SMALL.flags)) for line in found]
    return [each for each in words if tuple(each[1 : 1 + len(starts)]) == starts]


def write_kit(folder: Path) -> None:
    """A kit whose ids are not the numbers of models, and one noisy picture of each class of the pairs."""
    wnids = [f"n{number:08}" for number in range(1000)]
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    rows = [(1000 - number, wnid, 0) for number, wnid in enumerate(wnids)]
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("num_children", "O")]
    savemat(data / "meta.mat", {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)})
    truth = [1000 - source for source, _ in PAIRS]
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, truth)) + "\n")
    (folder / "ILSVRC2012_img_val").mkdir()
    for ordinal in range(1, len(PAIRS) + 1):
        pixels = np.random.default_rng(ordinal).normal(128.0, 40.0, (90, 120, 3)).clip(0, 255)
        name = f"ILSVRC2012_val_{ordinal:08}.JPEG"
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "ILSVRC2012_img_val" / name, quality=95)


@pytest.fixture
def place(tmp_path: Path, monkeypatch) -> Path:
    """A folder with what the page says one needs, and the models imported by its commands."""
    monkeypatch.chdir(tmp_path)
    checkpoint(SMALL.network, tmp_path / "256x256_diffusion.pt", seed=0)
    checkpoint(SMALL.classifier, tmp_path / "256x256_classifier.pt", seed=1)
    write_kit(tmp_path)
    imports = commands("model", "import")
    assert len(imports) == 2
    for words in imports:
        ddib(*words[1:])
    return tmp_path


def nodes(place: Path) -> Pair:
    """The page's two nodes, at ports of this machine, each admitted by the other."""
    made = []
    for words in commands("init", "node"):
        port = free_port()
        words[words.index("--address") + 1] = f"localhost:{port}"
        ddib(*words[1:])
        given = dict(pairwise(words))
        config = place / given["--out"] / "node.toml"
        config.write_text(config.read_text().replace("[policy]\n", "[policy]\nleast_evaluations = 3\n", 1))
        made.append(Node(place / given["--out"], given["--role"], given["--institution"], port))
    north, south = made
    admit(north, south)
    admit(south, north)
    return Pair(north, south, place / "north" / "alice" / "client.toml")


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_the_page_makes_the_same_pictures_in_one_process_and_through_two_nodes(place: Path) -> None:
    """Under the public code's names, at the model's size, and guided: the target's classifier is in the record."""
    local, federated = commands("translate")
    ddib(*local[1:])
    pair = nodes(place)
    try:
        pair.start()
        ddib(*federated[1:])
        offered = json.loads(ddib("domains", "--format", "json", "--profile", pair.profile))["domains"][0]
    finally:
        pair.stop()
    assert offered["guidance"]["max_classifier_scale"] == 10
    names = {f"{source}_1.PNG" for source, _ in PAIRS}
    names |= {f"{source}_1_translated_{target}.PNG" for source, target in PAIRS}
    for folder in ("imagenet", "federated"):
        assert {path.name for path in (place / folder).glob("*.PNG")} == names
    for name in names:
        one, two = pixels(place / "imagenet" / name), pixels(place / "federated" / name)
        assert one.shape == (32, 32, 3)
        assert np.abs(one - two).max() <= 1
    for source, target in PAIRS:
        record = json.loads((place / "federated" / f"{source}_1_translated_{target}.json").read_text())
        assert (record["source_class"], record["target_class"]) == (str(source), str(target))
        assert record["guidance"] == {"classifier_scale": 10.0, "clip": False}
        assert record["classifier_sha256"] == load_bundle(place / "adm-256-classifier").digest
        own = json.loads((place / "imagenet" / f"{source}_1_translated_{target}.json").read_text())
        for field in ("guidance", "classifier_sha256", "target_model_sha256", "source_class", "target_class"):
            assert own[field] == record[field]


def test_the_flags_of_the_page_are_those_of_the_benchmark() -> None:
    """`python -m benchmarks.imagenet` imports networks of the published size by the same line."""
    assert f'MODEL_FLAGS="{FLAGS}"' in PAGE
