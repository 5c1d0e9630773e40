"""An option that would have no effect is refused by its name before anything is written, never ignored."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ddib_fed.cli.main import cli
from ddib_fed.errors import SettingsInvalid, UsageError
from ddib_fed.models.bundle import save_bundle
from tests.runs.picture_folders import blocks, write
from tests.runs.tiny_models import tiny, tiny_classifier
from tests.training.examples import blobs

FEW = ("--evaluations", "3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models with and without classes and softening, a classifier, a picture, and points."""
    root = tmp_path_factory.mktemp("place")
    models = {
        "plain": tiny("plain"),
        "soft": tiny("soft", soften_sigma=0.02),
        "dropped": tiny("dropped", num_classes=3, class_dropout=True),
        "classifier": tiny_classifier(3),
    }
    for name, made in models.items():
        save_bundle(root / name, made.manifest, made.state)
    write(root / "in", blocks(1))
    write(root / "other", blocks(1))
    np.save(root / "points.npy", np.random.default_rng(0).normal(size=(20, 2)))
    return root


@pytest.fixture
def refused(place, tmp_path, monkeypatch):
    """Runs `ddib WORDS... --out out` where the models lie; it must be refused, and `out` must not be there."""
    monkeypatch.chdir(place)

    def call(line: str) -> str:
        words = [*line.split(), "--out", str(tmp_path / "out")]
        with pytest.raises((UsageError, SettingsInvalid)) as caught:
            CliRunner().invoke(cli, words, catch_exceptions=False, standalone_mode=False)
        assert not (tmp_path / "out").exists()
        return f"{caught.value.detail} {caught.value.hint}"

    return call


PICTURES = "translate in --source soft --target soft --evaluations 3"
POINTS = "translate points.npy --source moons --target checkerboards --evaluations 12"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (f"{PICTURES} --classifier-scale 3", "--classifier MODEL"),
        ("model sample dropped --n 1 --evaluations 3 --guidance 3", "--target-class"),
    ],
)
def test_guidance_without_what_it_needs_is_refused(refused, line, named):
    """Who ports the public command and forgets one option must not get unguided pictures."""
    assert named in refused(line)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("model train --domain satellite --steps 1 --fit pad", "--fit"),
        ("model train --domain moons --steps 1 --resume --force", "--resume"),
        ("model train --images scans --size 8 --steps 1 --set image_size=16", "image_size"),
        ("model train --images scans --for dropped --steps 1 --set colours=opponent", "colours"),
        ("model import --synthetic points.npy --soften-sigma 0", "--soften-sigma"),
    ],
)
def test_training_and_import_refuse_what_they_would_not_use(refused, place, line, named):
    for number, pixels in enumerate(blobs(12, channels=1)):
        path = place / "scans" / str(number % 3) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0]).save(path)
    assert named in refused(line)


@pytest.mark.parametrize("option", ["--seed 1", "--soften-sigma 0.1", "--flags x", "--device cpu"])
def test_what_one_process_alone_can_do_is_refused_between_nodes(refused, option):
    assert option.split()[0] in refused(f"translate in --to south.example/relief {option}")
