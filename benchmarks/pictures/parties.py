"""Held-out pictures of 256 pixels and volumes of 32^3 between two nodes, there and back.

    python -m benchmarks.pictures.parties      12 minutes of two cores

The round trip, the source's autoencoder alone and their difference, in dB; how many items were translated; and of each
node's process the largest resident memory in MiB, when it began to serve and after all. Two rows are of one larger item
each, 512 x 512 and 64^3, under one ODE. The last is of a head that no model has seen, which nibabel carries for its
tests: a T1 of 33 x 41 x 25 voxels. Its middle slices and its translation's are in docs/images/pictures/unseen-head.png.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np

from benchmarks import command
from benchmarks.command import Rows, Run
from benchmarks.pictures.items import show, write
from benchmarks.pictures.judged import mean
from ddib_fed import Record
from ddib_fed.testing import NodeProcess, TwoNodes, ddib

SHEET = command.ROOT / "docs" / "images" / "pictures" / "unseen-head.png"
INSTITUTIONS = ("east.example", "west.example")
UNSEEN = Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii"
PICTURES, VOLUMES = ("satellite-256", "relief-256"), ("brain-t1-volume", "brain-t2-volume")


class Case(NamedTuple):
    models: tuple[str, str]
    number: int
    scene: tuple[int, ...] = ()
    file: Path | None = None


CASES = (
    Case(PICTURES, 100),
    Case(VOLUMES, 24),
    Case(PICTURES, 1, (512, 512)),
    Case(VOLUMES, 1, (64, 64, 64)),
    Case(VOLUMES, 1, (32, 48, 48), UNSEEN),
)


def measure(run: Run) -> Rows:
    """Measure each case between two nodes of its own."""
    for case in run.pick(smoke=[Case(("satellite", "relief"), 2)], long=[*CASES]):
        with tempfile.TemporaryDirectory() as folder:
            yield measured(case, Path(folder), *run.pick(smoke=["--quality", "draft"], long=[]))


def measured(case: Case, folder: Path, *words: str) -> dict[str, Any]:
    """Translate the items of a case."""
    drawn = write(case.models[0], folder / "in", case.number, case.scene, case.file)
    settings = {"scene": "x".join(map(str, case.scene))} if case.scene else {}
    with TwoNodes.create(folder, *case.models, institutions=INSTITUTIONS, settings=settings) as nodes:
        serving, began = {node.role: peak(node) for node in nodes.both}, time.monotonic()
        words = ("--cycle", "--out", str(folder / "out"), "--profile", str(nodes.profile), *words)
        ddib("translate", folder / "in", "--to", nodes.to, *words)
        seconds, used = time.monotonic() - began, {node.role: peak(node) for node in nodes.both}
    records = [record for path in sorted((folder / "out").glob("*.json")) if (record := Record.read(path))]
    figures = [record.picture for record in records if record.picture]
    if case.file is not None:
        show(SHEET, {"unseen": case.file, case.models[1]: folder / "out" / case.file.name})
    dB = {
        name: np.array([getattr(one, key) for one in figures], float)
        for name, key in (("round_trip", "cycle_psnr"), ("autoencoder", "autoencoder_psnr"))
    }
    dB["below_autoencoder"] = dB["autoencoder"] - dB["round_trip"]
    return {
        "case": " ".join([case.models[0], *settings.values(), *([case.file.name] if case.file else [])]),
        "target": case.models[1],
        "sent": len(list((folder / "in").iterdir())),
        "translated": len(records),
        **{name: mean(drawn, values) for name, values in dB.items() if np.isfinite(values).all()},
        "doubtful": sum(bool(record.doubtful) for record in records),
        "seconds": round(seconds, 1),
        "serving_mib": serving,
        "peak_mib": used,
    }


def peak(node: NodeProcess) -> int:
    """Return the MiB of a node's process that were resident at most."""
    assert node.process is not None
    status = Path(f"/proc/{node.process.pid}/status").read_text(encoding="ascii")
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0]) // 1024


if __name__ == "__main__":
    sys.exit(command.command(measure, "pictures/parties"))
