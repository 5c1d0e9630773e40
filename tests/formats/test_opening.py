"""Paths are recognised by name and content, without loading anything for those that a node takes itself."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from ddib_fed.errors import UsageError
from ddib_fed.formats.opening import open_paths
from ddib_fed.formats.recognition import is_study
from ddib_fed.formats.study import Options, safe_name
from ddib_fed.samples.images import encode_png
from tests.formats.echoes import DICOM, NIFTI


def test_studies_and_plain_files_are_told_apart(tmp_path):
    (tmp_path / "plain.png").write_bytes(encode_png(np.zeros((4, 4, 1), np.uint8)))
    (tmp_path / "folder").mkdir()
    paths = [NIFTI / "standard.nii.gz", tmp_path / "plain.png", DICOM / "CT_small.dcm", tmp_path / "folder"]
    found = open_paths(paths, Options())
    assert [study.name for study in found.studies] == ["standard", "CT_small"]
    assert found.plain == (tmp_path / "plain.png", tmp_path / "folder")
    assert [is_study(path) for path in paths] == [True, False, True, False]


def test_two_studies_of_one_name_are_refused(tmp_path):
    (tmp_path / "standard.nii.gz").write_bytes((NIFTI / "standard.nii.gz").read_bytes())
    with pytest.raises(UsageError, match="would both be called standard"):
        open_paths([NIFTI / "standard.nii.gz", tmp_path / "standard.nii.gz"], Options())


def test_names_for_files_hold_nothing_that_a_shell_or_a_path_reads():
    assert [safe_name(text) for text in ("../a b/c", "scan.v2", "$(x)", "...")] == [
        "a-b-c",
        "scan.v2",
        "x",
        "study",
    ]


@pytest.mark.slow
def test_recognising_loads_no_package():
    """The client with plain files stays as light as it was."""
    code = (
        "import sys; from pathlib import Path; from ddib_fed.formats.recognition import is_study; "
        "is_study(Path('pyproject.toml')); "
        "print([m for m in ('numpy', 'PIL', 'pydicom', 'nibabel', 'rasterio', 'torch') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )


@pytest.mark.slow
def test_reading_needs_no_torch():
    path = str(NIFTI / "standard.nii.gz")
    code = (
        "import sys; from pathlib import Path; from ddib_fed.formats.opening import open_paths; "
        "from ddib_fed.formats.study import Options; "
        f"(study,) = open_paths([Path({path!r})], Options()).studies; "
        "print(len(list(study.items())), [m for m in ('torch', 'grpc') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "7 []\n"
    )
