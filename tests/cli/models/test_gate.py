"""`ddib model measure` measures and stores; training does it by itself, or says why it did not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ddib_fed.cli.model import model
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import BundleInvalid, DdibError, InputError
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.models.sidecars import Allowances
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import train
from ddib_fed.training.sources import array_source
from tests.models.examples import manifest, state
from tests.runs.tiny_models import pictures, tiny


def ddib(*arguments: object) -> str:
    """Run `ddib model ...`; errors of ours come out as they are."""
    return (
        CliRunner()
        .invoke(model, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False)
        .output
    )


@pytest.fixture
def small(tmp_path):
    made = tiny("north", size=16, soften_sigma=0.05)
    save_bundle(tmp_path / "m", made.manifest, made.state)
    return tmp_path / "m"


def folder_of(path: Path, count: int) -> Path:
    path.mkdir()
    for number, each in enumerate(to_pixels(pictures(count, size=16))):
        (path / f"{number:03}.png").write_bytes(encode_png(each))
    return path


def test_what_was_measured_is_stored_and_shown(small, tmp_path):
    """The weights stay, thresholds are added; the command is noted without its paths."""
    before = load_bundle(small)
    assert "fixed bounds alone" in ddib("show", small)
    said = ddib("measure", small, "--data", folder_of(tmp_path / "data", 60))
    after = load_bundle(small)
    assert after.manifest.structure is not None
    assert after.manifest.weights_sha256 == before.manifest.weights_sha256
    assert after.allowances.command == "ddib model measure MODEL --data PATH"
    assert f"measured on {after.allowances.measured} latents" in said
    assert f"measured on {after.allowances.measured} latents" in ddib("show", small)
    shown = json.loads(ddib("show", small, "--format", "json"))
    assert shown["gate"]["digest"] == after.allowances.digest()


def test_a_file_of_other_weights_is_replaced(small, tmp_path):
    """As the error about it says."""
    (small / Allowances.file).write_text("{}")
    with pytest.raises(BundleInvalid, match=Allowances.file):
        load_bundle(small)
    ddib("measure", small, "--data", folder_of(tmp_path / "data", 60))
    assert load_bundle(small).allowances is not None


def test_what_cannot_be_measured_is_refused_with_its_cause(small, tmp_path):
    """Nothing is written if thresholds are not either; a picture that cannot be read is left out on request."""
    few = folder_of(tmp_path / "few", 30)
    (few / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DdibError):
        ddib("measure", small, "--data", few)
    assert load_bundle(small).manifest.structure is None
    said = ddib("measure", small, "--data", few, "--skip-bad")
    assert "40 pictures are needed" in said
    assert load_bundle(small).manifest.structure is not None
    with pytest.raises(InputError, match="40 pictures are needed"):
        ddib("measure", small, "--data", few, "--skip-bad")
    assert not (small / Allowances.file).exists()
    save_bundle(tmp_path / "points", manifest(), state())
    with pytest.raises(InputError, match="points of every set are encoded again"):
        ddib("measure", tmp_path / "points")


def trained(folder: Path, held_out: int):
    """Two steps; the bundle, and what was said."""
    said, whole = [], np.round((pictures(100 + held_out, channels=3, size=16) + 1) * 127.5).clip(0, 255)
    pixels = whole.astype(np.uint8)
    spots = array_source("spots", pixels[:100], pixels[100:])
    network = {"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
    config = TrainConfig(kind="pictures", network=network, steps=2, batch=4, samples=1)
    return train(config, folder, source=spots, say=said.append), " ".join(said)


@pytest.mark.slow
def test_training_measures_whatever_its_steps_cost_and_says_why_it_does_not(tmp_path):
    """The fewest pictures are encoded even of a run of two steps."""
    made, _ = trained(tmp_path / "m", 80)
    assert made.allowances is not None
    assert made.allowances.command == "at the end of training"
    again, said = trained(tmp_path / "few", 12)
    assert again.allowances is None
    assert "40 pictures are needed that the model was not trained on, and there are 12" in said
