"""`ddib translate` of studies, up to the node: what is sent again, what is refused, and what the messages say."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from ddib_fed.cli.delivery import WriteOptions
from ddib_fed.cli.main import run
from ddib_fed.cli.studies import as_json, report_study, translate_study
from ddib_fed.data.pictures import decode_image, encode_png
from ddib_fed.errors import AlreadyExists, ExitCode, JobFailed, PictureMisfit
from ddib_fed.v1 import translation_pb2 as pb
from tests.client.scripted_source import TARGET, SourceNodeDouble, npy, points
from tests.formats.dicom.files import write_series
from tests.formats.echoes import ASKED, DICOM, NIFTI, only, record
from tests.formats.maps import OWNER, write_map

OTHER = "b6" * 32
"""Digest of another request."""
VALUES = np.random.default_rng(0).integers(0, 2000, (4, 12, 10))


class Ordinary:
    """The ordinary path, by doubles of a node: each file's translation is its negative."""

    def __init__(
        self, refuses: tuple[str, ...] = (), request: str = ASKED, leaves: tuple[str, ...] = ()
    ) -> None:
        self.refuses, self.leaves, self.request = refuses, leaves, request
        self.asked: list[list[str]] = []

    def __call__(self, items: list[Path], results: Path) -> dict[Path, str]:
        self.asked.append([item.stem for item in items])
        results.mkdir(exist_ok=True)
        for item in items:
            if item.stem not in (*self.refuses, *self.leaves):
                png = encode_png(255 - decode_image(item.read_bytes()).pixels)
                (results / f"{item.stem}.png").write_bytes(png)
                (results / f"{item.stem}.json").write_bytes(
                    record(item.read_bytes(), png, asked=self.request).to_json()
                )
        return {item: "its latent is no noise" for item in items if item.stem in self.refuses}


@pytest.fixture
def series(tmp_path):
    write_series(tmp_path / "mr", VALUES)
    return only(tmp_path / "mr")


@pytest.fixture
def manner(tmp_path):
    return WriteOptions(tmp_path / "out")


def test_a_series_is_translated_and_its_parts_are_gone(series, manner, capsys):
    ordinary = Ordinary()
    written = translate_study(series, ordinary, manner, asked=ASKED)
    assert ordinary.asked == [["0001", "0002", "0003", "0004"]]
    assert sorted(path.name for path in (manner.out / "mr").iterdir()) == ["series-1", "series-1.json"]
    report_study(written)
    shown = capsys.readouterr().out
    assert "DICOM series (MR), 4 items" in shown
    assert "slice flicker" in shown
    assert as_json(written)["flicker"]["ratio"] == pytest.approx(1, abs=0.05)


def test_refused_slices_are_background_and_said_with_the_reason(series, manner, capsys):
    """In the record, item by item, and in the terminal; the same command asks for nothing more."""
    written = translate_study(series, Ordinary(("0002", "0004")), manner, asked=ASKED)
    assert written.report["slices"]["refused"] == [1, 3]
    assert len(written.files) == 4
    section = json.loads(written.record.read_text())["study"]
    assert [item.get("why") for item in section["items"]] == [None, *["its latent is no noise", None] * 2][:4]
    report_study(written)
    said = capsys.readouterr().out.splitlines()
    assert said[1] == "  2 of 4 items were refused, and are background (2, 4): its latent is no noise"
    again = Ordinary()
    assert translate_study(series, again, manner, asked=ASKED).refused == written.refused
    assert again.asked == []


def test_what_no_node_refused_never_becomes_background(series, manner):
    """Its job was cancelled, or out of time: the same command asks for it again."""
    node = Ordinary(("0002",), leaves=("0003",))
    with pytest.raises(
        JobFailed, match=r"mr: 1 of 4 planes were not translated \(3\), although no node refused"
    ):
        translate_study(series, node, manner, asked=ASKED)
    assert not (manner.out / "mr" / "series-1").exists()
    again = Ordinary(("0002",))
    written = translate_study(series, again, manner, asked=ASKED)
    assert again.asked == [["0002", "0003"]]
    assert written.report["slices"]["refused"] == [1]


def test_slices_of_another_target_are_not_put_into_the_volume(series, manner):
    """A run for one target left two of four slices; a run for another target asks for all of them."""
    with pytest.raises(JobFailed):
        translate_study(series, Ordinary(leaves=("0002", "0004")), manner, asked=ASKED)
    other = Ordinary(request=OTHER)
    written = translate_study(series, other, manner, asked=OTHER)
    assert other.asked == [["0001", "0002", "0003", "0004"]]
    assert {item["asked_sha256"] for item in written.report["items"]} == {OTHER}


