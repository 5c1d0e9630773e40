"""What a dropped file is, found by reading it as `ddib translate` will."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.errors import DdibError, ExtraMissing, ImageUnreadable, InputError
from ddib_fed.samples.images import encode_png
from ddib_fed.web.researcher.recognising import Kind, recognise
from tests.formats.dicom.files import write_series
from tests.formats.echoes import DICOM, NIFTI
from tests.formats.maps import write_map
from tests.formats.test_geotiff import SMOOTH

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:affine")
VALUES = np.random.default_rng(0).integers(0, 2000, (1, 12, 10))
FOLDER = Path("Ada")


def test_files_of_the_field_are_told_from_plain_ones(tmp_path: Path) -> None:
    """A slice without a suffix, a volume, a map; a TIFF without a georeference is plain."""
    (tmp_path / "plain.png").write_bytes(encode_png(np.zeros((4, 4, 1), np.uint8)))
    write_series(tmp_path / "mr", VALUES)
    write_map(tmp_path / "map.tif", SMOOTH)
    found = {
        path.name: recognise(path, FOLDER).kind
        for path in (
            tmp_path / "plain.png",
            tmp_path / "mr" / "IM001",
            NIFTI / "standard.nii.gz",
            tmp_path / "map.tif",
        )
    }
    assert found == {
        "plain.png": Kind.PLAIN,
        "IM001": Kind.SLICE,
        "standard.nii.gz": Kind.WHOLE,
        "map.tif": Kind.WHOLE,
    }


def test_burnt_in_text_is_warned_of_before_anything_is_sent(tmp_path: Path) -> None:
    """By the folder's name, so that a series has one warning."""
    paths = write_series(tmp_path / "us", np.repeat(VALUES, 2, 0), BurnedInAnnotation="YES")
    first, second = (recognise(path, FOLDER).warnings for path in paths)
    assert first == second
    assert first[0].startswith("Ada: burnt-in text")
    clean = write_series(tmp_path / "mr", VALUES, BurnedInAnnotation="NO")
    assert recognise(clean[0], FOLDER).warnings == ()


def test_a_dicomdir_is_no_picture() -> None:
    """What it lists is dropped with its folder."""
    with pytest.raises(InputError, match="lists the files of a folder") as caught:
        recognise(DICOM / "dicomdirtests" / "DICOMDIR", FOLDER)
    assert "whole folder" in caught.value.hint


def test_what_is_damaged_is_refused_at_once(tmp_path: Path) -> None:
    """A slice, a volume, a map cut short; a report without pixels; a slice that ends before its pixels."""
    write_series(tmp_path / "mr", VALUES)
    write_map(tmp_path / "map.tif", SMOOTH)
    for path in (tmp_path / "mr" / "IM001", NIFTI / "standard.nii.gz", tmp_path / "map.tif"):
        cut = tmp_path / f"cut-{path.name}"
        cut.write_bytes(path.read_bytes()[: -path.stat().st_size // 3])
        with pytest.raises(DdibError) as caught:
            recognise(cut, FOLDER)
        assert cut.name in caught.value.detail
    with pytest.raises(ImageUnreadable, match="holds no picture"):
        recognise(DICOM / "reportsi.dcm", FOLDER)
    (tmp_path / "header").write_bytes((DICOM / "CT_small.dcm").read_bytes()[:1000])
    with pytest.raises(ImageUnreadable, match="is not complete"):
        recognise(tmp_path / "header", FOLDER)


def test_without_a_package_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it, at the drop."""
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ExtraMissing) as caught:
        recognise(write_map(tmp_path / "map.tif", SMOOTH), FOLDER)
    assert "pip install rasterio" in caught.value.hint
