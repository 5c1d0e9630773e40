"""Series in a row through a real Orthanc, two nodes and the receiver, all of which are killed at random.

    python -m benchmarks.pacs.kills [--series 200] [--seed 0]

Each series is sent to the PACS and routed by it until it says that this succeeded, as a sender does. Meanwhile the
receiver, a node or the PACS gets SIGKILL every few seconds and is started again. docs/benchmarks/pacs/kills.json has
what the PACS holds in the end: derived series and instances, those of which there are several, and sources without one;
the jobs that the node had, the deliveries of the receiver, and the kills.
"""

from __future__ import annotations

import random
import re
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pydicom
import requests

from benchmarks import options
from benchmarks.pacs.site import Site, brain_series, storescu, until, write
from ddib_fed.errors import DdibError

SLICES = 4


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--series", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write("kills", measured(Path(folder), given.series, given.seed))


def measured(folder: Path, count: int, seed: int) -> dict[str, Any]:
    site = Site.create(folder)
    site.start()
    killer = Killer(site, random.Random(seed))
    since = time.monotonic()
    try:
        killer.start()
        for number in range(count):
            source = folder / f"series-{number}"
            first, *_ = brain_series(source, pydicom.uid.generate_uid(), number + 1, SLICES)
            insist(lambda source=source: not storescu(site.pacs.port, "PACS", source).returncode)
            uid = str(pydicom.dcmread(first, stop_before_pixels=True).SeriesInstanceUID)
            insist(lambda uid=uid: routed(site, uid))
        until(lambda: ended(site) >= count, 1800, "the last series")
    finally:
        killer.stop.set()
        killer.join()
        print(site.receiver.text()[-6000:])
    try:
        until(lambda: ended(site) >= count and not waiting(site), 600, "the last delivery")
        return {"series": count, "seed": seed, "seconds": round(time.monotonic() - since), "kills": dict(killer.counts),
                **held(site)}  # fmt: skip
    finally:
        site.stop()


class Killer(threading.Thread):
    def __init__(self, site: Site, draw: random.Random) -> None:
        super().__init__()
        self.site, self.draw, self.stop = site, draw, threading.Event()
        self.counts: Counter[str] = Counter()

    def run(self) -> None:
        while not self.stop.wait(self.draw.uniform(2.0, 6.0)):
            which = self.draw.choice(["receiver", "source node", "target node", "PACS"])
            self.counts[which] += 1
            pause = self.draw.uniform(0.2, 2.0)
            if which == "receiver":
                self.site.receiver.kill()
                time.sleep(pause)
                self.site.start_receiver()
            elif which == "PACS":
                self.site.pacs.process.kill()
                time.sleep(pause)
                self.site.pacs.start()
            else:
                node = self.site.pair.source if which == "source node" else self.site.pair.target
                node.kill()
                time.sleep(pause)
                node.start()


def insist(attempt: Any) -> None:
    """Try until it works."""
    for _ in range(600):
        try:
            if attempt():
                return
        except requests.RequestException:
            pass
        time.sleep(0.5)
    raise AssertionError("a sender gave up")


def routed(site: Site, uid: str) -> bool:
    found = site.pacs.post("tools/lookup", uid)
    ids = [each["ID"] for each in found if each["Type"] == "Series"] if isinstance(found, list) else []
    if not ids:
        found = requests.post(f"{site.pacs.url}/tools/lookup", data=uid, timeout=60).json()
        ids = [each["ID"] for each in found if each["Type"] == "Series"]
    answer = site.pacs.post("modalities/ddib/store", {"Resources": ids, "Synchronous": True})
    return bool(ids) and answer.get("FailedInstancesCount", 1) == 0


def ended(site: Site) -> int:
    return len(set(re.findall(r"series (\w+): handed on", site.receiver.text())))


def waiting(site: Site) -> list[Path]:
    states = site.spool.glob("*/state.json")
    return [path for path in states if '"done"' not in path.read_text()]


def held(site: Site) -> dict[str, Any]:
    """What the PACS and the node have in the end."""
    derived, sources = site.pacs.derived(), site.pacs.series()
    origins: Counter[str] = Counter()
    for each in derived:
        for instance in each["Instances"]:
            tags = site.pacs.get(f"instances/{instance}/tags?simplify")
            origins[tags["SourceImageSequence"][0]["ReferencedSOPInstanceUID"]] += 1
    known = set()
    for each in sources:
        if each["MainDicomTags"].get("Manufacturer") != "ddib-fed":
            known |= {
                site.pacs.get(f"instances/{i}")["MainDicomTags"]["SOPInstanceUID"] for i in each["Instances"]
            }
    handed = Counter(re.findall(r"series (\w+): handed on", site.receiver.text()))
    try:
        jobs = len(site.pair.client().list(1000))
    except DdibError:
        jobs = -1
    return {
        "source_instances": len(known),
        "derived_series": len(derived),
        "derived_instances": sum(origins.values()),
        "derived_twice": sum(times > 1 for times in origins.values()),
        "without_result": len(known - origins.keys()),
        "jobs_of_the_node": jobs,
        "handed_on_again": sum(times - 1 for times in handed.values()),
        "failed_in_log": len(re.findall("not translated", site.receiver.text())),
    }


if __name__ == "__main__":
    main()