def test_a_second_run_finds_what_is_there(series, manner, capsys):
    """Nothing is asked, and nothing is written, also with --force; --again translates again."""
    first = translate_study(series, Ordinary(), manner, asked=ASKED)
    before = first.record.read_bytes()
    again = Ordinary()
    found = translate_study(series, again, manner, asked=ASKED)
    assert not again.asked
    assert (found.files, found.record.read_bytes()) == (first.files, before)
    report_study(found)
    assert "by an earlier run" in capsys.readouterr().out
    for more, times in (({}, 0), ({"again": True}, 1)):
        written = replace(manner, force=True, **more)
        translate_study(series, again, written, asked=ASKED)
        assert len(again.asked) == times


def test_a_run_for_another_target_is_refused_before_anything_is_asked(series, manner):
    translate_study(series, Ordinary(), manner, asked=ASKED)
    other = Ordinary(request=OTHER)
    with pytest.raises(AlreadyExists, match="no result of this request"):
        translate_study(series, other, manner, asked=OTHER)
    assert not other.asked


def test_a_rule_that_does_not_fit_the_model_is_answered_with_one_that_does(tmp_path, manner):
    """In the words of the series, not of its items' files."""
    write_series(tmp_path / "ct", VALUES, header="CT_small.dcm", intercept=-1024)
    facts = {"holds": "grey int16 from -1000 to 975", "takes": "0 to 4095", "range": "0:4095"}

    def refuse(items, results):
        raise PictureMisfit("item 0", facts=facts)

    with pytest.raises(PictureMisfit, match="ct: its slices hold grey int16") as caught:
        translate_study(only(tmp_path / "ct"), refuse, manner, asked=ASKED)
    assert "--intensity=window:40,400@0:4095" in caught.value.hint


def test_colours_for_a_grey_model_are_answered_with_a_command_that_makes_them_grey(
    tmp_path, manner, monkeypatch
):
    """Another rule of intensity would end in the same refusal; what the command writes is a grey series."""

    def refuse(items, results):
        raise PictureMisfit("item 0", facts={"problem": "colour", "takes": "grey pictures", "range": "0:255"})

    for name in ("one", "two"):
        (tmp_path / "rgb scan" / name).mkdir(parents=True)
        dataset = pydicom.dcmread(DICOM / "examples_rgb_color.dcm")
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
        dataset.save_as(tmp_path / "rgb scan" / name / "a.dcm")
    study = only(tmp_path / "rgb scan")
    with pytest.raises(PictureMisfit, match="rgb scan: it is in colour, and the model takes grey") as caught:
        translate_study(study, refuse, manner, asked=ASKED)
    assert "--intensity" not in caught.value.hint
    command = shlex.split(caught.value.hint.partition("translate that: ")[2])
    assert command[:2] == ["python3", "-c"]
    exec(compile(command[2], "hint", "exec"), {})
    grey = only(tmp_path / "rgb scan-grey", intensity="values")
    expected = study.pixels.numbers @ [0.299, 0.587, 0.114]
    assert (grey.planes, grey.pixels.numbers.shape[3]) == (2, 1)
    assert np.abs(grey.pixels.numbers[..., 0] - expected).max() <= 0.51


@pytest.fixture
def north(tmp_path):
    node = SourceNodeDouble(tmp_path)
    yield node
    node.stop()


@pytest.fixture
def translate(north, tmp_path):
    words = ["--profile", str(north.profile_path), "--to", TARGET, "--out", str(tmp_path / "out")]
    return lambda *given: (run(["translate", *words, *map(str, given)]), north.script.calls)


def test_options_of_studies_are_refused_without_one(translate, tmp_path, capsys):
    """And nothing is sent; also with --detach."""
    (tmp_path / "scan.npy").write_bytes(npy(points(100)))
    volume = NIFTI / "standard.nii.gz"
    for words in (
        ("scan.npy", "--intensity", "values"),
        (volume, "--detach"),
        (volume, "--intensity", "bright"),
        (volume, "--credentials", "none.pem", "none.key"),
    ):
        given = [tmp_path / word if word == "scan.npy" else word for word in words]
        code, calls = translate(*given)
        assert code in {ExitCode.USAGE, ExitCode.NOT_FOUND}, words
        assert {name for name, *_ in calls} <= {"ListDomains"}
        assert capsys.readouterr().err.count("\n") >= 2


