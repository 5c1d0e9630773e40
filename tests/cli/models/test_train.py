"""`ddib model train` on pictures: a folder, classes, initial weights; refusals come before any training."""

import pytest
from PIL import Image

from ddib_fed.cli import train as training
from ddib_fed.cli.model import model
from ddib_fed.data.shipped import SHIPPED
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.record import Guidance
from ddib_fed.models.bundle import load_bundle
from ddib_fed.training import config as presets
from tests.training.examples import blobs

SMALL = (
    *("--size", 8, "--set", "model_channels=32", "--set", "channel_mult=1"),
    *("--set", "num_res_blocks=1", "--batch", 8, "--steps", 2),
)


@pytest.fixture
def folder(tmp_path):
    """30 RGB pictures in two sub-folders."""
    for number, pixels in enumerate(blobs(30)):
        path = tmp_path / "scans" / ("even", "odd")[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(path)
    return tmp_path / "scans"


@pytest.mark.slow
def test_a_folder_becomes_a_bundle_with_its_classes_and_its_rule(ddib, folder, tmp_path):
    out = tmp_path / "m"
    options = [
        "--classes",
        "folders",
        "--set",
        "label_dropout=0.2",
        "--fit",
        "crop",
        "--range",
        "0:200",
        "--flip",
    ]
    result = ddib(model, "train", "--images", folder, "--out", out, *SMALL, *options)
    made = load_bundle(out).manifest
    assert (made.domain, made.sample_shape, made.classes) == ("scans", (3, 8, 8), ("even", "odd"))
    assert made.null_class == 2
    assert (made.picture.fit, made.picture.low, made.picture.high) == ("crop", 0, 200)
    assert "30 pictures, 0 left out" in result.stderr
    assert "parameters" in result.stderr
    assert "s a step" in result.stderr


def test_names_that_the_command_line_knows_without_importing_are_the_real_ones():
    assert tuple(SHIPPED) == presets.SHIPPED
    known = [name for name in presets.options_of("points", "pictures") if name != "threads"]
    assert [p.name for p in training.train.params if p.name in known] == known
    assert {"ema", "network", "crop"} <= set(presets.fields_of("points", "pictures")) - set(known)


@pytest.mark.slow
def test_a_classifier_is_trained_for_a_model_and_guides_it(ddib, folder, tmp_path):
    ddib(model, "train", "--images", folder, "--out", tmp_path / "m", *SMALL)
    network = tuple(f"--set={each}" for each in ("model_channels=32", "channel_mult=1", "num_res_blocks=1"))
    made_for = ("train", "--images", folder, "--for", tmp_path / "m", *network, "--batch", 8, "--steps", 3)
    result = ddib(model, *made_for, "--out", tmp_path / "c")
    assert "held_out_loss" in result.output
    model_bundle, guide = (load_bundle(tmp_path / name) for name in "mc")
    assert (guide.manifest.role, guide.manifest.classes) == ("classifier", ("even", "odd"))
    assert guide.manifest.normalisation == model_bundle.manifest.normalisation
    assert DomainModel(model_bundle, classifier=guide).denoiser(Guidance(classifier_scale=1.0)) is not None
