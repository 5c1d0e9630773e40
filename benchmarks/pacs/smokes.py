"""What the smokes of the benchmarks with a PACS run where no Orthanc is installed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pydicom

from benchmarks.pacs.checks import is_near, places
from benchmarks.pacs.series import brain_series, send
from benchmarks.pacs.site import LIMIT_S, Site, until


def through_archive(folder: Path, *, kill: bool = False) -> dict[str, Any]:
    """Send a series to the receiver, which is perhaps killed, and on to a PACS that only stores."""
    paths = brain_series(folder / "in", pydicom.uid.generate_uid(), 1, 2)
    with Site.create(folder, archive=True, dicom="quiet_s = 1.0") as site:
        assert set(send(site.port, paths)) == {0}
        if kill:
            site.receiver.kill()
            site.start_receiver()
        seconds = until(lambda: site.ended == 1, LIMIT_S, "the series")
        results = [*site.pacs.folder.glob("*.dcm")]
        sources, derived = ([pydicom.dcmread(path) for path in files] for files in (paths, results))
        equal = is_near(places(paths), places(results))
    known = [str(each.SOPInstanceUID) for each in sources]
    origins = [str(each.SourceImageSequence[0].ReferencedSOPInstanceUID) for each in derived]
    return {
        "seconds": round(seconds, 1),
        "series": 1,
        "equal_geometry": int(equal),
        **counted(known, origins),
    }


def counted(known: list[str], origins: list[str]) -> dict[str, int]:
    """Return how many sources there are, and how many have no result, or more than one."""
    times = Counter(origins)
    return {
        "source_instances": len(known),
        "derived_instances": len(origins),
        "derived_twice": sum(count > 1 for count in times.values()),
        "without_result": len(set(known) - times.keys()),
    }
