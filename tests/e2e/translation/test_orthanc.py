"""Studies through a real Orthanc, which `make test-pacs` installs: sent, routed, translated, back in the same study."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pydicom
import pytest

from benchmarks.pacs.kills import measured as killed
from benchmarks.pacs.site import Site, brain_series, storescu, until
from benchmarks.pacs.study import measured

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        not all(map(shutil.which, ("Orthanc", "storescu", "dciodvfy", "dcm2niix"))), reason="make test-pacs"
    ),
]

CONTAINER = Path(__file__).parents[3] / "docs" / "deploy" / "container"
UNKNOWN_TO_DCIODVFY = "(0x0008,0x001c)"
"""Synthetic Data, which the standard has since 2023."""


@pytest.mark.parametrize("way", ["C-STORE", "STOW-RS", "C-MOVE", "WADO-RS"])
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
    try:
        site.start()
        site.receiver.kill()
        assert storescu(site.pacs.port, "PACS", tmp_path / "in").returncode == 0
        time.sleep(6.0)  # stable, and in vain sent
        site.start_receiver()
        until(lambda: len(site.pacs.derived()) == 1, 60, "the derived series")
        time.sleep(6.0)  # the derived series is stable by now
        assert len(site.pacs.series()) == 2
        assert "is synthetic itself" not in site.receiver.text()
    finally:
        site.stop()


def test_each_series_comes_once_whatever_is_killed(tmp_path: Path) -> None:
    found = killed(tmp_path, 8, seed=1)
    assert (found["derived_series"], found["derived_instances"]) == (8, 32)
    assert found["without_result"] == found["derived_twice"] == 0
