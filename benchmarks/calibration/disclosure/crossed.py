"""What crosses while two nodes agree on a calibration: every decrypted byte, kept by a relay between them.

    python -m benchmarks.calibration.disclosure.crossed [--pair satellite-relief] [--kinds rotation colour-map]

Two nodes with the shipped models, over mutual TLS, in this process. The target publishes once (`ddib calibrate
publish`), the source calibrates (`ddib calibrate --peer`). Nothing of any picture of either side, as float32 in its own
or the model's units and as bytes of pixels, may be among the bytes. JSON below docs/benchmarks/calibration/crossed; the
table is in docs/calibration.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibration.directed import OUT, ROOT
from benchmarks.pages import between, markdown
from ddib_fed.datasets.shipped import load_shipped
from ddib_fed.errors import DdibError
from ddib_fed.files import copy_folder, write_file, write_json
from ddib_fed.models.shipped import pretrained
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.reports.sheets import to_pixels
from ddib_fed.trust import pki
from ddib_fed.trust.calibrations.signing import signature_to_pb
from tests.cli.calibrate.operators import Operators, printed, run
from tests.e2e.two_nodes import TwoNodes
from tests.trust.tap.relay import Tap

FOLDER = OUT / "crossed"
SHIPPED = ROOT / "ddib_fed" / "models" / "pretrained"
PAGE = OUT.parents[1] / "calibration.md"
WINDOW = 24
"""Bytes in a row that no accident has twice."""
CHECKED = 400
"""Pictures of a side, evenly spaced, that are looked for; all rows of each."""


def main() -> int:
    """Measure, and write JSON and page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pair", default="satellite-relief", metavar="SOURCE-TARGET")
    parser.add_argument("--kinds", nargs="+", default=["rotation", "colour-map"])
    given = parser.parse_args()
    source, target = given.pair.split("-")
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), source, target, given.kinds)
    FOLDER.mkdir(parents=True, exist_ok=True)
    write_json(FOLDER / f"{given.pair}.json", found)
    text = between(
        PAGE.read_text(encoding="utf-8"),
        "crossed",
        "benchmarks/calibration/disclosure/crossed.py",
        table(given.pair, found),
    )
    write_file(PAGE, text.encode())
    return 0


def measure(folder: Path, source: str, target: str, kinds: list[str]) -> dict[str, Any]:
    """Bytes by what they are, of each kind of calibration, and whether anything of a picture was among them."""
    listed = ", ".join(f'"{kind}"' for kind in kinds)
    bundles = [pretrained(name) for name in (source, target)]
    nodes = TwoNodes(folder, *bundles, calibration=f"[{listed}]")
    try:
        for at, name in (("north", source), ("south", target)):
            copy_folder(SHIPPED / name, folder / at / "model")
        both = Operators(nodes, folder)
        run("publish", "--pictures", target, "--yes", "--config", both.south)
        return {kind: _one(both, kind, source, target) for kind in kinds}
    finally:
        nodes.close()


def _one(both: Operators, kind: str, source: str, target: str) -> dict[str, Any]:
    north, south = both.nodes.source.north, both.nodes.target.south
    tap = Tap(both.nodes.target.server.port, south.pki, north.pki)
    north.store.add(
        south.peer(f"localhost:{tap.port}"), fingerprints=[pki.fingerprint(south.root)], replace=True
    )
    arguments = ("--peer", f"south.example/{target}", "--kind", kind, "--pictures", source, "--yes")
    try:
        said = printed(*arguments, "--config", both.north, "--format", "json")
        shown = json.loads(said)
        # To fetch the signature the proposal crosses once more.
        crossed = {name: size * (1 + name.endswith(" sent")) for name, size in shown["crossed"].items()}
        stored = both.stored("north").find(bytes.fromhex(both.agree()))
        assert stored is not None
        assert stored.signed.target is not None
        crossed["signature and certificate received"] = signature_to_pb(stored.signed.target).ByteSize()
        outcome = stored.state(datetime.now(UTC))
    except DdibError as error:
        outcome, crossed = error.reason, {}
    tap.close()
    sent, received = bytes(tap.to_target), bytes(tap.to_source)
    ways = (("sent", sent), ("received", received))
    framing = {
        way: len(data) - sum(size for name, size in crossed.items() if name.endswith(way))
        for way, data in ways
    }
    looked, seen = _look_for_pictures(sent + received, source, target)
    return {
        "outcome": outcome,
        "crossed": crossed,
        "total": {way: len(data) for way, data in ways},
        "framing": framing,
        "windows_looked_for": looked,
        "windows_found": seen,
    }


def _look_for_pictures(data: bytes, *names: str) -> tuple[int, int]:
    """How many runs of bytes of pictures were looked for, and how many were found."""
    grams = {data[i : i + WINDOW] for i in range(len(data) - WINDOW + 1)}
    looked = seen = 0
    for name in names:
        units = pretrained(name).manifest.normalisation
        for window in _windows(load_shipped(name).train, units):
            looked += 1
            seen += window in grams
    return looked, seen


def _windows(pictures: np.ndarray, units: Normalisation) -> Iterator[bytes]:
    """Runs from each row of each channel of the pictures, in three forms; runs of one value are left out."""
    rows = np.linspace(0, len(pictures) - 1, CHECKED).astype(int)
    chosen = pictures[rows].astype("<f4")
    pixels = np.stack(list(to_pixels(chosen)))
    for form in (chosen, units.apply(chosen).astype("<f4"), pixels):
        for line in form.reshape(-1, form.shape[-1] if form.dtype.kind == "f" else form[0, 0].size):
            window = line.tobytes()[:WINDOW]
            if len(set(window)) > WINDOW // 4:
                yield window


def table(pair: str, found: dict[str, Any]) -> str:
    """What crossed, a row for each thing."""
    kinds = tuple(found)
    things = dict.fromkeys(name for each in found.values() for name in each["crossed"])
    rows: list[tuple[Any, ...]] = [
        (thing, *(found[kind]["crossed"].get(thing) for kind in kinds)) for thing in things
    ]
    rows += [
        (f"framing {way} (HTTP/2, names of methods)", *(found[kind]["framing"][way] for kind in kinds))
        for way in ("sent", "received")
    ]
    rows.append(("outcome", *(found[kind]["outcome"] for kind in kinds)))
    looked = max(each["windows_looked_for"] for each in found.values())
    seen = max(each["windows_found"] for each in found.values())
    return (
        f"{pair}, bytes that a relay between two nodes kept, decrypted; of {looked:,} runs of {WINDOW} bytes from the "
        f"pictures of both sides it saw {seen}:\n\n" + markdown(("what", *kinds), tuple(rows))
    )


if __name__ == "__main__":
    sys.exit(main())
