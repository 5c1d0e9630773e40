"""A study's items and results as files, and its output with its provenance."""

import errno
import json

import numpy as np
import pytest

from ddib_fed.client import parts as parts_module
from ddib_fed.client.parts import check_outputs, finished_study, translate_study, write_outputs
from ddib_fed.data.pictures import decode_image, encode_png
from ddib_fed.data.study import Options
from ddib_fed.errors import AlreadyExists, JobFailed, UsageError
from ddib_fed.recognition import open_paths
from ddib_fed.record import Record
from tests.formats.dicom.files import write_series
from tests.formats.echoes import ASKED, NIFTI, only, record, results

VALUES = np.random.default_rng(0).integers(0, 2000, (4, 12, 10))


@pytest.fixture
def study():
    return only(NIFTI / "anatomical.nii")


class Node:
    """Translates items into a folder as the ordinary path does; some it refuses, of some it says nothing."""

    def __init__(self, refuses=(), asked=ASKED, leaves=()):
        self.refuses, self.leaves, self.asked = refuses, leaves, asked
        self.calls = []

    def __call__(self, items, folder):
        self.calls.append([item.stem for item in items])
        folder.mkdir(exist_ok=True)
        for item in items:
            if item.stem not in (*self.refuses, *self.leaves):
                assert item.stat().st_mode & 0o777 == 0o600
                png = encode_png(255 - decode_image(item.read_bytes()).pixels)
                (folder / f"{item.stem}.png").write_bytes(png)
                made = record(item.read_bytes(), png, asked=self.asked)
                (folder / f"{item.stem}.json").write_bytes(made.to_json())
        return {item: "its latent is no noise" for item in items if item.stem in self.refuses}


@pytest.fixture
def series(tmp_path):
    write_series(tmp_path / "mr", VALUES)
    return only(tmp_path / "mr")


