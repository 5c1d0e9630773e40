"""Series in a row through a PACS, two nodes and the receiver, all of which are killed at random.

    python -m benchmarks.pacs.kills      5 minutes of two cores; needs Debian's orthanc and orthanc-dicomweb

Each of 200 series is sent to the PACS and routed by it until it says that this succeeded, as a sender does. Meanwhile
the receiver, a node or the PACS gets SIGKILL every few seconds and is started again. What the PACS holds in the end:
derived series and instances, those of which there are several, and sources without one; the jobs that the node had, the
deliveries of the receiver, and the kills. In the smoke one series goes to the receiver, which is killed once.
"""

from __future__ import annotations

import random
import re
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pydicom
import requests

from benchmarks.command import Rows, Run, command
from benchmarks.pacs.killer import Killer, insist
from benchmarks.pacs.series import brain_series, send
from benchmarks.pacs.site import Site, until
from benchmarks.pacs.smokes import counted, through_archive

SERIES, SLICES = 200, 4


def measure(run: Run) -> Rows:
    """Send the series."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        row = through_archive(place, kill=True) if run.smoke else measured(place, SERIES, seed=0)
        yield {**row, "held": row["without_result"] == row["derived_twice"] == 0}


def measured(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Send series while everything is killed, and count what the PACS has in the end."""
    with Site.create(folder) as site:
        killer, since = Killer(site, random.Random(seed)), time.monotonic()
        killer.start()
        try:
            for number in range(count):
                paths = brain_series(folder / str(number), pydicom.uid.generate_uid(), number + 1, SLICES)
                uid = str(pydicom.dcmread(paths[0], stop_before_pixels=True).SeriesInstanceUID)
                insist(lambda paths=paths: set(send(site.pacs.port, paths, "PACS")) == {0})  # type: ignore[misc]
                insist(lambda uid=uid: routed(site, uid))  # type: ignore[misc]
            until(lambda: site.ended >= count, 1800, "the last series")
        finally:
            killer.stop.set()
            killer.join()
        until(lambda: site.ended >= count and not waiting(site), 600, "the last delivery")
        seconds = round(time.monotonic() - since)
        kills = dict(killer.counts)
        return {"series": count, "seed": seed, "seconds": seconds, "kills": kills, **result(site)}


def routed(site: Site, uid: str) -> bool:
    """Whether the PACS could send a series to the receiver."""
    answer = requests.post(f"{site.pacs.url}/tools/lookup", data=uid, timeout=60).json()
    ids = [each["ID"] for each in answer if each["Type"] == "Series"]
    sent = site.pacs.post("modalities/ddib/store", {"Resources": ids, "Synchronous": True})
    return bool(ids) and sent.get("FailedInstancesCount", 1) == 0


def waiting(site: Site) -> list[Path]:
    return [path for path in site.spool.glob("*/state.json") if '"done"' not in path.read_text()]


def result(site: Site) -> dict[str, Any]:
    """Return what the PACS and the node have in the end."""
    derived = site.pacs.derived()
    ours = {series["ID"] for series in derived}
    sources = [series for series in site.pacs.series() if series["ID"] not in ours]
    instances = [instance for series in sources for instance in series["Instances"]]
    known = [site.pacs.get(f"instances/{one}")["MainDicomTags"]["SOPInstanceUID"] for one in instances]
    tags = [site.pacs.get(f"instances/{i}/tags?simplify") for series in derived for i in series["Instances"]]
    handed = Counter(re.findall(r"series (\w+): handed on", site.receiver.text()))
    with site.pair.client() as client:
        jobs = len(client.list(1000))
    return {
        **counted(known, [tag["SourceImageSequence"][0]["ReferencedSOPInstanceUID"] for tag in tags]),
        "derived_series": len(derived),
        "jobs_of_the_node": jobs,
        "handed_on_again": sum(times - 1 for times in handed.values()),
        "failed_in_log": site.receiver.text().count("not translated"),
    }


if __name__ == "__main__":
    sys.exit(command(measure, "pacs/kills"))
