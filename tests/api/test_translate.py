"""`ddib_fed.translate` on what a notebook has: arrays, PIL pictures, paths; what it returns, and what it refuses."""

import io
import json
import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import ddib_fed
from ddib_fed import Request, Settings
from ddib_fed.calibration.record import CalibratedSide, Dial
from ddib_fed.datasets import cut_scene, load_shipped
from ddib_fed.errors import (
    AlreadyExists,
    CalibrationForeign,
    FileMissing,
    KindMismatch,
    PictureMisfit,
    SettingsInvalid,
    ShapeMismatch,
    UsageError,
)
from tests.calibration.examples import calibration
from tests.node.volume_examples import SIDES, save_volume_model, voxels


@pytest.fixture(scope="module")
def satellite():
    return ddib_fed.Model.open("satellite")


@pytest.fixture(scope="module")
def relief():
    return ddib_fed.Model.open("relief")


def scene(size: tuple[int, int] = (32, 32)) -> Image.Image:
    crop = load_shipped("satellite").test[7]
    pixels = crop if crop.dtype == np.uint8 else ((crop + 1) * 127.5).round().astype(np.uint8)
    return Image.fromarray(pixels.transpose(1, 2, 0)).resize(size, Image.Resampling.BICUBIC)


FEW = Request(Settings(evaluations=6))
UNIT = np.linspace(0, 1, 32 * 32 * 3, dtype=np.float32).reshape(32, 32, 3)
"""A picture of values from 0 to 1, where the model takes 0 to 255."""


@pytest.mark.slow
def test_each_picture_is_translated_at_its_own_size_or_says_that_it_was_not(satellite, relief) -> None:
    """Satellite knows parts of a map: a larger picture stays as large, one of too many tiles is fitted."""
    coast = Image.fromarray(cut_scene("satellite", 3, (330, 370), detail=1).transpose(1, 2, 0)).crop(
        (0, 0, 48, 40)
    )
    given = [coast, coast.crop((0, 0, 32, 32)), coast.resize((900, 900), Image.Resampling.LANCZOS)]
    found = [*ddib_fed.translate(given, satellite, relief, Request(Settings(evaluations=16), cycle=True))]
    assert [each.picture.size for each in found] == [each.size for each in given]
    assert [each.record.picture.fitted_width for each in found] == [None, None, 32]
    assert "computed at 32 x 32 pixels, not at its own 900 x 900" in repr(found[2])
    for each, picture in zip(found, given, strict=True):
        gap = (np.asarray(picture, np.float64) - np.asarray(each.returned, np.float64)) / 127.5
        measured = 10 * np.log10(4 / np.square(gap).mean())
        assert each.record.picture.cycle_psnr == pytest.approx(measured, abs=0.1)


@pytest.mark.slow
def test_saved_results_are_those_of_the_commands(satellite, relief, tmp_path) -> None:
    asked = replace(FEW, cycle=True, keep_latents=True)
    [result] = ddib_fed.translate(scene(), satellite, relief, asked)
    out, before = tmp_path / "out", os.umask(0)
    assert result.save(out, "a") == out / "a.png"
    os.umask(before)
    names = {path.name for path in out.iterdir()}
    assert names == {"a.png", "a.returned.png", "a.latent.npy", "a.json"}
    assert json.loads((out / "a.json").read_text())["files"]["translation"]["file"] == "a.png"
    assert [path for path in (out, *out.iterdir()) if path.stat().st_mode & 0o077] == []
    with pytest.raises(AlreadyExists):
        result.save(out, "a")


@pytest.mark.parametrize(
    ("samples", "error"),
    [
        ([], UsageError),
        ("no-such-file.png", FileMissing),
        (object(), UsageError),
        (UNIT, PictureMisfit),
        (np.zeros((40, 2), np.float32), KindMismatch),
    ],
    ids=["nothing", "no file", "an object", "another scale", "points"],
)
def test_what_cannot_be_translated_is_refused(satellite, relief, samples, error) -> None:
    with pytest.raises(error):
        next(ddib_fed.translate(samples, satellite, relief))


@pytest.mark.slow
def test_a_calibration_is_applied_and_recorded(satellite, relief) -> None:
    """The object or its file; between nodes it is the operators', and in one process there is none to leave out."""
    sides = {
        side: CalibratedSide(domain=model.domain, units=model.party.model.manifest.normalisation)
        for side, model in (("source", satellite), ("target", relief))
    }  # fmt: skip
    made = calibration(**sides)

    def translated(*models, **asked):
        settings = Settings(evaluations=4, blend=asked.pop("blend", 0.0))
        [found] = ddib_fed.translate(
            scene(), *models, Request(settings, keep_latents=True, soften=0.0, **asked)
        )
        return found

    plain = translated(satellite, relief)
    found = translated(satellite, relief, calibration=made)
    np.testing.assert_allclose(found.latent, made.map.apply(plain.latent), atol=1e-3)
    assert found.record.calibration_sha256 == made.sha256.hex()
    dialled = made.model_copy(update={"dial": Dial(share=0.75, temperature=0.9, blend=0.3)})
    mixed = translated(satellite, relief, calibration=dialled, blend=0.5)
    alone = translated(satellite, relief, calibration=dialled, left=("share", "temperature"))
    solver = mixed.record.solver
    assert (solver.share, solver.temperature, solver.blend) == (0.75, 0.9, 0.5)
    own = np.asarray(scene(), np.float32).transpose(2, 0, 1)[None] / 127.5 - 1
    wanted = (
        0.5 * np.asarray(alone.picture, np.float32)
        + 0.5 * (made.alone(own)[0].transpose(1, 2, 0) + 1) * 127.5
    )
    assert np.abs(np.asarray(mixed.picture, np.float32) - wanted).max() <= 1.5
    with pytest.raises(SettingsInvalid, match="blend"):
        translated(satellite, relief, blend=0.3)
    with pytest.raises(CalibrationForeign):
        translated(relief, satellite, calibration=made)
    with pytest.raises(UsageError, match="no calibration"):
        translated(satellite, relief, without_calibration=True)


def test_an_array_of_three_axes_is_a_volume(tmp_path) -> None:
    """Its result has the same axes, is drawn by its middle slices, and is no PIL picture; larger ones go in blocks."""
    save_volume_model(tmp_path / "north", "north", seed=1)
    save_volume_model(tmp_path / "south", "south", seed=2)
    models = [ddib_fed.Model.open(tmp_path / name) for name in ("north", "south")]
    assert repr(models[0]) == "<Model north: volumes of 1 x 12 x 16 x 8>"
    (found,) = ddib_fed.translate(voxels(), *models, Request(Settings(evaluations=8), cycle=True))
    assert found.array.shape == found.returned.shape == (*SIDES, 1)
    assert np.abs(found.returned[..., 0].astype(int) - voxels()).max() <= 1
    assert "12 x 16 x 8 volume, round trip" in repr(found)
    assert Image.open(io.BytesIO(found._repr_png_())).size == (8 + 8 + 16, 16)
    with pytest.raises(UsageError, match="a volume, not a picture"):
        _ = found.picture
    assert np.load(found.save(tmp_path, "head")).shape == SIDES
    with pytest.raises(ShapeMismatch, match="sample 0: a volume of 12 x 16 x 16 voxels"):
        next(ddib_fed.translate(voxels(sides=(12, 16, 16)), *models, FEW))
    large = [model.of_scene(12, 16, 16) for model in models]
    (found,) = ddib_fed.translate(voxels(sides=(12, 16, 16)), *large, FEW)
    assert found.array.shape == (12, 16, 16, 1)
