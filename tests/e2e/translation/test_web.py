"""`ddib web` by its addresses over two real nodes: a series, a volume and more files than the node takes in one job."""

from __future__ import annotations

import http.cookiejar
import io
import json
import tempfile
import urllib.request
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pydicom
import pytest

from ddib_fed.data.pictures import decode_image, encode_png
from tests.e2e.harness import Pair, ddib
from tests.e2e.translation.test_formats import SECRET, head, header_secrets, write_volume
from tests.formats.dicom.files import write_series
from tests.security.tap.relay import Tap
from tests.security.tap.search import Traffic
from tests.web.browser.conftest import serving

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

LIMIT = 2
TARGET = "south.example/brain-t2"


class Page:
    """A browser without a screen: opens the link once, keeps the cookie, names its origin."""

    def __init__(self, link: str) -> None:
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        )
        self._at = link.split("start?", maxsplit=1)[0]
        parts = urlsplit(link)
        self._origin = f"{parts.scheme}://{parts.netloc}"
        self._opener.open(link, timeout=10).close()

    def get(self, path: str) -> bytes:
        with self._opener.open(self._at + path, timeout=170) as answer:
            return bytes(answer.read())

    def post(self, path: str, data: bytes) -> Any:
        request = urllib.request.Request(self._at + path, data=data, headers={"Origin": self._origin})
        with self._opener.open(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def drop(self, path: Path) -> None:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            name = f"{path.name}/{file.relative_to(path)}" if path.is_dir() else path.name
            self.post(f"files?name={quote(name)}", file.read_bytes())

    def translate(self, **order: object) -> tuple[int, dict[str, Any]]:
        """The number of a translation, and its last state."""
        asked = {"target": TARGET, "quality": "draft", "cycle": False, **order}
        job = self.post("jobs", json.dumps(asked).encode())["job"]
        lines = self.get(f"jobs/{job}/events").decode().splitlines()
        return job, json.loads(lines[-2].removeprefix("data: "))


@dataclass
class Clinic:
    """A page of north's client after one translation, all of whose bytes to its node were kept."""

    page: Page
    given: Path
    out: Path
    slices: np.ndarray
    job: int
    state: dict[str, Any]
    traffic: Traffic
    profile: Path


@pytest.fixture(scope="module")
def clinic() -> Iterator[Clinic]:
    with tempfile.TemporaryDirectory(prefix="ddib-web-e2e-") as name:
        folder, slices = Path(name), head()
        pair = Pair.create(folder, "brain-t2", domain="brain-t1")
        pair.north.edit("# max_items_per_job = 1000", f"max_items_per_job = {LIMIT}")
        (given := folder / "given").mkdir()
        write_series(given / "Ada-series", slices.astype(int) * 4, PatientName=SECRET, PatientID=f"{SECRET}-id",
                     BurnedInAnnotation="YES")  # fmt: skip
        write_volume(given / "Ada-volume.nii", slices)
        (plain := given / "plain").mkdir()
        for number in range(LIMIT + 1):
            (plain / f"{number}.png").write_bytes(encode_png(slices[number][..., None]))
        pair.start()
        tap = Tap(pair.north.port, pair.north.config.paths.pki, pair.profile.parent / "pki")
        pair.profile.write_text(pair.profile.read_text().replace(str(pair.north.port), str(tap.port)))
        try:
            with serving("web", "--profile", pair.profile, "--out", folder / "out") as link:
                page = Page(link)
                for path in (given / "Ada-series", given / "Ada-volume.nii", plain):
                    page.drop(path)
                job, state = page.translate(slices="coronal")
                (out,) = (folder / "out").iterdir()
                yield Clinic(page, given, out, slices, job, state, Traffic(tap.connections), pair.profile)
        finally:
            pair.stop()
            tap.close()


def test_everything_is_one_finished_translation(clinic: Clinic) -> None:
    """Nine items in six jobs of two at most; one count."""
    state = clinic.state
    assert state["error"] is None
    assert (state["items"], state["done"], state["written"], state["missing"]) == (9, 9, 9, [])
    jobs = json.loads(ddib("job", "list", "--profile", clinic.profile, "--format", "json"))
    assert len(jobs) == 6
    assert sum(job["item_count"] for job in jobs) == 9
    assert {path.name for path in clinic.out.glob("plain/*.png")} == {f"{n}.png" for n in range(LIMIT + 1)}


def test_what_was_made_is_downloaded(clinic: Clinic) -> None:
    """A series, a volume, and the archive of all: the files that lie in --out; warned of before."""
    series = clinic.state["studies"][1]
    assert series["warnings"][0].startswith("Ada-series/series-1: burnt-in text")
    assert any("slice flicker" in line for line in series["said"])
    archive = zipfile.ZipFile(io.BytesIO(clinic.page.get(f"jobs/{clinic.job}/studies/1/file")))
    made = [pydicom.dcmread(io.BytesIO(archive.read(name))) for name in sorted(archive.namelist())]
    assert {(m[0x0008001C].value, str(m.PatientName)) for m in made} == {("YES", SECRET)}
    assert len(made) == len(clinic.slices)
    every = zipfile.ZipFile(io.BytesIO(clinic.page.get(f"jobs/{clinic.job}/all.zip")))
    volume = clinic.page.get(f"jobs/{clinic.job}/studies/0/file")
    assert (
        every.read(f"{clinic.out.name}/Ada-volume.nii")
        == volume
        == (clinic.out / "Ada-volume.nii").read_bytes()
    )
    assert f"{clinic.out.name}/dicom/Ada-series/series-1/0003.dcm" in every.namelist()


def test_each_slice_is_shown_beside_its_translation(clinic: Clinic) -> None:
    """After its parts are removed."""
    assert not list(clinic.out.rglob("*.parts"))
    for item in range(6):
        source, translation = (
            decode_image(clinic.page.get(f"jobs/{clinic.job}/{item}/{part}/view")).pixels
            for part in ("source", "translation")
        )
        assert source.shape == translation.shape == (80, 80, 1)
        assert np.corrcoef(source.ravel() > 0, translation.ravel() > 25)[0, 1] > 0.8


def test_a_rule_that_does_not_fit_is_answered_with_one_that_does(clinic: Clinic) -> None:
    """By the node's word, in those of the page; nothing is computed, and the files can be used again."""
    clinic.page.drop(clinic.given / "Ada-volume.nii")
    _, state = clinic.page.translate(intensity="values", slices="coronal")
    assert state["error"]["reason"] == "PICTURE_MISFIT"
    assert state["error"]["hint"].endswith("set the rule of intensity to percentile:0.5,99.5@0:255")
    assert [each["label"] for each in json.loads(clinic.page.get("files"))] == ["Ada-volume.nii"]


def test_no_value_of_a_header_left_the_client(clinic: Clinic) -> None:
    """Nor a name: in every byte to the node."""
    paths = {call.path.rpartition("/")[2] for call in clinic.traffic.calls}
    assert {"SubmitJob", "FetchResults", "AcknowledgeItems"} <= paths
    assert clinic.traffic.look(header_secrets(clinic.given)) == []
