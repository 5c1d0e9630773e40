"""Paths are recognised by name and content, without loading anything for those that a node takes itself."""

import gzip
import re
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from ddib_fed.client.files import payload
from ddib_fed.data.pictures import encode_png
from ddib_fed.data.study import Options
from ddib_fed.errors import InputError
from ddib_fed.formats import GEOTIFF
from ddib_fed.recognition import open_paths, reader_of_content, recognise
from tests.formats.dicom.files import write_series
from tests.formats.echoes import DICOM, NIFTI, only
from tests.formats.tiffs import tiff


def test_below_a_folder_every_file_is_found_and_keeps_its_path(tmp_path):
    """Volumes, maps and series by themselves; plain files are left for those who list the folder."""
    for name, content in {
        "a.nii.gz": (NIFTI / "standard.nii.gz").read_bytes(),
        "ward 3/a.nii": (NIFTI / "anatomical.nii").read_bytes(),
        "ward 3/old map.tif": tiff({33550: 3}),
        "plain.tif": tiff({256: 1}),
        "notes.txt": b"",
        ".hidden.nii": b"",
    }.items():
        path = tmp_path / "given" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    found = open_paths([tmp_path / "given"], Options())
    assert [origin.name for origin in found.studies.origins] == ["a", "ward 3/a", "ward 3/old-map"]
    assert [origin.outputs for origin in found.studies.origins][1:] == [
        ("ward 3/a.nii",),
        ("ward 3/old-map.tif",),
    ]
    assert (found.plain, found.ignored) == ((tmp_path / "given",), Counter())
    (tmp_path / "given" / "plain.tif").unlink()
    found = open_paths([tmp_path / "given", tmp_path / "given" / "a.nii.gz"], Options())
    assert (len(found.studies), found.plain) == (3, ())
    assert found.ignored == Counter({".txt": 1, "hidden": 1})


def test_results_are_no_input(tmp_path):
    """They may lie below the folder that is translated."""
    write_series(tmp_path / "mr", np.ones((2, 8, 8), int))
    write_series(tmp_path / "out" / "mr", np.ones((3, 8, 8), int))
    (out := tmp_path / "out" / "scan.nii").write_bytes(b"")
    assert [len(each.files) for each in recognise([tmp_path], out.parent).studies] == [2]
    assert [len(each.files) for each in recognise([tmp_path]).studies] == [1, 5]


def test_a_georeference_is_seen_wherever_its_tags_are():
    """In both byte orders, in BigTIFF, on a later page, as polynomials; other TIFFs, and torn ones, have none."""
    where = {33550: 3, 256: 1}
    for made in (
        tiff(where),
        tiff(where, order=">"),
        tiff(where, big=True),
        tiff({256: 1}, where),
        tiff({50844: 92}),
    ):
        assert reader_of_content(made) is GEOTIFF
    looping = tiff({256: 1}, {256: 1}, loops=True)
    for made in (tiff({256: 1}), tiff(where)[:20], tiff(where)[:9], b"", b"II*\0", looping):
        assert reader_of_content(made) is None


def test_one_study_is_in_memory_at_a_time():
    """Values of a series are let go when items are made of them; all of a study, when the next is read."""
    studies = open_paths([NIFTI / "anatomical.nii", NIFTI / "standard.nii.gz"], Options()).studies
    numbers = weakref.ref(studies[0].pixels.numbers)
    assert studies[0].pixels.numbers is numbers()
    assert studies[1].planes == 7
    assert numbers() is None
    assert not hasattr(only(DICOM / "MR_small.dcm").series, "values")


def take(path):
    found = open_paths([path], Options())
    return found.studies[0] if found.studies else payload(*found.plain)


WHOLE = (NIFTI / "anatomical.nii").read_bytes()
BARE = (DICOM / "CT_small.dcm").read_bytes()[132:]
PAGE = b"<!DOCTYPE html><html>Please log in</html>"


@pytest.mark.parametrize(
    ("name", "content", "is_", "helps"),
    [
        ("a b.nii", gzip.compress(WHOLE, mtime=0), "is a .gz file", "mv -n 'a b.nii' 'a b.nii.gz'"),
        ("a.nii.gz", WHOLE, "is a .nii file", "mv -n a.nii.gz a.nii"),
        ("a.nii", b"", "is empty", "copy it again"),
        ("a.nii.gz", gzip.compress(WHOLE, mtime=0)[:5000], "cannot be read", "copy it again"),
        ("a.nii", WHOLE[:5000], "cannot be read", "copy it again"),
        ("a.tif", encode_png(np.zeros((4, 4, 1), np.uint8)), "is a .png file", "mv -n a.tif a.png"),
        ("a.tif", PAGE, "is a web page", "open it in a browser"),
        ("a.dcm", BARE, "is DICOM without", "dcmconv a.dcm a-whole.dcm"),
        ("a.npz", b"PK\3\4", "is a .zip file", "unzip a.npz -d a"),
    ],
)
def test_a_file_that_is_not_what_it_is_called_is_said_to_be_what_it_is(
    name, content, is_, helps, tmp_path, monkeypatch
):
    """With a command for that; whether it is read here or would be sent as it is."""
    monkeypatch.chdir(tmp_path)
    path = Path(name)
    path.write_bytes(content)
    with pytest.raises(InputError, match=re.escape(is_)) as caught:
        take(path)
    assert name in caught.value.detail
    assert helps in caught.value.hint
