"""Whether text of a header is anywhere but in the spool, the PACS and the results.

    python -m benchmarks.pacs.canaries

Every text attribute of an MR series gets a word of its own, and its UIDs are looked for too. The series goes through
the receiver, both nodes and back, one is refused and one fails. Looked through are the logs, the nodes' folders (their
job store among them), the client's folder without the spool, /metrics of both nodes, what an OpenTelemetry collector
receives, and all bytes between client, source and target in clear. docs/benchmarks/pacs/canaries.json has how much was
looked through and what was found.
"""

from __future__ import annotations

import tempfile
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pydicom

from benchmarks.pacs.site import Orthanc, Site, brain_series, storescu, until, write
from ddib_fed.testing import free_port
from tests.e2e.harness import dial
from tests.formats.echoes import DICOM
from tests.security.tap.relay import Tap
from tests.security.tap.search import Secrets, Traffic, look

LENGTHS = {"PN": 60, "LO": 60, "SH": 16, "ST": 60, "LT": 60, "UT": 60, "CS": 16, "AE": 16, "UC": 60}
KEPT = {"Modality", "PhotometricInterpretation", "ImageType", "SpecificCharacterSet", "PatientPosition",
        "RescaleType"}  # fmt: skip
"""Attributes whose value says how to read the pixels."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write("canaries", measured(Path(folder)))


def measured(folder: Path) -> dict[str, Any]:
    collected: list[bytes] = []
    collector = collecting(collected)
    site = Site.create(folder)
    metrics = {}
    for node in site.pair.both:
        metrics[node.institution] = free_port()
        port = metrics[node.institution]
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        node.configure({"http.listen": f"127.0.0.1:{port}", "endpoint": endpoint})
    with site.pair.profile.open("a") as file:
        file.write(f'\n[telemetry]\nendpoint = "http://127.0.0.1:{collector.server_port}"\n')
    words = canaries(folder)
    site.pair.start()
    inner = Tap(site.pair.target.port, site.pair.target.config.paths.pki, site.pair.source.config.paths.pki)
    outer = Tap(site.pair.source.port, site.pair.source.config.paths.pki, site.pair.profile.parent / "pki")
    dial(site.pair, inner.port)
    site.pair.profile.write_text(
        site.pair.profile.read_text().replace(str(site.pair.source.port), str(outer.port))
    )
    pacs: Orthanc = site.pacs
    pacs.start()
    site.start_receiver()
    try:
        storescu(site.port, "DDIB", folder / "good", "--no-halt")
        until(
            lambda: "handed on" in site.receiver.text() and "not translated" in site.receiver.text(),
            120,
            "both",
        )
        shown = [
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read() for port in metrics.values()
        ]
        until(lambda: len(collected) >= 2, 60, "traces")
    finally:
        site.stop()
        outer.close()
        inner.close()
        collector.shutdown()
    kept = [path for path in folder.rglob("*") if path.is_file() and not of_the_person(path, folder)]
    logs = [site.receiver.log, *(node.log for node in site.pair.both)]
    places = {
        "logs of the receiver and both nodes": [path.read_bytes() for path in logs],
        "files of the nodes and the client": [path.read_bytes() for path in kept],
        "metrics": shown,
        "traces": collected,
    }  # fmt: skip
    secrets = Secrets()
    for word in words:
        secrets.word(word, word)
    wires = {"client to source": outer, "source to target": inner}
    looked = {place: {"pieces": len(found), "bytes": sum(map(len, found))} for place, found in places.items()}
    hits = {
        f"{word} in {place}"
        for place, found in places.items()
        for word in words
        if any(word.encode().lower() in each.lower() for each in found)
    }
    for name, tap in wires.items():
        size = sum(len(call.asked.data) + len(call.answered.data) for call in tap.calls)
        looked[name] = {"pieces": len(tap.calls), "bytes": size}
        hits |= {f"{hit} in {name}" for hit in look(Traffic(tap.calls).places, secrets)}
    held = [path.read_bytes() for path in site.spool.rglob("in/*.dcm")]
    in_spool = sum(any(word.encode() in each for each in held) for word in words)
    return {"canaries": len(words), "in_the_spool": in_spool, "looked_through": looked, "found": sorted(hits)}


def of_the_person(path: Path, folder: Path) -> bool:
    """Whether a file is one that holds the person's data: of the sender, the PACS, the spool."""
    return path.relative_to(folder).parts[0] in {"good", "pacs"} or "dicom-spool" in path.parts


def canaries(folder: Path) -> list[str]:
    """A series that is translated, one that is refused, and one that fails, all of whose texts are canaries."""
    words: list[str] = []
    good = brain_series(folder / "good" / "mr", pydicom.uid.generate_uid(), 7, 4)
    flat = brain_series(folder / "good" / "flat", pydicom.uid.generate_uid(), 8, 2)
    (folder / "good" / "palette.dcm").write_bytes((DICOM / "examples_palette.dcm").read_bytes())
    for path in (*good, *flat, folder / "good" / "palette.dcm"):
        dataset = pydicom.dcmread(path)
        for element in list(dataset):
            if (
                element.VR in LENGTHS
                and element.keyword not in KEPT
                and not element.tag.is_private
                and element.value
            ):
                word = f"CANARY{len(words):04}ADA"
                dataset[element.tag].value = word[: LENGTHS[element.VR]]
                words.append(word)
        if path in flat:
            dataset.PixelData = bytes(len(dataset.PixelData))
        dataset.save_as(path)
        words += [
            str(dataset[name].value) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        ]
    return sorted(set(words))


def collecting(bodies: list[bytes]) -> ThreadingHTTPServer:
    """An OpenTelemetry collector as far as it receives."""

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    main()