def test_results_are_put_together_from_their_files(study, tmp_path):
    """The volume, and a record that any reader of records reads, with a section of its own; the parts are gone."""
    written = translate_study(study, tmp_path, Node(), asked=ASKED)
    assert [path.name for path in written.files] == ["anatomical.nii"]
    made = Record.read(written.record)
    assert made is not None
    assert (made.input, made.samples, made.wire_bytes) == ("anatomical.nii", 25, 2500)
    assert made.files["translation"].file == "anatomical.nii"
    section = json.loads(written.record.read_text())["study"]
    assert section["kind"] == "NIfTI volume"
    assert section["intensity"]["inverse"].startswith("value = ")
    assert [item["plane"] for item in section["items"]] == list(range(25))
    assert section["items"][3]["latent_sha256"] != section["items"][4]["latent_sha256"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["anatomical.json", "anatomical.nii"]


@pytest.mark.parametrize(
    ("fitted", "at", "shrink"), [({}, [12, 10], 1.0), ({"fitted_height": 6, "fitted_width": 4}, [6, 4], 2.5)]
)
def test_the_size_at_which_a_study_was_computed_is_said(fitted, at, shrink, series, tmp_path):
    """First of all, as of a picture, also by the next run; and in figures for what decides by them."""
    made = [
        each._replace(record=each.record.with_(picture={**fitted, "clipped": 5})) for each in results(series)
    ]
    written = write_outputs(series, made, tmp_path)
    lost = ["was computed at 4 x 6 pixels, not at its own 10 x 12, and enlarged: 5 pixels became one"]
    lost = lost if fitted else []
    assert list(written.said) == [*lost, "20 values outside the range of the source's model were clipped"]
    again = finished_study(series.origin, tmp_path, asked=ASKED)
    assert list(again.said[:-1]) == lost
    assert (again.report["computed_at"], again.report["shrink"]) == (at, shrink)


def test_what_no_node_refused_never_becomes_background(series, tmp_path):
    """Its job was cancelled, or out of time: the same command asks for it again, and what was refused is said."""
    out = tmp_path / "out"
    with pytest.raises(
        JobFailed, match=r"mr: 1 of 4 planes were not translated \(3\), although no node refused"
    ):
        translate_study(series, out, Node(("0002",), leaves=("0003",)), asked=ASKED)
    assert not (out / "mr" / "series-1").exists()
    again = Node(("0002",))
    written = translate_study(series, out, again, asked=ASKED)
    assert again.calls == [["0002", "0003"]]
    assert written.report["slices"]["refused"] == [1]
    assert written.refused == "1 of 4 items were refused, and are background (2): its latent is no noise"
    section = json.loads(written.record.read_text())["study"]
    assert [item.get("why") for item in section["items"]] == [None, "its latent is no noise", None, None]


def test_results_of_other_items_or_requests_are_not_put_into_the_volume(series, tmp_path):
    """Those that were changed, have no record, or are of another target: they are asked for again."""
    out, other = tmp_path / "out", "b6" * 32
    with pytest.raises(JobFailed):
        translate_study(series, out, Node(leaves=("0004",)), asked=ASKED)
    results = out / "mr" / "series-1.parts" / "results"
    (results / "0001.png").write_bytes((results / "0002.png").read_bytes())
    (results / "0003.json").unlink()
    node = Node(leaves=("0004",))
    with pytest.raises(JobFailed):
        translate_study(series, out, node, asked=ASKED)
    assert node.calls == [["0001", "0003", "0004"]]
    node = Node(asked=other)
    written = translate_study(series, out, node, asked=other)
    assert node.calls == [["0001", "0002", "0003", "0004"]]
    assert {item["asked_sha256"] for item in written.report["items"]} == {other}


@pytest.mark.parametrize("of_files", [False, True])
def test_the_input_is_never_replaced(of_files, tmp_path):
    """--out beside it, also with --force, and when the folder's files were named one by one."""
    paths = write_series(tmp_path / "ct", VALUES, header="CT_small.dcm")
    (study,) = open_paths(paths if of_files else [tmp_path / "ct"], Options()).studies
    with pytest.raises(UsageError, match="replace the input"):
        check_outputs(study.origin, tmp_path, force=True)


def test_output_of_the_same_request_is_known_again(tmp_path):
    """By the record of a volume below a folder, without its pixels; not for another request, option, input or file."""
    given = tmp_path / "in" / "ward" / "scan.nii"
    given.parent.mkdir(parents=True)
    given.write_bytes((NIFTI / "anatomical.nii").read_bytes())
    (unread,) = open_paths([tmp_path / "in"], Options()).studies.unread
    study, out = unread.reader(unread.origin), tmp_path / "out"
    assert finished_study(unread.origin, out, asked=ASKED) is None
    written = write_outputs(study, results(study), out)
    again = finished_study(unread.origin, out, asked=ASKED)
    assert again is not None
    assert (again.files, again.kind, again.items) == ((out / "ward" / "scan.nii",), "NIfTI volume", 25)
    assert again.files == written.files
    assert finished_study(unread.origin, out, asked="b6" * 32) is None
    (other,) = open_paths([tmp_path / "in"], Options(slices="sagittal")).studies.unread
    assert finished_study(other.origin, out, asked=ASKED) is None
    given.write_bytes(given.read_bytes() + b"0")
    assert finished_study(unread.origin, out, asked=ASKED) is None
    given.write_bytes((NIFTI / "anatomical.nii").read_bytes())
    (out / "ward" / "scan.nii").write_bytes(b"changed")
    assert finished_study(unread.origin, out, asked=ASKED) is None


def test_an_output_that_was_interrupted_needs_no_force(series, tmp_path, monkeypatch):
    """The disk was full between the slices and the record; a folder of somebody else still needs it."""
    out = tmp_path / "out"

    def full(path, figures, **how):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(parts_module, "write_json", full)
        with pytest.raises(OSError, match="No space"):
            translate_study(series, out, Node(), asked=ASKED)
    assert (out / "mr" / "series-1" / "0004.dcm").exists()
    assert not (out / "mr" / "series-1.json").exists()
    node = Node()
    translate_study(series, out, node, asked=ASKED)
    assert not node.calls
    assert finished_study(series.origin, out, asked=ASKED) is not None
    with pytest.raises(AlreadyExists):
        check_outputs(series.origin, out, force=False)


def test_an_earlier_output_stays_whole_until_the_new_one_is(series, tmp_path, monkeypatch):
    """With --force on a disk that gets full in between; and what a killed run left opens no way around --force."""
    out = tmp_path / "out"
    earlier = translate_study(series, out, Node(), asked=ASKED)
    before = {path: path.stat().st_ino for path in (*earlier.files, earlier.record)}
    write = parts_module.write_file

    def full(path, data, **how):
        if path.name == "0003.dcm":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, data, **how)

    with monkeypatch.context() as patched:
        patched.setattr(parts_module, "write_file", full)
        with pytest.raises(OSError, match="No space"):
            translate_study(series, out, Node(), asked=ASKED, force=True)
    assert {path: path.stat().st_ino for path in before} == before
    assert finished_study(series.origin, out, asked=ASKED) is not None
    assert (out / "mr" / "series-1.parts").exists()
    with pytest.raises(AlreadyExists):
        check_outputs(series.origin, out, force=False)


def test_a_series_of_fewer_slices_leaves_none_of_the_earlier(tmp_path):
    """Only files that an earlier run wrote are removed."""
    paths = write_series(tmp_path / "mr", VALUES)
    out = tmp_path / "out"
    written = write_outputs(only(tmp_path / "mr"), results(only(tmp_path / "mr")), out)
    (out / "mr" / "series-1" / "notes.txt").write_text("mine")
    assert len(written.files) == 4
    assert {path.stat().st_mode & 0o777 for path in (*written.files, written.record)} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in (out, out / "mr", out / "mr" / "series-1")} == {0o700}
    assert not list(out.rglob("*.parts"))
    paths[3].unlink()
    write_outputs(only(tmp_path / "mr"), results(only(tmp_path / "mr")), out)
    assert sorted(path.name for path in (out / "mr" / "series-1").iterdir()) == [
        "0001.dcm",
        "0002.dcm",
        "0003.dcm",
        "notes.txt",
    ]
