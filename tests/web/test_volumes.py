"""Volumes and many files through the page's addresses, over a source node's double that gives negatives back."""

import io
import re
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest

from ddib_fed.data.pictures import decode_image
from ddib_fed.errors import PictureMisfit
from ddib_fed.v1 import translation_pb2 as pb
from tests.client.scripted_source import TARGET, npy, points
from tests.formats.dicom.files import write_series
from tests.formats.maps import write_map
from tests.formats.test_tiles import SMOOTH, opened

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:affine")]
VALUES = np.random.default_rng(0).integers(0, 2000, (4, 12, 10))


@pytest.fixture(autouse=True)
def pictures(north) -> None:
    north.script.pictures = True
    north.script.most_items = 2


@pytest.fixture
def drop(browser):
    """Posts files, or those of folders with the folder's name."""

    def post(*paths: Path) -> None:
        for path in paths:
            below = sorted(path.iterdir()) if path.is_dir() else [path]
            for file in below:
                name = f"{path.name}/{file.name}" if path.is_dir() else file.name
                answer = browser.post("/files", params={"name": name}, content=file.read_bytes())
                assert answer.status_code == 200, answer.text

    return post


def volume(path: Path, count: int = 5) -> Path:
    """A NIfTI of axial slices, two of them empty."""
    values = np.zeros((10, 12, count), np.int16)
    values[..., 1:-1] = np.random.default_rng(1).integers(100, 900, (10, 12, count - 2))
    image = nibabel.Nifti1Image(values, np.diag([2.0, 2, 3, 1]))
    image.header["descrip"] = "Ada-Lovelace"
    nibabel.save(image, path)
    return path


def ended(told) -> dict:
    assert told[-1][0] == "end"
    return told[-1][1]


def test_a_series_and_a_volume_come_back_as_they_went(drop, finished, browser, north, tmp_path: Path) -> None:
    """One translation of seven items in four jobs; both outputs download, alone and together; nothing else is left."""
    write_series(tmp_path / "Ada", VALUES, BurnedInAnnotation="YES")
    drop(tmp_path / "Ada", volume(tmp_path / "head.nii.gz"))
    assert not any(each["plain"] for each in browser.get("/files").json())
    told = finished(target=TARGET)
    state = ended(told)
    assert (state["items"], state["done"], state["written"], state["error"]) == (7, 7, 7, None)
    assert all(len(job.inputs) <= 2 for job in north.service.jobs.values())
    assert len(north.service.jobs) == 4
    assert not any(b"Ada" in data for job in north.service.jobs.values() for data in job.inputs)
    head, series = state["studies"]
    assert (series["label"], series["kind"], series["files"]) == ("Ada/series-1", "DICOM series (MR)", 4)
    assert series["warnings"][0].startswith("Ada/series-1: burnt-in text")
    assert (head["label"], head["planes"], head["items"]) == ("head.nii.gz", 5, 3)
    made = zipfile.ZipFile(io.BytesIO(browser.get("/jobs/1/studies/1/file").content))
    slices = [pydicom.dcmread(io.BytesIO(made.read(name))) for name in sorted(made.namelist())]
    assert [s.InstanceNumber for s in slices] == [1, 2, 3, 4]
    assert {s[0x0008001C].value for s in slices} == {"YES"}
    (folder,) = (tmp_path / "out").iterdir()
    download = browser.get("/jobs/1/studies/0/file")
    assert download.content == (folder / "head.nii.gz").read_bytes()
    assert nibabel.load(folder / "head.nii.gz").shape == (10, 12, 5)
    names = set(zipfile.ZipFile(io.BytesIO(browser.get("/jobs/1/all.zip").content)).namelist())
    assert names == {
        f"{folder.name}/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()
    }
    assert f"{folder.name}/dicom/Ada/series-1/0001.dcm" in names
    assert not list(folder.glob("*.parts"))


def test_a_doubt_on_the_page_is_what_was_seen(drop, finished, north, tmp_path: Path) -> None:
    """Without commands and options of a terminal, and without colours that the page does not draw."""

    def doubtful(messages):
        for message in messages:
            if message.result.HasField("provenance"):
                made = message.result.provenance
                made.calibration_sha256, made.calibration_kind = "4" * 64, "rotation"
                made.picture.MergeFrom(
                    pb.PictureFigures(structure_doubtful=True, differs=0.4, most_differs=0.3)
                )
        return messages

    north.script.tamper = doubtful
    drop(volume(tmp_path / "head.nii.gz"))
    doubts = [value["doubts"] for name, value in finished(target=TARGET) if name == "result"]
    assert len(doubts) == 3
    for (doubt,) in doubts:
        assert "those parts may be wrong." in doubt
        assert not re.search(r"\bddib\b|--\w|`|\bred\b", doubt)


