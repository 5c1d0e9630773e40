"""What becomes of every file of a folder, and what the results of its series are called."""

from __future__ import annotations

import shutil
from collections import Counter

import numpy as np
import pydicom
import pytest

from ddib_fed.errors import ImageUnreadable, InputError
from ddib_fed.formats.dicom import quiet
from ddib_fed.formats.opening import open_paths
from ddib_fed.formats.study import Options
from tests.formats.dicom.files import write_series
from tests.formats.echoes import DICOM

VALUES = np.random.default_rng(0).integers(0, 2000, (3, 12, 10))
CUT = (132, 400, 1100, 3000)
"""Bytes of `CT_small.dcm` that end before its number of rows, in all parts of its header."""


def names(*paths):
    return sorted(origin.name for origin in open_paths(paths, Options()).studies.origins)


@pytest.mark.parametrize("size", CUT)
def test_a_slice_that_was_cut_is_named_and_not_passed_over(size, tmp_path):
    """pydicom reads it without an error, as if it ended there; the whole slice beside it is a series."""
    content = (DICOM / "CT_small.dcm").read_bytes()
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct" / "whole.dcm").write_bytes(content)
    (tmp_path / "ct" / "cut.dcm").write_bytes(content[:size])
    bad = []
    found = open_paths([tmp_path / "ct"], Options(), bad=bad)
    assert [path.name for path, _ in bad] == ["cut.dcm"]
    assert "cut.dcm" in bad[0][1].detail
    assert [len(origin.inputs) for origin in found.studies.origins] == [1]
    with pytest.raises(ImageUnreadable, match=r"cut\.dcm"):
        open_paths([tmp_path / "ct"], Options())


def test_a_copy_of_a_slice_counts_once(tmp_path):
    """A folder that was copied into itself is one series of the same slices, and the copies are counted."""
    write_series(tmp_path / "mr", VALUES)
    first = open_paths([tmp_path / "mr"], Options()).studies[0]
    shutil.copytree(tmp_path / "mr", tmp_path / "mr" / "again")
    found = open_paths([tmp_path / "mr"], Options())
    (study,) = found.studies
    assert list(study.items()) == list(first.items())
    assert study.origin.inputs == first.origin.inputs
    assert found.ignored == Counter({"copies of other DICOM files": 3})


def test_two_different_slices_of_one_identity_are_refused(tmp_path):
    """Nobody knows which is right, so both are named and neither is used."""
    paths = write_series(tmp_path / "mr", VALUES)
    changed = pydicom.dcmread(paths[1])
    changed.PixelData = changed.PixelData[::-1]
    changed.save_as(tmp_path / "mr" / "changed.dcm")
    with pytest.raises(InputError, match="the same SOP Instance UID") as caught:
        open_paths([tmp_path / "mr"], Options())
    assert paths[1].name in caught.value.detail
    assert "changed.dcm" in caught.value.detail
    bad = []
    (study,) = open_paths([tmp_path / "mr"], Options(), bad=bad).studies
    assert {path.name for path, _ in bad} == {paths[1].name, "changed.dcm"}
    assert study.origin.inputs == (paths[2], paths[0])


def test_files_that_are_no_pictures_are_counted(tmp_path):
    """A plan and a report by their class, and a file of a maker's own class."""
    (path, *_) = write_series(tmp_path / "mr", VALUES)
    for name in ("rtplan.dcm", "reportsi.dcm"):
        shutil.copy(DICOM / name, tmp_path / "mr")
    own = pydicom.dcmread(path)
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(own, keyword)
    own.SOPClassUID = own.file_meta.MediaStorageSOPClassUID = "1.3.12.2.1107.5.9.1"
    with quiet():
        own.save_as(tmp_path / "mr" / "private.dcm")
    found = open_paths([tmp_path / "mr"], Options())
    assert found.ignored == Counter(
        {"DICOM RT Plan": 1, "DICOM Basic Text SR": 1, "DICOM file of a private class without pixels": 1}
    )
    assert [len(origin.inputs) for origin in found.studies.origins] == [3]


def test_a_name_does_not_depend_on_what_else_is_there(tmp_path):
    """Patients come and go; each keeps the name of its folder, and the folder of a patient gives the same one."""
    scans = tmp_path / "scans"
    write_series(scans / "p2", VALUES)
    assert names(scans) == ["scans/p2/series-1"]
    write_series(scans / "p3" / "T1", VALUES, SeriesNumber=7)
    assert names(scans) == ["scans/p2/series-1", "scans/p3/T1/series-7"]
    write_series(scans / "p1", VALUES)
    assert names(scans) == ["scans/p1/series-1", "scans/p2/series-1", "scans/p3/T1/series-7"]
    assert names(scans / "p1", scans / "p3") == ["p1/series-1", "p3/T1/series-7"]
    assert names(*scans.glob("p[12]/*")) == ["p1/series-1", "p2/series-1"]
    (path, *_) = (scans / "p1").iterdir()
    assert names(path) == [path.name]


def test_two_series_of_one_number_are_told_apart(tmp_path):
    """By their UIDs."""
    for path in write_series(tmp_path / "p1", VALUES):
        path.rename(path.with_name(f"first-{path.name}"))
    write_series(tmp_path / "p1", VALUES)
    both = open_paths([tmp_path / "p1"], Options()).studies.origins
    assert len({origin.name for origin in both}) == 2
    assert all(origin.name.startswith("p1/series-1-") for origin in both)
    assert all(origin.called == f"{tmp_path / 'p1'}: {origin.name}" for origin in both)


def test_a_dicomdir_is_refused_and_its_folder_is_read():
    with pytest.raises(ImageUnreadable, match="DICOMDIR holds no DICOM pictures") as caught:
        open_paths([DICOM / "dicomdirtests" / "DICOMDIR"], Options())
    assert "name its folder" in caught.value.hint
    assert len(open_paths([DICOM / "dicomdirtests" / "77654033"], Options()).studies) > 2
