"""A study of three series goes through a real Orthanc and two nodes, and comes back into the same study.

    python -m benchmarks.pacs.study      2 minutes; needs Debian's orthanc, orthanc-dicomweb, dicom3tools and dcm2niix

Four ways: sent to the PACS, which routes it to the receiver, and back by C-STORE; the same back by STOW-RS; and
`ddib translate --query` by C-FIND and C-MOVE, and by QIDO-RS and WADO-RS. Of each the derived series, whether their
geometry (dcm2niix) is that of the source, the errors of `dciodvfy` that the source does not have, and whether a repeat
replaces what is there. The smoke sends to the receiver, and back to a PACS that only stores.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from benchmarks.command import Rows, Run, command
from benchmarks.pacs.checks import errors_of, geometry, write
from benchmarks.pacs.series import brain_series, send
from benchmarks.pacs.site import LIMIT_S, TARGET, Site, until
from benchmarks.pacs.smokes import through_archive
from ddib_fed.testing import ddib

WAYS = ("C-STORE", "STOW-RS", "C-MOVE", "WADO-RS")
SERIES = (1, 2, 3)


def measure(run: Run) -> Rows:
    """Send a study by each way."""
    for way in run.pick(smoke=["C-STORE"], long=[*WAYS]):
        with tempfile.TemporaryDirectory() as folder:
            result = through_archive(Path(folder)) if run.smoke else measured(Path(folder), way)
            yield {"way": way, **result, "held": result["equal_geometry"] == result["series"]}


def measured(folder: Path, way: str) -> dict[str, Any]:
    """Have a study translated twice, and compare what the PACS has."""
    site, study = Site.create(folder), pydicom.uid.generate_uid()
    if way == "STOW-RS":
        site.receiver.command[-2:] = ["--send", site.pacs.web]
    for number in SERIES:
        brain_series(folder / "study" / str(number), study, number)
    with site:
        assert set(send(site.pacs.port, folder / "study", "PACS")) == {0}
        sources = site.pacs.series()
        seconds = translated(site, way, study, "first")
        first = instances(site)
        translated(site, way, study, "again")
        replaces = first == instances(site)
        return {"seconds": round(seconds, 1), "repeat_replaces": replaces, **compared(site, sources, folder)}


def instances(site: Site) -> dict[str, list[str]]:
    return {series["ID"]: sorted(series["Instances"]) for series in site.pacs.derived()}


def translated(site: Site, way: str, study: str, name: str) -> float:
    """Have the study translated, wait until the PACS has the result, and return the seconds."""
    before = site.receiver.text().count("handed on")
    if way in {"C-STORE", "STOW-RS"}:
        ours = {series["ID"] for series in site.pacs.derived()}
        sources = [series["ID"] for series in site.pacs.series() if series["ID"] not in ours]
        site.pacs.post("modalities/ddib/store", {"Resources": sources, "Permissive": True})
        return until(lambda: site.receiver.text().count("handed on") - before == len(SERIES), LIMIT_S, "all")
    site.receiver.kill()  # its port is the one that the PACS sends to
    peer = site.pacs.peer if way == "C-MOVE" else site.pacs.web
    words = ("--pacs", peer, "--send", peer, "--to", TARGET, "--quality", "draft", "--skip-bad")
    places = ("--out", site.folder / f"out-{name}", "--profile", site.pair.profile)
    began = time.monotonic()
    ddib("translate", "--query", f"StudyInstanceUID={study}", *words, *places)
    return time.monotonic() - began


def compared(site: Site, sources: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Return how the derived series differ from their sources."""
    derived = site.pacs.derived()
    by_number = {int(each["MainDicomTags"]["SeriesNumber"]): each for each in sources}
    before, after, equal = set[str](), set[str](), 0
    for each in derived:
        source = by_number[int(each["MainDicomTags"]["SeriesNumber"]) - 1000]
        ours, theirs = (write(site.pacs.files(one), folder / one["ID"]) for one in (each, source))
        known, new = (set().union(*map(errors_of, files)) for files in (theirs, ours))
        before, after = before | known, after | (new - known)
        (shape, affine), (shape_before, affine_before) = geometry(ours), geometry(theirs)
        equal += int(shape == shape_before and np.allclose(affine, affine_before, atol=1e-4))
    counts = {"series": len(derived), "instances": sum(len(each["Instances"]) for each in derived)}
    errors = {"errors_of_source": sorted(before), "new_errors": sorted(after)}
    return {"studies": len(site.pacs.get("studies")), **counts, "equal_geometry": equal, **errors}


if __name__ == "__main__":
    sys.exit(command(measure, "pacs/study"))