@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:affine")
def test_maps_below_a_folder_are_sent_as_numbers(translate, north, tmp_path):
    """Each by itself, and nothing of its tags; a file beside them is translated although they are not."""
    heights = np.arange(-600, 600, dtype=np.int16).reshape(1, 30, 40)
    for name in ("town.tif", "ward/land.tif"):
        (tmp_path / "maps" / name).parent.mkdir(parents=True, exist_ok=True)
        write_map(tmp_path / "maps" / name, heights)
    (tmp_path / "maps" / "scan.npy").write_bytes(npy(points(100)))
    code, _ = translate(tmp_path / "maps", "--intensity", "values")
    inputs = [content for job in north.service.jobs.values() for content in job.inputs]
    assert inputs == [*[npy(heights[0, :, :, None])] * 2, npy(points(100))]
    assert code == ExitCode.JOB_FAILED  # this double answers with points
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "scan.npy"), points(100) * 2)
    assert OWNER.encode() in (tmp_path / "maps" / "town.tif").read_bytes()
    assert {path.parent.name for path in (tmp_path / "out").rglob("*.parts")} == {"out", "ward"}


def test_items_are_sent_as_pixels(translate, tmp_path):
    """What the node is given is PNG, and holds no name; that this double takes no pictures ends the command."""
    write_series(tmp_path / "Ada-series", VALUES)
    code, calls = translate(tmp_path / "Ada-series")
    assert code != 0
    assert not any(b"Ada" in request.SerializeToString() for _, request in calls)
    items = sorted((tmp_path / "out" / "Ada-series" / "series-1.parts" / "items").iterdir())
    assert [item.name for item in items] == ["0001.png", "0002.png", "0003.png", "0004.png"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("state", "said"), [(pb.JOB_STATE_CANCELLED, "was cancelled"), (pb.JOB_STATE_FAILED, "failed")]
)
def test_a_job_that_did_not_finish_makes_no_background(state, said, translate, north, tmp_path, capsys):
    """The other series is translated, and the same command asks for what is missing alone."""

    def ended(answer):
        if len(north.service.jobs) == 1:
            answer.job.state = state
            for item in answer.job.items[2:]:
                item.state = pb.ITEM_STATE_RECEIVED

    north.script.pictures, north.script.forge = True, ended
    folders = [tmp_path / "scans" / name for name in ("p1", "p2")]
    for folder in folders:
        write_series(folder, VALUES)
    assert translate(tmp_path / "scans")[0] == ExitCode.JOB_FAILED
    (first, _) = north.service.jobs
    assert f"scans/p1/series-1: job {first} {said}" in capsys.readouterr().err
    found = tmp_path / "out" / "scans"
    assert not (found / "p1" / "series-1").exists()
    assert len(list((found / "p2" / "series-1").iterdir())) == 4
    assert translate(tmp_path / "scans")[0] == 0
    assert [len(job.inputs) for job in north.service.jobs.values()] == [4, 4, 2]


@pytest.mark.slow
def test_a_volume_and_a_plain_file_are_one_document(translate, north, tmp_path, capsys):
    """With what was left out of both; the document comes also where the plain file's job is refused."""
    north.script.pictures = True
    (given := tmp_path / "given").mkdir()
    (given / "scan.nii.gz").write_bytes((NIFTI / "standard.nii.gz").read_bytes())
    (given / "torn.nii").write_bytes((NIFTI / "anatomical.nii").read_bytes()[:5000])
    (given / "scan-2.npy").write_bytes(npy(points(100)))
    (given / "empty.npy").write_bytes(b"")
    assert translate(given, "--format", "json", "--skip-bad")[0] == ExitCode.LEFT_OUT
    document = json.loads(capsys.readouterr().out)
    assert [each["input"] for each in document["studies"]] == [str(given / "scan.nii.gz")]
    assert [each["file"] for each in document["items"]] == ["scan-2.npy"]
    assert [each["file"] for each in document["left_out"]] == [
        str(given / "torn.nii"),
        str(given / "empty.npy"),
    ]
    (given / "scan-2.npy").write_bytes(npy(points(50)))
    assert translate(given, "--format", "json", "--skip-bad")[0] == ExitCode.CONFLICT
    assert len(json.loads(capsys.readouterr().out)["studies"]) == 1
