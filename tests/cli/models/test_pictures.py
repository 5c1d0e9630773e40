"""`ddib bridge` and `ddib model sample` on models of pictures."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from ddib_fed.bridge.calibration.files import write_calibration
from ddib_fed.bridge.calibration.record import CalibratedSide, units_digest
from ddib_fed.cli.class_names import parse_pairs
from ddib_fed.cli.models.bridge import bridge
from ddib_fed.cli.models.model import model
from ddib_fed.cli.models.opening import open_model
from ddib_fed.cli.models.pictures import classes_of
from ddib_fed.cli.models.training.trying import try_
from ddib_fed.datasets.shipped import load_shipped
from ddib_fed.errors import (
    AlreadyExists,
    CalibrationForeign,
    ExitCode,
    ImageUnreadable,
    LatentNotGaussian,
    SettingsInvalid,
    UsageError,
)
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.models.catalogue import shipped_names
from ddib_fed.models.manifest import PictureFormat
from ddib_fed.models.units.channel_map import ChannelMap
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.samples.images import encode_png
from tests.runs.tiny_models import tiny, tiny_classifier
from tests.trust.calibrations.examples import calibration

FEW = ("--steps", "3")


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


@pytest.mark.slow
def test_pictures_larger_than_a_model_of_parts_keep_their_size(place, tmp_path):
    """As between nodes: all of one size in tiles, of several sizes fitted, which is the first that is said."""
    models = [tiny(name, seed=seed, soften_sigma=0.02, picture=PictureFormat(tiles=True)) for seed, name in
              enumerate(("here", "there"))]  # fmt: skip
    for made in models:
        save_bundle(tmp_path / made.manifest.name, made.manifest, made.state)
    (folder := tmp_path / "in").mkdir()
    generator = np.random.default_rng(0)

    def put(name, *size):
        pixels = generator.integers(0, 255, (*size, 1)).astype(np.uint8)
        (folder / name).write_bytes(encode_png(pixels))

    put("a.png", 16, 20)
    put("b.png", 16, 20)
    pair = ("--source", tmp_path / "here", "--target", tmp_path / "there", *FEW, "--depth", "0.5")
    said = call(bridge, "cycle", folder, *pair, "--out", tmp_path / "tiles").stdout
    assert said.splitlines()[0].split() == ["pictures", "2"]
    record = json.loads((tmp_path / "tiles" / "a.json").read_text())
    assert record["run"]["settings"]["scene"] == [16, 20]
    assert "fitted_height" not in record["picture"]
    put("c.png", 12, 12)
    said = call(bridge, "cycle", folder, *pair, "--out", tmp_path / "fitted").stdout
    assert "3 of 3 pictures were not translated at their own size" in said.splitlines()[0]


@pytest.mark.slow
def test_a_folder_goes_there_and_back(place, tmp_path):
    pair = ("--source", place / "north", "--target", place / "south", *FEW)
    said = call(bridge, "cycle", place / "in", *pair, "--depth", "0.5", "--out", tmp_path / "out").stdout
    assert said.splitlines()[0].startswith("size")
    assert "was translated at 8x8 pixels, not at its own 8x10" in said.splitlines()[0]
    assert said.splitlines()[1].split() == ["pictures", "2"]
    assert "PSNR" in said
    record = json.loads((tmp_path / "out" / "0" / "scan1.json").read_text())
    assert record["solver"]["depth"] == record["run"]["settings"]["depth"] == 0.5
    again = call(bridge, "cycle", place / "in", *pair, "--depth", "0.5", "--out", tmp_path / "out").stdout
    assert "2 (2 were there)" in again
    with pytest.raises(AlreadyExists):
        call(bridge, "cycle", place / "in", *pair, "--out", tmp_path / "out")


@pytest.mark.slow
def test_a_calibration_in_a_file_is_applied_and_named(place, tmp_path):
    """Another one is another run; one of other domains is refused before anything is written."""
    units = units_digest(Normalisation())
    sides = {
        side: CalibratedSide(domain=domain, units_sha256=units)
        for side, domain in (("source", "north"), ("target", "south"))
    }
    made = calibration(**sides, map=ChannelMap(rotation=((-1.0,),)))
    write_calibration(made, tmp_path / "c.json")
    pair = ("--source", place / "north", "--target", place / "south", *FEW, "--depth", "0.5")
    with_it = ("--calibration", tmp_path / "c.json")
    call(bridge, "translate", place / "in", *pair, *with_it, "--out", tmp_path / "out")
    record = json.loads((tmp_path / "out" / "0" / "scan1.json").read_text())
    assert record["calibration_sha256"] == made.sha256.hex() == record["run"]["settings"]["calibration"]
    assert record["calibration_kind"] == "rotation"
    with pytest.raises(AlreadyExists):
        call(bridge, "translate", place / "in", *pair, "--out", tmp_path / "out")
    back = ("--source", place / "south", "--target", place / "north", *FEW)
    with pytest.raises(CalibrationForeign):
        call(bridge, "translate", place / "in", *back, *with_it, "--out", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.slow
def test_a_picture_that_a_node_would_refuse_is_refused_and_the_others_are_translated(tmp_path):
    """A checkerboard is no satellite picture: its latent has a deviation of about 15. --skip-bad makes it no error."""
    folder = tmp_path / "in"
    folder.mkdir()
    test = load_shipped("satellite").test[0]
    (folder / "map.png").write_bytes(
        encode_png(np.rint((test.transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8))
    )
    board = np.indices(test.shape[1:]).sum(axis=0) % 2 * 255
    (folder / "board.png").write_bytes(encode_png(np.repeat(board[..., None], 3, axis=2).astype(np.uint8)))
    pair = ("--source", "satellite", "--target", "relief", "--evaluations", "12", "--out", tmp_path / "out")
    with pytest.raises(LatentNotGaussian, match="1 pictures were refused") as refused:
        call(bridge, "translate", folder, *pair)
    assert refused.value.exit_code == ExitCode.REFUSED
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["count"], report["bad"][0]["path"]) == (1, str(folder / "board.png"))
    assert "of only 2 different values" in report["bad"][0]["reason"]
    assert "train the source's model longer" in refused.value.hint
    assert "--skip-bad" in refused.value.hint
    said = call(bridge, "translate", folder, *pair, "--skip-bad").stdout
    assert "1 that cannot be used" in said


def test_bad_pictures_are_named(place, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "good.png").write_bytes((place / "in" / "0" / "scan0.png").read_bytes())
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    pair = ("--source", place / "north", "--target", place / "south", *FEW, "--out", tmp_path / "out")
    with pytest.raises(ImageUnreadable):
        call(bridge, "translate", folder, *pair)
    result = call(bridge, "translate", folder, *pair, "--skip-bad")
    assert "bad.png" in result.stderr
    assert "1 that cannot be used" in result.stdout


@pytest.mark.slow
def test_class_to_class_with_a_classifier(place, tmp_path):
    call(
        bridge,
        "translate",
        place / "in",
        *("--source", place / "classy", "--target", place / "classy", "--pairs", "0:2", "--limit", "1"),
        *("--classifier", place / "classifier", "--classifier-scale", "2"),
        *("--compat", "ddib", "--solver", "ddim", "--steps", "50", "--out", tmp_path / "out"),
    )
    assert (tmp_path / "out" / "0_1_translated_2.PNG").exists()
    assert not (tmp_path / "out" / "0_2.PNG").exists()
    settings = json.loads((tmp_path / "out" / "report.json").read_text())["settings"]
    assert (settings["grid"], settings["clip"], settings["soften"]) == ("ddib", True, 0.0)
    assert settings["classifier_scale"] == 2


def test_a_way_between_two_pictures(place, tmp_path):
    ends = [place / "in" / "0" / f"scan{number}.png" for number in (0, 1)]
    said = call(
        bridge, "interpolate", *ends, "--source", place / "north", "--frames", "3", *FEW, "--out", tmp_path
    )
    assert (tmp_path / "frame_2.png").exists()
    assert "sheet.png" in said.output


def test_samples_of_a_class(place, tmp_path):
    call(model, "sample", place / "classy", "--n", "3", "--class", "1", *FEW, "--out", tmp_path / "out")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["class"], report["count"]) == (1, 3)
    assert (tmp_path / "out" / "sample_2.png").exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("--source", "north", "--target", "south"), UsageError),
        (("in", "--source", "north", "--target", "south", "--input", "points.npy"), UsageError),
        (("in", "--source", "north", "--target", "south", "--labels", "in"), UsageError),
        (("in", "--source", "north", "--target", "south", "--pairs", "0:1"), UsageError),
        (
            ("in", "--source", "classy", "--target", "classy", "--pairs", "0:1", "--target-class", "1"),
            UsageError,
        ),
        (("in", "--source", "classy", "--target", "classy", "--pairs", "0:1,0:1"), SettingsInvalid),
        (("in", "--source", "classy", "--target", "classy"), SettingsInvalid),
        (("in", "--source", "north", "--target", "south", "--device", "abacus"), SettingsInvalid),
        (("in", "--source", "moons", "--target", "moons"), UsageError),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(place, tmp_path, monkeypatch, arguments, error):
    monkeypatch.chdir(place)
    with pytest.raises(error):
        call(bridge, "translate", *arguments, *FEW, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_classes_go_by_number_and_by_name():
    manifest = tiny(num_classes=2).manifest.model_copy(update={"classes": ("cat", "7")})
    classes = classes_of(manifest)
    assert [classes.number(text) for text in ("cat", "7", "1", " 0 ")] == [0, 1, 1, 0]
    assert parse_pairs("cat:1, 1:cat", classes, classes) == ((0, 1), (1, 0))
    for wrong in ("2", "dog", "-1", ""):
        with pytest.raises(UsageError):
            classes.number(wrong)
    with pytest.raises(UsageError):
        parse_pairs("cat", classes, classes)


def test_an_unconditional_model_has_its_classifiers_classes():
    assert classes_of(tiny().manifest, tiny_classifier(3).manifest).number("2") == 2
    with pytest.raises(UsageError):
        classes_of(tiny().manifest).number("0")


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
    options = (
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
    )
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
