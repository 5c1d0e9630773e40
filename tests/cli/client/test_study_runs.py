"""`ddib translate` of several studies: all are looked at first, one that fails does not stop the others."""

from __future__ import annotations

import gc
import json
import shutil
import sys
from collections.abc import Sequence

import numpy as np
import pydicom
import pytest

from ddib_fed.cli.delivery import WriteOptions
from ddib_fed.cli.folder_report import one_document
from ddib_fed.cli.folder_state import Work
from ddib_fed.cli.inputs import Chosen
from ddib_fed.cli.progress import JobProgress
from ddib_fed.cli.studies import Ending, check_plan, plan_studies, translate_studies
from ddib_fed.client.client import JobRequest
from ddib_fed.client.profile import Profile
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import (
    AlreadyExists,
    ExtraMissing,
    FilesLeftOut,
    ImageUnreadable,
    InputError,
    JobFailed,
    PictureMisfit,
)
from ddib_fed.formats.dicom_writing import DicomStudy
from tests.cli.client.test_studies import Ordinary
from tests.client.scripted_source import SourceNodeDouble
from tests.formats.dicom.files import write_series
from tests.formats.echoes import NIFTI
from tests.formats.maps import write_map
from tests.formats.test_geotiff import SMOOTH

pytestmark = pytest.mark.slow
VALUES = np.random.default_rng(0).integers(0, 2000, (3, 12, 10))
ORDER = JobRequest("south.example/relief")
ASKED = {
    "intensity": "auto",
    "slices": "auto",
    "tile": "none",
    "overlap": None,
    "keep_parts": False,
}


class Requests(Ordinary):
    """Its results are those of `ORDER`; some planes are refused in the studies whose folders are named."""

    def __init__(
        self, *refused: str, planes: Sequence[str] = ("0002",), error: Exception | None = None
    ) -> None:
        super().__init__(request=ORDER.digest("north.example"))
        self._refused, self._planes, self._error = refused, planes, error
        self.studies: list[str] = []

    def __call__(self, items, results):
        name = results.parent.parent.name
        self.studies.append(name)
        self.refuses = self._planes if name in self._refused else ()
        if self.refuses and self._error is not None:
            raise self._error
        return super().__call__(items, results)


def in_memory() -> int:
    gc.collect()
    return sum(type(each) is DicomStudy for each in gc.get_objects())


class Counted(Requests):
    """Counts the series in memory at each request."""

    def __call__(self, items, results):
        self.asked.append([str(in_memory())])
        return super().__call__(items, results)


@pytest.fixture
def given(tmp_path):
    """Three series."""
    folders = [tmp_path / "given" / name for name in "abc"]
    for folder in folders:
        write_series(folder, VALUES)
    return folders


@pytest.fixture(scope="module")
def north(tmp_path_factory):
    node = SourceNodeDouble(tmp_path_factory.mktemp("north"))
    yield node
    node.stop()


@pytest.fixture
def translate(tmp_path, north):
    """Plans, checks and translates; what was asked of the node."""

    def call(
        paths, node, *, skip_bad=False, output_format="text", order=ORDER, force=False, again=False, **changes
    ):
        write = WriteOptions(tmp_path / "out", force=force, again=again, skip_bad=skip_bad)
        work = Work(Profile.load(north.profile_path), order, write, JobProgress())
        plan = plan_studies(paths, {**ASKED, **changes}, work)
        assert plan is not None
        chosen = Chosen.files(plan.choice.plain) if plan.choice.plain else None
        check_plan(plan, chosen)
        with one_document(output_format) as document:
            translate_studies(plan, node, document, [])
        return node.studies

    return call


