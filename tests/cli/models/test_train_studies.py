"""`ddib model train --images` on DICOM series, NIfTI and maps: what is learned is what `ddib translate` sends."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner, Result

from ddib_fed.cli.model import model
from ddib_fed.data.fitting import PictureRule, fit_picture
from ddib_fed.data.pictures import decode_image
from ddib_fed.data.study import Options
from ddib_fed.errors import InputError
from ddib_fed.models.bundle import load_bundle
from ddib_fed.recognition import open_paths
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.sources import PictureSource, folder_source
from tests.formats.dicom.files import words_of, write_contrasts, write_series
from tests.formats.maps import write_map

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:affine")]
TINY = (
    "--size", 8, "--set", "model_channels=32", "--set", "channel_mult=1", "--set", "num_res_blocks=1", "--batch", 8,
    "--steps", 2,
)  # fmt: skip
CANARY = "Ada-Lovelace-1815"


def smooth(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 2000, (*shape[:-2], shape[-2] // 4, shape[-1] // 4))
    return coarse.repeat(4, axis=-2).repeat(4, axis=-1)


def ct(folder: Path, number: int, **changes) -> list[Path]:
    """A series of ten slices of 16 x 16, the first of them empty, in Hounsfield units from -1024 on."""
    values = smooth(10, 16, 16, seed=number)
    values[0] = 0
    changes = {"header": "CT_small.dcm", "intercept": -1024.0, "RescaleType": "HU", **changes}
    return write_series(folder / f"s{number}", values, SeriesNumber=number, **changes)


def volume(path: Path, seed: int, dtype: type = np.int16) -> Path:
    values = smooth(12, 16, 16, seed=seed).transpose(1, 0, 2).astype(dtype)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([2.0, 2, 2, 1])), path)
    return path


@pytest.fixture
def given(tmp_path: Path) -> Path:
    (folder := tmp_path / "given").mkdir()
    return folder


@pytest.fixture
def ddib(given: Path, tmp_path: Path):
    """Train on the folder; errors of ours come out as they are."""

    def call(*words: object, on: Path = given) -> Result:
        words = ("train", "--images", on, "--out", tmp_path / "m", *TINY, *words)
        return CliRunner().invoke(
            model, [str(w) for w in words], catch_exceptions=False, standalone_mode=False
        )

    return call


def source(folder: Path, **settings) -> tuple[PictureSource, list[str]]:
    said: list[str] = []
    return folder_source(
        TrainConfig(kind="pictures", images=folder, size=8, **settings), say=said.append
    ), said


def numbers(item: bytes, rule: PictureRule) -> bytes:
    samples = fit_picture(decode_image(item), rule).samples
    return np.rint((samples + 1) * np.float32(rule.top / 2)).astype(f"u{rule.bits // 8}").tobytes()


def sent(path: Path, options: Options, rule: PictureRule) -> dict[bytes, int]:
    studies = open_paths([path], options).studies
    return {numbers(item, rule): at for at in range(len(studies)) for item in studies[at].items()}


def rule_of(found: PictureSource) -> PictureRule:
    assert found.picture is not None
    return PictureRule(1, 8, 8, found.picture.fit, found.picture.low, found.picture.high, found.picture.bits)


def pictures(found: PictureSource) -> set[bytes]:
    return {each.tobytes() for each in (*found.train, *found.held_out)}


def test_a_folder_of_ct_becomes_a_model_of_hounsfield_units(ddib, given, tmp_path):
    for number in range(3):
        ct(given, number)
    result = ddib()
    made = load_bundle(tmp_path / "m").manifest
    assert made.picture is not None
    assert (made.picture.intensity, made.picture.slices) == ("hu", None)
    assert (made.picture.low, made.picture.high, made.picture.bits) == (-1000, 2000, 16)
    assert "3 x DICOM series (CT), 27 planes that show something, 3 left out" in result.stderr
    shown = CliRunner().invoke(model, ["show", str(tmp_path / "m")], standalone_mode=False).output
    assert "intensity hu" in shown
    window, _ = source(given, range="-160:240")
    assert window.picture is not None
    assert (window.picture.intensity, window.picture.low, window.picture.high) == ("hu", -160, 240)


def test_slices_and_tiles_are_to_the_bit_what_translating_sends(given, tmp_path):
    for number in range(2):
        volume(given / f"{number}.nii", number)
    (series := tmp_path / "series").mkdir()
    for number in range(2):
        ct(series, number)
    found, _ = source(series)
    assert pictures(found) == sent(series, Options(), rule_of(found)).keys()
    found, _ = source(given, slices="sagittal")
    assert pictures(found) == sent(given, Options(slices="sagittal"), rule_of(found)).keys()
    (maps := tmp_path / "maps").mkdir()
    for number in range(2):
        write_map(maps / f"{number}.tif", smooth(1, 20, 28, seed=number).astype(np.uint16))
    found, _ = source(maps)
    assert found.picture is not None
    assert found.picture.tiles
    assert pictures(found) == sent(maps, Options(tile=(8, 8)), rule_of(found)).keys()


def owners(folder: Path, found: PictureSource, options: Options) -> tuple[set[int], set[int]]:
    of = sent(folder, options, rule_of(found))
    train, held = ({of[each.tobytes()] for each in part} for part in (found.train, found.held_out))
    return train, held


def test_series_of_one_patient_are_held_out_together(given):
    """Three patients of two series each, whose slices may show the same; a share of a fifth holds one out."""
    for number in range(6):
        ct(given, number, PatientID=f"{CANARY}-{number // 2}")
    found, said = source(given, intensity="window:0,2000", held_out=0.2)
    train, held = owners(given, found, Options("window:0,2000"))
    assert len(held) == 2
    assert len({at // 2 for at in held}) == 1
    assert not train & held
    assert any("whole patients, of 3" in line for line in said)
    assert not any(CANARY in line for line in said)


def test_one_echo_of_a_series_is_not_held_out_of_the_others(given):
    """Keep them together, as they show the same slices."""
    write_contrasts(given, smooth(4, 16, 16), {"EchoTime": 12}, {"EchoTime": 90})
    with pytest.raises(InputError, match="there is one DICOM series"):
        source(given)


def test_the_end_of_a_map_is_held_out_and_no_tile_overlaps_it(given):
    write_map(given / "map.tif", np.arange(24 * 40, dtype=np.uint16).reshape(1, 24, 40))
    found, _ = source(given, intensity="window:32767.5,65535@0:65535")
    train, held = ({int(number) for number in part.ravel()} for part in (found.train, found.held_out))
    assert held
    assert not train & held
    assert {number % 40 for number in held} == set(range(32, 40))


def test_what_is_not_of_one_kind_is_refused(ddib, given, tmp_path):
    ct(given, 0)
    ct(given, 1, Modality="MR")
    with pytest.raises(InputError, match=r"not of one kind.*series \(CT\); DICOM series \(MR\)"):
        ddib("--intensity", "percentile:1,99")
    volume(given / "head.nii", 0)
    with pytest.raises(InputError, match=r"not of one kind.*DICOM file; NIfTI volume"):
        ddib()
    (tmp_path / "two").mkdir()
    volume(tmp_path / "two" / "a.nii", 0)
    volume(tmp_path / "two" / "b.nii", 1, np.uint8)
    with pytest.raises(InputError, match=r"intensity percentile:0.5,99.5@0:255; intensity values") as caught:
        ddib(on=tmp_path / "two")
    assert "--intensity RULE" in caught.value.hint


def test_nothing_of_a_header_is_in_the_bundle(ddib, given, tmp_path):
    """Neither the canaries, nor any other text of the headers, nor a name of a file; in no file of the run either."""
    for number in range(2):
        ct(
            given, number, PatientName=CANARY, PatientID=f"{CANARY}-{number}", StudyDescription=f"{CANARY}-study",
        )  # fmt: skip
    said = ddib()
    words = {word for path in given.rglob("IM*") for word in words_of(path)} | {CANARY}
    manifest = json.loads((tmp_path / "m" / "manifest.json").read_text())
    assert manifest["picture"]["intensity"] == "hu"
    texts = [path.read_bytes().decode("latin-1") for path in (tmp_path / "m").rglob("*") if path.is_file()]
    found = {word for word in words for text in (*texts, said.output, said.stderr) if word in text}
    assert not found
