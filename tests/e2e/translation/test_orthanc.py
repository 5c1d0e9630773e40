"""Studies through a real Orthanc, which `make test-pacs` installs: sent, routed, translated, back in the same study."""

import json
import shutil
import time
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from benchmarks.pacs.kills import measured as killed
from benchmarks.pacs.series import brain_series, send
from benchmarks.pacs.site import Site, until
from benchmarks.pacs.study import measured
from ddib_fed.datasets import shipped_bytes
from tests.formats.dicom.files import write_series

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not all(map(shutil.which, ("Orthanc", "storescu", "dciodvfy", "dcm2niix"))), reason="make test-pacs"
    ),
]

CONTAINER = Path(__file__).parents[3] / "docs" / "deploy" / "container"
UNKNOWN_TO_DCIODVFY = "(0x0008,0x001c)"
"""Synthetic Data, which the standard has since 2023."""


# A study that is asked for by WADO-RS goes back by STOW-RS too.
@pytest.mark.parametrize(
    "way", ["C-STORE", pytest.param("STOW-RS", marks=pytest.mark.long), "C-MOVE", "WADO-RS"]
)
def test_a_study_of_three_series_comes_back_into_its_study(way: str, tmp_path: Path) -> None:
    """With the geometry of its source by dcm2niix, without errors that it does not have by dciodvfy, and once."""
    found = measured(tmp_path, way)
    assert (found["studies"], found["series"], found["instances"]) == (1, 3, 24)
    assert found["equal_geometry"] == 3
    assert [line for line in found["new_errors"] if UNKNOWN_TO_DCIODVFY not in line] == []
    assert found["repeat_replaces"]


def test_the_route_of_the_page_sends_series_of_a_scanner_alone(tmp_path: Path) -> None:
    """docs/deploy/container/orthanc.json and route.lua: what comes back is not sent again, and a receiver that was away
    has its series later.
    """
    settings = json.loads((CONTAINER / "orthanc.json").read_text())
    own = {name: settings[name] for name in ("DicomCheckCalledAet", "OverwriteInstances")}
    site = Site.create(tmp_path, LuaScripts=[str(CONTAINER / "route.lua")], LuaHeartBeatPeriod=2, **own)
    brain_series(tmp_path / "in", pydicom.uid.generate_uid(), 1)
    with site:
        site.receiver.kill()
        assert not any(send(site.pacs.port, tmp_path / "in", "PACS"))
        time.sleep(6.0)  # stable, and in vain sent
        site.start_receiver()
        until(lambda: len(site.pacs.derived()) == 1, 300, "the derived series")
        time.sleep(6.0)  # the derived series is stable by now
        assert len(site.pacs.series()) == 2
        assert "is synthetic itself" not in site.receiver.text()


def test_series_that_are_more_than_they_seem_come_back_as_what_they_are(tmp_path: Path) -> None:
    """By a real PACS: MR that is displayed inverted, two echoes with a localizer, slices of twice and of ten times the
    model's size. Values stay, echoes part, sizes are said, and what is too large is left with its reason.
    """
    site, study = Site.create(tmp_path, dicom='report = "sr"'), pydicom.uid.generate_uid()
    (planes,) = shipped_bytes("brain-t1", ["test"])
    flat = planes[:2, 0].astype(np.uint16) * 4
    looks: dict[int, list[dict[str, Any]]] = {
        1: [{"slope": 2.0}],
        2: [{"slope": 2.0, "PhotometricInterpretation": "MONOCHROME1"}],
        3: [{"EchoTime": 10, "EchoNumbers": 1}, {"EchoTime": 90, "EchoNumbers": 2},
            {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}],
        4: [{}],
        5: [{}],
    }  # fmt: skip
    larger = {4: 2, 5: 10}
    for number, parts in looks.items():
        uid = pydicom.uid.generate_uid()
        for at, changes in enumerate(parts):
            pixels = flat.repeat(larger.get(number, 1), 1).repeat(larger.get(number, 1), 2)
            about = {"StudyInstanceUID": study, "SeriesInstanceUID": uid, "SeriesNumber": number}
            write_series(tmp_path / "in" / f"{number}-{at}", pixels, **about, **changes)
    with site:
        assert not any(send(site.pacs.port, tmp_path / "in", "PACS"))
        site.pacs.post("modalities/ddib/store", {"Resources": site.pacs.get("studies"), "Permissive": True})
        until(lambda: site.receiver.text().count("handed on") == 5, 120, "four series and a report")
        files = [
            pydicom.dcmread(BytesIO(each)) for part in site.pacs.derived() for each in site.pacs.files(part)
        ]
    assert {each.StudyInstanceUID for each in files} == {study}
    (report,) = (each for each in files if each.Modality == "SR")
    assert "most_shrink 2" in " ".join(each.get("TextValue", "") for each in report.ContentSequence)
    made = {
        number: sorted((each for each in files if each.get("SeriesNumber") == 1000 + number), key=place_of)
        for number in looks
    }
    assert [len(made[number]) for number in looks] == [2, 2, 4, 2, 0]
    for one, other in zip(made[1], made[2], strict=True):
        # A network rounds by the size of its batch: a value that lies between two grey levels can fall to either.
        apart = np.abs(one.pixel_array.astype(int) - other.pixel_array)
        assert apart.max() <= 1
        assert apart.mean() < 0.01
    assert len({each.SeriesInstanceUID for each in made[3]}) == 2
    assert {int(each.EchoTime) for each in made[3]} == {10, 90}
    said = "was computed at 48 x 48 pixels, not at its own 96 x 96"
    assert all(said in each.DerivationDescription and each.SpatialResolution == 3 for each in made[4])
    assert "2 DICOM localizer" in site.receiver.text()
    assert said in site.receiver.text()


def place_of(dataset: pydicom.Dataset) -> tuple[str, float]:
    return str(dataset.SeriesInstanceUID), float(dataset.ImagePositionPatient[2])


# pynetdicom leaves a socket open when the killed PACS refuses its connection.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.timeout(3_600)
def test_each_series_comes_once_whatever_is_killed(tmp_path, amount):
    found = killed(tmp_path, count := amount(4, 8), seed=1)
    assert (found["derived_series"], found["derived_instances"]) == (count, 4 * count)
    assert found["without_result"] == found["derived_twice"] == 0
    assert found["kills"]
