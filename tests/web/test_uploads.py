"""Uploads: private files under safe names, recognised as `ddib translate` will read them, and arranged for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import (
    DdibError,
    ImageUnreadable,
    InputError,
)
from ddib_fed.web import uploads as module
from ddib_fed.web.uploads import Kind, Upload, Uploads, arranged, recognise
from tests.formats.dicom.files import write_series
from tests.formats.echoes import DICOM, NIFTI
from tests.formats.maps import write_map
from tests.formats.test_geotiff import SMOOTH
from tests.formats.tiffs import tiff

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:affine")
PNG = encode_png(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path)


def add(uploads: Uploads, label: str, data: bytes = PNG) -> Upload:
    async def chunks():
        for start in range(0, len(data), 100):
            yield data[start : start + 100]

    return asyncio.run(uploads.add(label, chunks()))


def test_a_file_lies_in_the_private_folder_whatever_it_is_called(uploads: Uploads, tmp_path: Path) -> None:
    """Folders and dots of its name lead nowhere."""
    for label in (
        "../../etc/scan.png",
        "/abs/scan.png",
        "a\\..\\scan.png",
        "x/.ssh/..scan.png",
        "scan\0.png",
    ):
        path = add(uploads, label).path
        assert path.parent.parent == tmp_path
        assert path.read_bytes() == PNG
    assert not (tmp_path.parent / "etc").exists()


@pytest.mark.parametrize(
    ("label", "data", "error"),
    [
        ("scan.gif", PNG, InputError),
        ("scan.png", b"", ImageUnreadable),
        ("scan.png", PNG[:60], ImageUnreadable),
        ("notes/scan.jpg", PNG, ImageUnreadable),
        ("scan.npy", b"\x93NUMPY", None),
    ],
)
def test_what_cannot_be_sent_is_refused_by_its_name(
    uploads: Uploads, tmp_path: Path, label: str, data: bytes, error: type[Exception] | None
) -> None:
    """And leaves nothing behind; the path in the private folder is not shown. A .npy is left for the node to judge."""
    if error is None:
        add(uploads, label, data)
        return
    with pytest.raises(error) as caught:
        add(uploads, label, data)
    assert label in caught.value.detail
    assert str(tmp_path) not in f"{caught.value.detail} {caught.value.hint}"
    assert not list(tmp_path.iterdir())
    assert not uploads.list()


def test_a_map_is_never_sent_as_it_is(uploads: Uploads, tmp_path: Path) -> None:
    """Its header would leave with it: it is sent as pixels, and refused where these cannot be read."""
    heights = np.arange(192, dtype=np.uint8).reshape(1, 12, 16)
    content = write_map(tmp_path / "town.tif", heights).read_bytes()
    assert add(uploads, "town.tif", content).kind is Kind.WHOLE
    with pytest.raises(ImageUnreadable, match=r"ward/map\.tif"):
        add(uploads, "ward/map.tif", tiff({256: 1, 34735: 4}))
    assert [each.label for each in uploads.list()] == ["town.tif"]


def test_too_large_a_file_is_refused_while_it_comes(uploads: Uploads, tmp_path: Path, monkeypatch) -> None:
    """Not after the disk is full."""
    monkeypatch.setattr(module, "MAX_ITEM_BYTES", 150)
    with pytest.raises(InputError, match=r"big\.png is too large"):
        add(uploads, "big.png", b"\x89PNG" * 1_000)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def drop(tmp_path: Path):
    """Files of some labels and kinds, with their own label as content."""

    def dropped(*named: tuple[str, Kind]) -> list[Upload]:
        files = []
        for number, (label, kind) in enumerate(named):
            path = tmp_path / "uploads" / f"{number:05}" / "file"
            path.parent.mkdir(parents=True)
            path.write_text(label)
            files.append(Upload(number, label, path, 1, kind))
        return files

    return dropped


def test_results_of_files_of_one_name_have_different_names(drop, tmp_path: Path) -> None:
    """Folders become a part of the name; what is still the same gets a number, also where only case differs."""
    labels = ["a/scan.png", "b/scan.png", "a_scan.tif", "A/Scan.png", "🦷.png", "…/..png"]
    files = drop(*((label, Kind.PLAIN) for label in labels))
    given = arranged(files, tmp_path / "job")
    assert [each.name for each in given] == [
        "a_scan",
        "b_scan",
        "a_scan-2",
        "A_Scan-3",
        "picture",
        "picture-2",
    ]
    assert [each.path for each in given] == [each.path for each in files]
    assert not (tmp_path / "job").exists()


def test_the_slices_of_a_dropped_folder_lie_in_one_folder(drop, tmp_path: Path) -> None:
    """As they were in it; it is what is translated, under the folder's name."""
    files = drop(("Ada/one/IM1", Kind.SLICE), ("Ada/two/IM1", Kind.SLICE), ("Ada/plain.png", Kind.PLAIN))
    series, plain = arranged(files, tmp_path / "job")
    assert (series.name, series.label, series.is_study) == ("Ada", "Ada", True)
    assert sorted(str(path.relative_to(series.path)) for path in series.path.rglob("IM*")) == [
        "one/IM1",
        "two/IM1",
    ]
    assert (series.path / "two" / "IM1").read_text() == "Ada/two/IM1"
    assert (plain.label, plain.is_study) == ("Ada/plain.png", False)


def test_no_name_leads_out_of_the_folder_or_replaces_another(drop, tmp_path: Path) -> None:
    """Two dropped folders of one name are one; dots are no folders."""
    labels = ["../../x/IM1", "s/../IM1", "s/.hidden/IM1", "s/IM1", "s/IM1", "s/é/IM1", "s/ü/IM1"]
    given = arranged(drop(*((label, Kind.SLICE) for label in labels)), tmp_path / "job")
    placed = [path for path in (tmp_path / "job").rglob("*") if path.is_file()]
    assert sorted(path.read_text() for path in placed) == sorted(labels)
    assert not any(part.startswith(".") for path in placed for part in path.relative_to(tmp_path).parts)
    assert len(given) == 2


def test_a_volume_keeps_both_its_suffixes_and_gets_a_name_of_its_own(drop, tmp_path: Path) -> None:
    """Two patients' volumes of one name are two results; so are a series and a volume of one name."""
    files = drop(
        ("ada/T1.nii.gz", Kind.WHOLE),
        ("eve/T1.nii.gz", Kind.WHOLE),
        ("T1/IM1", Kind.SLICE),
        ("T1.NII", Kind.WHOLE),
    )
    given = arranged(files, tmp_path / "job")
    assert [each.path.name for each in given] == ["T1", "ada_T1.nii.gz", "eve_T1.nii.gz", "T1-2.nii"]
    assert [each.label for each in given] == ["T1", "ada/T1.nii.gz", "eve/T1.nii.gz", "T1.NII"]
    assert all(each.is_study for each in given)


VALUES = np.random.default_rng(0).integers(0, 2000, (1, 12, 10))
FOLDER = Path("Ada")


def test_files_of_the_field_are_told_from_plain_ones(tmp_path: Path) -> None:
    """A slice without a suffix, a volume, a map; a TIFF without a georeference is plain."""
    (tmp_path / "plain.png").write_bytes(encode_png(np.zeros((4, 4, 1), np.uint8)))
    write_series(tmp_path / "mr", VALUES)
    write_map(tmp_path / "map.tif", SMOOTH)
    found = {
        path.name: recognise(path, FOLDER)[0]
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
