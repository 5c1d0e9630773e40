"""Where dropped files are laid: DICOM files in their folders, all else under names that results can have."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddib_fed.web.researcher.laying import laid_out
from ddib_fed.web.researcher.recognising import Kind
from ddib_fed.web.researcher.tray import Dropped


@pytest.fixture
def drop(tmp_path: Path):
    """Files of some labels and kinds, with their own label as content."""

    def dropped(*named: tuple[str, Kind]) -> list[Dropped]:
        files = []
        for number, (label, kind) in enumerate(named):
            path = tmp_path / "tray" / f"{number:05}" / "file"
            path.parent.mkdir(parents=True)
            path.write_text(label)
            files.append(Dropped(number, label, path, 1, kind))
        return files

    return dropped


def test_results_of_files_of_one_name_have_different_names(drop, tmp_path: Path) -> None:
    """Folders become a part of the name; what is still the same gets a number, also where only case differs."""
    labels = ["a/scan.png", "b/scan.png", "a_scan.tif", "A/Scan.png", "🦷.png", "…/..png"]
    files = drop(*((label, Kind.PLAIN) for label in labels))
    given = laid_out(files, tmp_path / "job")
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
    series, plain = laid_out(files, tmp_path / "job")
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
    given = laid_out(drop(*((label, Kind.SLICE) for label in labels)), tmp_path / "job")
    laid = [path for path in (tmp_path / "job").rglob("*") if path.is_file()]
    assert sorted(path.read_text() for path in laid) == sorted(labels)
    assert not any(part.startswith(".") for path in laid for part in path.relative_to(tmp_path).parts)
    assert len(given) == 2


def test_a_volume_keeps_both_its_suffixes_and_gets_a_name_of_its_own(drop, tmp_path: Path) -> None:
    """Two patients' volumes of one name are two results; so are a series and a volume of one name."""
    files = drop(
        ("ada/T1.nii.gz", Kind.WHOLE),
        ("eve/T1.nii.gz", Kind.WHOLE),
        ("T1/IM1", Kind.SLICE),
        ("T1.NII", Kind.WHOLE),
    )
    given = laid_out(files, tmp_path / "job")
    assert [each.path.name for each in given] == ["T1", "ada_T1.nii.gz", "eve_T1.nii.gz", "T1-2.nii"]
    assert [each.label for each in given] == ["T1", "ada/T1.nii.gz", "eve/T1.nii.gz", "T1.NII"]
    assert all(each.is_study for each in given)


def test_files_dropped_without_a_folder_are_given_one_by_one(drop, tmp_path: Path) -> None:
    """The series that they make may be called `dicom`, so that nothing else is."""
    given = laid_out(
        drop(("IM2", Kind.SLICE), ("IM1", Kind.SLICE), ("dicom.png", Kind.PLAIN)), tmp_path / "job"
    )
    assert [each.path.parent.name for each in given[:2]] == ["dicom", "dicom"]
    assert given[2].name == "dicom-2"
