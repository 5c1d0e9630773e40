"""`ddib model sample` and `interpolate`, and `ddib try`."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ddib_fed.calibration.record import CalibratedSide, units_digest, write_calibration
from ddib_fed.cli.model import model
from ddib_fed.cli.options import Classes, open_model, parse_pairs
from ddib_fed.cli.train import try_
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import (
    UsageError,
)
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.models.catalogue import shipped_names
from ddib_fed.models.units import ChannelMap
from tests.calibration.examples import calibration
from tests.runs.tiny_models import tiny, tiny_classifier

FEW = ("--evaluations", "3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two models, one with classes, a classifier, and two pictures."""
    root = tmp_path_factory.mktemp("place")
    models = {
        "north": tiny("north", seed=1, soften_sigma=0.02),
        "south": tiny("south", seed=2, soften_sigma=0.02),
        "classy": tiny("classy", num_classes=3),
        "classifier": tiny_classifier(3),
    }
    for name, made in models.items():
        save_bundle(root / name, made.manifest, made.state)
    (root / "in" / "0").mkdir(parents=True)
    for number in range(2):
        pixels = np.full((10, 8, 1), 60 * number + 40, np.uint8)
        (root / "in" / "0" / f"scan{number}.png").write_bytes(encode_png(pixels))
    return root


def call(group, *arguments):
    return CliRunner().invoke(
        group, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False
    )


def test_a_way_between_two_pictures(place, tmp_path):
    ends = [place / "in" / "0" / f"scan{number}.png" for number in (0, 1)]
    said = call(model, "interpolate", *ends, "--source", place / "north", *FEW, "--out", tmp_path)
    assert (tmp_path / "frame_2.png").exists()
    assert "sheet.png" in said.output


def test_samples_of_a_class(place, tmp_path):
    call(
        model, "sample", place / "classy", "--n", "3", "--target-class", "1", *FEW, "--out", tmp_path / "out"
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["class"], report["count"]) == (1, 3)
    assert (tmp_path / "out" / "sample_2.png").exists()


def test_classes_go_by_number_and_by_name():
    classes = Classes("pets", 2, ("cat", "7"))
    assert [classes.number(text) for text in ("cat", "7", "1", " 0 ")] == [0, 1, 1, 0]
    assert parse_pairs("cat:1, 1:cat", classes, classes) == ((0, 1), (1, 0))
    for wrong in ("2", "dog", "-1", ""):
        with pytest.raises(UsageError):
            classes.number(wrong)
    with pytest.raises(UsageError):
        parse_pairs("cat", classes, classes)


@pytest.mark.slow
@pytest.mark.long
def test_trying_two_folders_ends_with_a_page(tmp_path):
    """All options reach the rehearsal; with a calibration its way is translated again by the same models."""
    rng = np.random.default_rng(0)
    for name in ("left", "right"):
        (tmp_path / name).mkdir()
        for number in range(12):
            pixels = rng.integers(0, 256, (9, 8, 1), np.uint8)
            (tmp_path / name / f"{number}.png").write_bytes(encode_png(pixels))
    options = [
        "--steps",
        "1",
        "--batch",
        "2",
        "--size",
        "8",
        "--fit",
        "pad",
        "--pictures",
        "2",
        "--evaluations",
        "3",
    ]
    where = (tmp_path / "left", tmp_path / "right", "--device", "cpu", "--out", tmp_path / "out")
    said = call(try_, *where, *options)
    assert (tmp_path / "out" / "index.html").exists()
    assert "index.html" in said.stdout
    assert load_bundle(tmp_path / "out" / "a").manifest.picture.fit == "pad"
    with pytest.raises(UsageError):
        call(try_, *where, *options, "--time", "5m")
    models = [load_bundle(tmp_path / "out" / letter).manifest for letter in ("a", "b")]
    sides = {
        side: CalibratedSide(domain=each.domain, units_sha256=units_digest(each.normalisation))
        for side, each in zip(("source", "target"), models, strict=True)
    }
    made = calibration(**sides, map=ChannelMap(rotation=((-1.0,),)))
    write_calibration(made, tmp_path / "c.json")
    call(try_, *where, *options, "--calibration", tmp_path / "c.json")
    assert f"rotation calibration {made.sha256.hex()[:12]}" in (tmp_path / "out" / "index.html").read_text()
    there, back = (
        json.loads(next((tmp_path / "out" / way).glob("*[0-9].json")).read_text())
        for way in ("a-to-b", "b-to-a")
    )
    assert there["calibration_sha256"] == made.sha256.hex()
    assert back["calibration_sha256"] == ""
    assert [load_bundle(tmp_path / "out" / letter).manifest for letter in ("a", "b")] == models


@pytest.mark.parametrize("name", shipped_names())
def test_every_model_that_ships_goes_by_its_name(name):
    """Of points and of pictures."""
    assert open_model(name).manifest.domain == name.split("-as-")[0]