def test_a_refused_slice_of_one_series_does_not_stop_the_others(given, translate, tmp_path, capsys):
    """All are written, with background there; the command ends with what was left out, also when it is repeated."""
    for node in (Requests("b"), Requests()):
        with pytest.raises(
            FilesLeftOut, match=r"b: 1 of 3 items were refused, and are background \(2\): its latent"
        ):
            translate(given, node)
    assert node.asked == []
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").glob("*/*")}
    assert found == {f"{name}/series-1{more}" for name in "abc" for more in ("", ".json")}
    said = capsys.readouterr().out
    assert f"{given[0]}: DICOM series" in said
    assert f"{given[2]}: DICOM series" in said


def test_one_series_is_in_memory_at_a_time(given, translate):
    """Also after one has failed."""
    node, before = Counted("a", "b"), in_memory()
    with pytest.raises(FilesLeftOut):
        translate(given, node)
    assert node.asked[::2] == [[str(before + 1)]] * 3


def test_two_incomplete_series_are_one_error(given, translate):
    with pytest.raises(FilesLeftOut, match=r"a: 1 of 3 .*\n.*c: 1 of 3 "):
        translate(given, Requests("a", "c"))


def test_a_series_of_which_every_slice_is_refused_does_not_stop_the_others(given, translate, tmp_path):
    """A volume of nothing but background is none, also where refused slices become background."""
    nothing = {"planes": ("0001", "0002", "0003")}
    node = Requests("b", planes=nothing["planes"])
    with pytest.raises(JobFailed, match=r"b: 3 of 3 planes were not translated.*every one was refused"):
        translate(given, node)
    assert node.studies == ["a", "b", "c"]
    assert not (tmp_path / "out" / "b" / "series-1").exists()
    with pytest.raises(FilesLeftOut, match=r"1 of 3 files.*\n.*b: 3 of 3 planes"):
        translate(given, Requests("b", planes=nothing["planes"]), skip_bad=True)


def test_a_changed_series_is_the_only_one_that_force_asks_for(given, translate):
    """What matches is kept; --again asks for all."""
    translate(given, Requests())
    (path, *_) = given[1].iterdir()
    changed = pydicom.dcmread(path)
    changed.PixelData = changed.PixelData[::-1]
    changed.save_as(path)
    with pytest.raises(AlreadyExists, match="no result of this request"):
        translate(given, Requests())
    assert translate(given, Requests(), force=True) == ["b"]
    assert translate(given, Requests(), force=True) == []
    assert translate(given, Requests(), force=True, again=True) == ["a", "b", "c"]


def test_force_does_not_replace_the_result_of_another_series(given, translate, tmp_path):
    """One of the same number lies in the folder now, and the first is gone: its translation stays."""
    translate(given[:1], Requests())
    before = (tmp_path / "out" / "a" / "series-1" / "0001.dcm").read_bytes()
    write_series(given[0], VALUES + 7)
    with pytest.raises(AlreadyExists, match="another series"):
        translate(given[:1], Requests(), force=True)
    assert (tmp_path / "out" / "a" / "series-1" / "0001.dcm").read_bytes() == before


def test_what_is_skipped_is_listed(given, translate, tmp_path, capsys):
    """A series with a refused slice, and one whose numbers do not fit; also as JSON."""
    with pytest.raises(FilesLeftOut, match=r"b: 1 of 3 items were refused"):
        translate(given, Requests("b"), skip_bad=True)
    shutil.rmtree(tmp_path / "out")
    capsys.readouterr()
    with pytest.raises(FilesLeftOut, match="its slices hold"):
        translate(given, Requests("b", error=PictureMisfit("item 0")), skip_bad=True, output_format="json")
    document = json.loads(capsys.readouterr().out)
    assert [each["input"] for each in document["studies"]] == [str(given[0]), str(given[2])]
    assert [each["file"] for each in document["left_out"]] == [str(given[1])]
    with pytest.raises(PictureMisfit):
        translate(given, Requests("b", error=PictureMisfit("item 0")))


def test_a_damaged_volume_is_found_before_anything_is_sent(given, translate, tmp_path):
    """With it a damaged plain file; where they are skipped, the others are translated."""
    bad = tmp_path / "bad.nii"
    bad.write_bytes((NIFTI / "anatomical.nii").read_bytes()[:5000])
    (tmp_path / "torn.png").write_bytes(b"")
    node = Requests()
    with pytest.raises(ImageUnreadable, match=r"bad\.nii"):
        translate([*given, bad], node)
    with pytest.raises(ImageUnreadable, match=r"2 of 5 files.*\n.*bad\.nii.*\n.*torn\.png") as caught:
        translate([*given, bad, tmp_path / "torn.png"], node)
    assert "--skip-bad" in caught.value.hint
    assert not node.studies
    with pytest.raises(FilesLeftOut, match=r"1 of 4 files.*\n.*bad\.nii"):
        translate([*given, bad], node, skip_bad=True)
    assert node.studies == ["a", "b", "c"]


def test_a_slice_that_was_cut_does_not_stop_its_series(given, translate, tmp_path):
    """With --skip-bad the others are translated, and the slice is named, also by a second run."""
    cut = sorted(given[1].iterdir())[1]
    cut.write_bytes(cut.read_bytes()[:-200])
    node = Requests()
    with pytest.raises(ImageUnreadable, match=cut.name) as caught:
        translate(given, node)
    assert "--skip-bad" in caught.value.hint
    assert not node.studies
    for asked in (["a", "b", "c"], []):
        node = Requests()
        with pytest.raises(FilesLeftOut, match=rf"1 of 4 files.*\n.*{cut.name}"):
            translate(given, node, skip_bad=True)
        assert node.studies == asked
    assert len(list((tmp_path / "out" / "b" / "series-1").iterdir())) == 2


def test_a_missing_package_is_named_once(given, translate, monkeypatch, tmp_path):
    """With the command that installs it; what needs it can be left out."""
    maps = [write_map(tmp_path / name, SMOOTH) for name in ("first.tif", "second.tif")]
    monkeypatch.setitem(sys.modules, "rasterio", None)
    with pytest.raises(ExtraMissing, match="rasterio") as caught:
        translate([*given, *maps], Requests())
    assert "pip install rasterio" in caught.value.hint
    node = Requests()
    with pytest.raises(FilesLeftOut, match=r"2 of 5 files.*\n.*first\.tif.*\n.*second\.tif"):
        translate([*given, *maps], node, skip_bad=True)
    assert node.studies == ["a", "b", "c"]


def test_pictures_beside_a_series_are_not_left_out_without_a_word(given, translate):
    """1,500 pictures and a stray DICOM file are not one series and nothing else."""
    for number in range(3):
        (given[0] / f"{number}.png").write_bytes(encode_png(np.zeros((4, 4, 1), np.uint8)))
    node = Requests()
    with pytest.raises(InputError, match=r"3 \.png.* lie among DICOM files"):
        translate([given[0]], node)
    assert not node.studies
    with pytest.raises(FilesLeftOut, match=r"3 \.png"):
        translate([given[0]], node, skip_bad=True)
    assert node.studies == ["a"]


def test_other_files_beside_a_series_are_counted(given, translate, capsys):
    (given[0] / "notes.txt").write_text("")
    translate([given[0]], Requests())
    assert "ignored 1 other file (1 .txt)" in capsys.readouterr().err


def test_the_same_command_below_the_working_folder_finds_its_own_results(given, translate, tmp_path):
    """They are no input, and nothing is asked again."""
    assert len(translate([tmp_path], Requests())) == 3
    assert translate([tmp_path], Requests()) == []


def test_results_for_another_target_are_in_the_way(given, translate):
    """Of one of the studies; the others are not translated either."""
    translate(given[:1], Requests())
    node = Requests()
    other = JobRequest("west.example/flair")
    with pytest.raises(AlreadyExists, match="no result of this request"):
        translate([given[1], given[0]], node, order=other)
    assert not node.studies


def test_what_was_left_out_and_what_failed_is_one_ending():
    """A failed job decides the exit code; without any error there is none."""
    Ending().conclude()
    ending = Ending([FilesLeftOut("left out: 1", hint="repair it")])
    with ending.held():
        raise JobFailed("job 7 failed", hint="look at it")
    with pytest.raises(JobFailed, match="left out: 1\njob 7 failed") as caught:
        ending.conclude()
    assert caught.value.hint == "repair it\nlook at it"
