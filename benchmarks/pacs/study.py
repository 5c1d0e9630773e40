"""A study of three series goes through a real Orthanc and two nodes, and comes back into the same study.

    python -m benchmarks.pacs.study

Four ways: `storescu` to the PACS, which routes it to the receiver, and back by C-STORE; the same back by STOW-RS; and
`ddib translate --query` by C-FIND and C-MOVE, and by QIDO-RS and WADO-RS. Of each docs/benchmarks/pacs/study.json has
the derived series, whether their geometry (dcm2niix) is that of the source, the errors of
`dciodvfy` that the source does not have, and whether a repeat replaces what is there.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from benchmarks.pacs.site import TARGET, Site, brain_series, errors_of, geometry, storescu, until, write
from ddib_fed.testing import ddib


def main() -> None:
    rows = []
    for way in ("C-STORE", "STOW-RS", "C-MOVE", "WADO-RS"):
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"way": way, **measured(Path(folder), way)})
    write("study", {"rows": rows})


def measured(folder: Path, way: str) -> dict[str, Any]:
    site = Site.create(folder)
    if way == "STOW-RS":
        site.receiver.command[-2:] = ["--send", site.pacs.web]
    study = pydicom.uid.generate_uid()
    for number in (1, 2, 3):
        brain_series(folder / "study", study, number)
        for path in [*(folder / "study").glob("IM*")]:
            path.rename(path.with_name(f"s{number}-{path.name}"))
    try:
        site.start()
        sent = storescu(site.pacs.port, "PACS", folder / "study")
        assert not sent.returncode, sent.stderr
        sources = site.pacs.series()
        seconds = once(site, way, study)
        first = {each["ID"]: sorted(each["Instances"]) for each in site.pacs.derived()}
        once(site, way, study, wait=6.0)
        again = {each["ID"]: sorted(each["Instances"]) for each in site.pacs.derived()}
        return {
            "seconds": round(seconds, 1),
            "repeat_replaces": first == again,
            **compared(site, sources, folder),
        }
    finally:
        site.stop()
        print(site.receiver.text())


def once(site: Site, way: str, study: str, wait: float = 0.0) -> float:
    """Have the study translated, and wait until the PACS has the result."""
    handed = site.receiver.text().count("handed on")
    if way in {"C-STORE", "STOW-RS"}:
        (found,) = site.pacs.get("studies")
        ids = [each["ID"] for each in site.pacs.series() if each not in site.pacs.derived()]
        site.pacs.post("modalities/ddib/store", {"Resources": ids or [found], "Permissive": True})
        return (
            until(lambda: site.receiver.text().count("handed on") == handed + 3, 120, "three series") + wait
        )
    site.receiver.kill()  # its port is the one that the PACS sends to
    where = ("--pacs", site.pacs.peer) if way == "C-MOVE" else ("--pacs", site.pacs.web)
    back = ("--send", site.pacs.peer) if way == "C-MOVE" else ("--send", site.pacs.web)
    out = site.folder / f"out-{wait}"
    return until(
        lambda: ddib("translate", "--query", f"StudyInstanceUID={study}", *where, *back, "--to", TARGET, "--quality",
                     "draft", "--out", out, "--profile", site.pair.profile, "--skip-bad") is not None,
        300, "the query",
    )  # fmt: skip


def compared(site: Site, sources: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    derived = site.pacs.derived()
    by_number = {int(each["MainDicomTags"]["SeriesNumber"]): each for each in sources}
    errors, equal, before = set[str](), 0, set[str]()
    for each in derived:
        source = by_number[int(each["MainDicomTags"]["SeriesNumber"]) - 1000]
        ours, theirs = site.pacs.files(each), site.pacs.files(source)
        known = set().union(*(errors_of(content, folder) for content in theirs))
        before |= known
        errors |= set().union(*(errors_of(content, folder) for content in ours)) - known
        (shape, affine), (shape_of_source, affine_of_source) = (
            geometry(f, folder / "nii") for f in (ours, theirs)
        )
        equal += shape == shape_of_source and np.allclose(affine, affine_of_source, atol=1e-4)
    return {
        "studies": len(site.pacs.get("studies")),
        "series": len(derived),
        "instances": sum(len(each["Instances"]) for each in derived),
        "equal_geometry": equal,
        "errors_of_source": sorted(before),
        "new_errors": sorted(errors),
    }


if __name__ == "__main__":
    main()
