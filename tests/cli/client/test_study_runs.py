"""`ddib translate` of several studies: all are looked at first, one that fails does not stop the others."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from ddib_fed.cli.main import run
from ddib_fed.errors import ExitCode
from ddib_fed.v1 import translation_pb2 as pb
from tests.client.scripted_source import TARGET, SourceNodeDouble
from tests.formats.dicom.files import write_series
from tests.formats.echoes import NIFTI
from tests.formats.maps import write_map
from tests.formats.test_geotiff import SMOOTH

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:affine")]
VALUES = np.random.default_rng(0).integers(0, 2000, (3, 12, 10))


@pytest.fixture
def given(tmp_path):
    """Three series."""
    folders = [tmp_path / "given" / name for name in "abc"]
    for folder in folders:
        write_series(folder, VALUES)
    return folders


@pytest.fixture
def north(tmp_path):
    node = SourceNodeDouble(tmp_path)
    node.script.pictures = True
    yield node
    node.stop()


@pytest.fixture
def translate(north, tmp_path):
    words = ["--profile", str(north.profile_path), "--out", str(tmp_path / "out"), "--tile", "none"]
    return lambda *given, to=TARGET: run(["translate", "--to", to, *words, *map(str, given)])


@pytest.fixture
def sent(north):
    """How many items each job had since the last call."""
    seen = 0

    def new():
        nonlocal seen
        jobs = [*north.service.jobs.values()][seen:]
        seen += len(jobs)
        return [len(job.inputs) for job in jobs]

    return new


def refuse(north, *jobs, items=(1,)):
    """Let items of some jobs fail, by the job's number."""

    def forge(answer):
        if [*north.service.jobs].index(answer.job.job_id) in jobs:
            for at in items:
                answer.job.items[at].state = pb.ITEM_STATE_FAILED
                answer.job.items[at].error.reason = "LATENT_NOT_GAUSSIAN"
                answer.job.items[at].error.sentence = "its latent is no noise"

    north.script.forge = forge


def test_a_refused_slice_of_one_series_does_not_stop_the_others(
    given, translate, north, sent, tmp_path, capsys
):
    """All are written, with background there; the command ends with what was left out, also when it is repeated."""
    refuse(north, 1)
    for jobs in ([3, 3, 3], []):
        assert translate(*given) == ExitCode.LEFT_OUT
        said = " ".join(capsys.readouterr().err.split())
        assert (
            f"{given[1]}: 1 of 3 items were refused, and are background (2): its latent is no noise" in said
        )
        assert sent() == jobs
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").glob("*/*")}
    assert found == {f"{name}/series-1{more}" for name in "abc" for more in ("", ".json")}


def test_a_series_of_which_every_slice_is_refused_does_not_stop_the_others(
    given, translate, north, sent, tmp_path, capsys
):
    """A volume of nothing but background is none, also where refused slices become background."""
    refuse(north, 1, 3, items=(0, 1, 2))
    assert translate(*given) == ExitCode.JOB_FAILED
    said = " ".join(capsys.readouterr().err.split())
    assert "b: 3 of 3 planes were not translated (1, 2, 3): every one was refused" in said
    assert sent() == [3, 3, 3]
    assert not (tmp_path / "out" / "b" / "series-1").exists()
    assert translate(*given, "--skip-bad") == ExitCode.LEFT_OUT
    assert "left out: 1 of 3 files" in capsys.readouterr().err


def test_damaged_files_are_found_before_anything_is_sent(given, translate, sent, tmp_path, capsys):
    """A volume, a slice and a plain file; where they are skipped, the others are translated."""
    bad, torn, cut = tmp_path / "bad.nii", tmp_path / "torn.png", sorted(given[1].iterdir())[1]
    bad.write_bytes((NIFTI / "anatomical.nii").read_bytes()[:5000])
    torn.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-200])
    assert translate(*given, bad, torn) == ExitCode.BAD_INPUT
    said = capsys.readouterr().err
    assert "3 of 6 files" in said
    assert all(path.name in said for path in (bad, torn, cut))
    assert "--skip-bad" in said
    assert sent() == []
    for jobs in ([3, 2, 3], []):
        assert translate(*given, bad, torn, "--skip-bad") == ExitCode.LEFT_OUT
        assert cut.name in capsys.readouterr().err
        assert sent() == jobs
    assert len(list((tmp_path / "out" / "b" / "series-1").iterdir())) == 2


def test_a_missing_package_is_named_once(given, translate, sent, monkeypatch, tmp_path, capsys):
    """With the command that installs it; what needs it can be left out."""
    maps = [write_map(tmp_path / name, SMOOTH) for name in ("first.tif", "second.tif")]
    monkeypatch.setitem(sys.modules, "rasterio", None)
    assert translate(*given, *maps) == ExitCode.USAGE
    assert "pip install rasterio" in capsys.readouterr().err
    assert translate(*given, *maps, "--skip-bad") == ExitCode.LEFT_OUT
    assert "left out: 2 of 5 files" in capsys.readouterr().err
    assert sent() == [3, 3, 3]
