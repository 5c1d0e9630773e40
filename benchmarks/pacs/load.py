"""The receiver under what a hospital does to it: memory, time, and whether each instance comes back once.

    python -m benchmarks.pacs.load      20 minutes of two cores, 6 GiB of memory; root, because `full` mounts a disk

burst          100 series of 100 instances, by five senders at once
slow           instances that are further apart than the receiver's silence, and some that take long to arrive
broken         a connection that breaks within an instance, also without a word; all is sent again
large, huge    enhanced MR of 1,024 frames of 512 x 512, and of 4,096, which is refused; then an ordinary series
duplicates     a series, three times at once
interleaved    two studies whose instances alternate on one association
full           a disk with little room, then with none, then with room; what was refused is sent again

Each has a receiver of its own, whose results go to a folder; in the smoke all but `huge` share one, a few slices each.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pydicom

from benchmarks.command import Rows, Run, command
from benchmarks.pacs.cases import CASES
from benchmarks.pacs.site import Site, memory, until
from benchmarks.pacs.wires import small_disk

LIMIT_S = 3600.0


def measure(run: Run) -> Rows:
    """Measure each case; its function sends, and returns how many instances are to come back, and its figures."""
    chosen = [[name for name in CASES if name != "huge"]] if run.smoke else [[name] for name in CASES]
    for names in chosen:
        with tempfile.TemporaryDirectory() as place:
            folder, lines = Path(place), run.pick(smoke="quiet_s = 1.0", long="most_gib = 8.0")
            full = names == ["full"]
            lines += f'\nspool = "{folder / "disk" / "spool"}"' * full
            with (
                small_disk(folder / "disk", 96) if full else nullcontext(),
                Site.create(folder, "--out", str(folder / "out"), archive=True, dicom=lines) as site,
            ):
                began = time.monotonic()
                parts = [CASES[name](site, folder / name, run) for name in names]
                sent = {"case": ", ".join(names), "seconds_to_send": round(time.monotonic() - began, 1)}
                yield {**sent, **parts[0][1], **received(site, sum(count for count, _ in parts))}


def received(site: Site, count: int) -> dict[str, Any]:
    """Wait until so many instances are back, and return what the folder and the receiver then have."""
    out, text = site.folder / "out", site.receiver.text
    seconds = until(lambda: len([*out.rglob("*.dcm")]) >= count, LIMIT_S, "the last result")
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in out.rglob("*.dcm")]
    sources = [str(each.SourceImageSequence[0].ReferencedSOPInstanceUID) for each in headers]
    refusals = re.findall(r"(?:WARNING|ERROR) .*?: (.* refused: .*)", text())
    return {
        "then_seconds": round(seconds, 1),
        "derived_series": len({str(each.SeriesInstanceUID) for each in headers}),
        "derived_instances": len(headers),
        "doubled": len(sources) - len(set(sources)),
        "handed_on": text().count("handed on"),
        "receiver_mib": round(memory(site.receiver.pid)["most"]),
        "refused": sorted(set(refusals))[:2],
        "held": len(headers) == len(set(sources)) == count,
    }


if __name__ == "__main__":
    sys.exit(command(measure, "pacs/load"))