def test_slices_are_shown_by_their_place_after_the_parts_are_gone(drop, finished, browser, tmp_path):
    """Source and translation of each, as pictures of 8 bits; a slice is no download."""
    drop(volume(tmp_path / "head.nii.gz"))
    told = finished(target=TARGET, cycle=False)
    results = [value for name, value in told if name == "result"]
    assert [(each["label"], each["study"], each["plane"]) for each in results] == [
        (f"head.nii.gz, slice {plane}", 0, plane) for plane in (2, 3, 4)
    ]
    for each in results:
        source, translation = (
            decode_image(browser.get(f"/jobs/1/{each['item']}/{part}/view").content).pixels
            for part in ("source", "translation")
        )
        np.testing.assert_array_equal(source, 255 - translation)
    assert source.shape == (12, 10, 1)
    assert browser.get("/jobs/1/0/translation/file").status_code == 404
    assert browser.get("/jobs/1/studies/1/file").status_code == 404


def test_a_volume_that_goes_whole_is_shown_by_its_middle_slices(drop, finished, browser, north, tmp_path):
    """One item for the model of volumes, whose axial, coronal and sagittal slice are side by side."""
    north.script.listed = pb.ListDomainsResponse(
        institution="north.example", domain="heads", sample_kind="volume", sample_shape=[1, 8, 16, 12]
    )
    drop(volume(tmp_path / "head.nii.gz"))
    told = finished(target=TARGET, cycle=False)
    state, (only,) = ended(told), [value for name, value in told if name == "result"]
    assert (state["items"], state["error"], only["label"]) == (1, None, "head.nii.gz")
    assert ["voxels", "12x16x8"] in [[*each] for each in only["figures"]]
    source, translation = (
        decode_image(browser.get(f"/jobs/1/0/{part}/view").content).pixels
        for part in ("source", "translation")
    )
    assert source.shape == translation.shape == (16, 12 + 12 + 16, 1)
    np.testing.assert_array_equal(source[:, :12], 255 - translation[:, :12])
    assert nibabel.load(next((tmp_path / "out").rglob("head.nii.gz"))).shape == (10, 12, 5)


def test_a_map_is_shown_whole(drop, finished, browser, north, tmp_path: Path) -> None:
    """Its tiles are counted; then there is one result, of the map's size; and the map keeps its place on the earth."""

    north.script.listed = pb.ListDomainsResponse(
        institution="north.example", domain="aerial", sample_kind="picture", sample_shape=[3, 64, 64]
    )
    drop(write_map(tmp_path / "map.tif", SMOOTH))
    told = finished(target=TARGET)
    state, (only,) = ended(told), [value for name, value in told if name == "result"]
    assert (state["studies"][0]["plane_word"], state["written"]) == ("tile", state["items"])
    assert state["items"] > 4
    assert (only["label"], only["study"]) == ("map.tif", 0)
    source = decode_image(browser.get("/jobs/1/0/source/view").content).pixels
    np.testing.assert_array_equal(source, SMOOTH.transpose(1, 2, 0))
    assert decode_image(browser.get("/jobs/1/0/translation/view").content).pixels.shape == source.shape
    profile, *_ = opened(browser.get("/jobs/1/studies/0/file").content)
    assert profile["crs"].to_epsg() == 32633


def test_stopping_cancels_all_unfinished_jobs(drop, finished, browser, north, tmp_path: Path) -> None:
    """Those at the node, and nothing more is submitted; the error says that it was stopped."""
    for number in range(7):
        (tmp_path / f"scan-{number}.npy").write_bytes(npy(points(10, start=number)))
    drop(*sorted(tmp_path.glob("*.npy")))

    def stop(method: str) -> None:
        if method == "WatchJob" and not north.script.seen("CancelJob"):
            assert browser.post("/jobs/1/cancel").status_code == 204

    north.script.on_call = stop
    state = ended(finished(target=TARGET))
    assert state["error"]["reason"] == "CANCELLED"
    assert len(north.service.jobs) == 2
    assert {call.job_id for call in north.script.seen("CancelJob")} == set(north.service.jobs)


def test_a_rule_that_does_not_fit_the_model_is_said_for_the_volume(drop, finished, browser, north, tmp_path):
    """Not for each slice; with what to set on the page; nothing is left, and the file can be used again."""
    refused = " ".join(f"{n}:PICTURE_MISFIT" for n in range(3))
    facts = {"item": 0, "refused": refused, "holds": "grey 0 to 899", "takes": "0 to 255", "range": "0:255"}
    north.script.most_items = 0
    north.script.refuse["SubmitJob"] = PictureMisfit(facts=facts)
    drop(volume(tmp_path / "head.nii.gz"))
    error = ended(finished(target=TARGET, intensity="values"))["error"]
    assert error["reason"] == "PICTURE_MISFIT"
    assert error["detail"].startswith("head.nii.gz: its slices hold grey 0 to 899")
    assert error["hint"].endswith("set the rule of intensity to percentile:0.5,99.5@0:255")
    assert [each["label"] for each in browser.get("/files").json()] == ["head.nii.gz"]
    assert not list((tmp_path / "out").iterdir())
