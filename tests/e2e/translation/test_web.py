"""`ddib web` by its addresses over two real nodes: a series, a volume and more files than the node takes in one job."""

from __future__ import annotations

import http.cookiejar
import json
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
import pytest

from ddib_fed.data.pictures import encode_png
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
                yield Clinic(page, given, out, slices, job, state, Traffic(tap.calls), pair.profile)
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


def test_no_value_of_a_header_left_the_client(clinic: Clinic) -> None:
    """Nor a name: in every byte to the node."""
    paths = {call.path.rpartition("/")[2] for call in clinic.traffic.calls}
    assert {"SubmitJob", "FetchResults", "AcknowledgeItems"} <= paths
    assert clinic.traffic.look(header_secrets(clinic.given)) == []
