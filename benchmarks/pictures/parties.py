"""Held-out pictures of 256 pixels and volumes of 32^3 between two nodes, there and back.

    python -m benchmarks.pictures.parties [--pictures 100]

Writes docs/benchmarks/pictures/parties.json: the medians of the round trip, of the source's autoencoder alone and of
their differences, in dB; how many items the gate let pass; and of each node's process the largest resident memory in
MiB, when it began to serve and after all. Two rows are of one larger item each, 512 x 512 and 64^3, under one ODE. The
last is of a head that no model has seen: a T1 of 33 x 41 x 25 voxels that nibabel carries for its tests. Its middle
slices and those of its translation go to docs/images/pictures/unseen-head.png.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from numpy.typing import NDArray

from benchmarks import options
from benchmarks.pictures.large import OUT, SHEET
from ddib_fed.data.pictures import encode_png
from ddib_fed.datasets import shipped_bytes
from ddib_fed.evaluation.sheets import as_pictures, save_sheet
from ddib_fed.evaluation.translations import find_pictures
from ddib_fed.files import write_json
from ddib_fed.testing import NodeProcess, TwoNodes, ddib

FILE = OUT.parent / "parties.json"
HEAD = SHEET.parent / "unseen-head.png"
INSTITUTIONS = "east.example", "west.example"


class Case(NamedTuple):
    models: tuple[str, str]
    scene: tuple[int, ...] = ()
    file: Path | None = None

    @property
    def name(self) -> str:
        if self.file is not None:
            return f"{self.models[0]} {self.file.name}"
        return self.models[0] + ("" if not self.scene else " " + "x".join(map(str, self.scene)))


PICTURES, VOLUMES = ("satellite-256", "relief-256"), ("brain-t1-volume", "brain-t2-volume")
UNSEEN = Path(nibabel.__file__).parent / "tests" / "data" / "anatomical.nii"
CASES = (
    Case(PICTURES),
    Case(VOLUMES),
    Case(PICTURES, (512, 512)),
    Case(VOLUMES, (64, 64, 64)),
    Case(VOLUMES, (32, 48, 48), UNSEEN),
)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--pictures", type=int, default=100)
    count = parser.parse_args().pictures
    rows = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(case, Path(folder), 1 if case.scene else count))
            print(rows[-1], flush=True)
            write_json(FILE, {"rows": rows})


def measured(case: Case, folder: Path, count: int) -> dict[str, Any]:
    given = folder / "in"
    given.mkdir()
    if case.file is not None:
        shutil.copy(case.file, given)
    for number, numbers in enumerate(items(case, count) if case.file is None else []):
        if numbers.ndim == 3 and numbers.shape[-1] == 3:
            (given / f"{number:03}.png").write_bytes(encode_png(numbers))
        else:
            np.save(given / f"{number:03}.npy", numbers)
    settings = {"scene": "x".join(map(str, case.scene))} if case.scene else {}
    with TwoNodes.create(folder, *case.models, institutions=INSTITUTIONS, settings=settings) as nodes:
        serving = {node.role: peak(node) for node in nodes.both}
        began = time.monotonic()
        ddib(
            "translate",
            given,
            "--to",
            nodes.to,
            "--out",
            folder / "out",
            "--cycle",
            "--profile",
            nodes.profile,
        )
        seconds = time.monotonic() - began
        used = {node.role: peak(node) for node in nodes.both}
    found = find_pictures(folder / "out")
    records = [each.record for each in found]
    if case.file is not None:
        show(case, case.file, found[0].translated)
    pictures = [record.picture for record in records]
    trips = [picture.cycle_psnr for picture in pictures if picture and picture.cycle_psnr is not None]
    kept = [
        picture.autoencoder_psnr for picture in pictures if picture and picture.autoencoder_psnr is not None
    ]
    below = [alone - trip for alone, trip in zip(kept, trips, strict=True)] if kept else []
    return {
        "case": case.name,
        "target": case.models[1],
        "sent": len(list(given.iterdir())),
        "translated": len(records),
        "round_trip": float(np.median(trips)),
        "autoencoder": float(np.median(kept)) if kept else None,
        "below_autoencoder": float(np.median(below)) if kept else None,
        "doubtful": sum(bool(record.doubtful) for record in records),
        "seconds": round(seconds, 1),
        "serving_mib": serving,
        "peak_mib": used,
    }


def show(case: Case, *files: Path) -> None:
    """The middle slices of NIfTI volumes, each between its 0.5th and 99.5th percentile."""
    stages = {}
    for name, file in zip(("unseen", case.models[1]), files, strict=True):
        volume = nibabel.as_closest_canonical(nibabel.load(file)).get_fdata().T[None, None, :, ::-1]
        low, high = np.percentile(volume, (0.5, 99.5))
        slices = as_pictures(np.clip((volume - low) / (high - low) * 2 - 1, -1, 1))
        stages[name] = slices.repeat(4, 2).repeat(4, 3)
    save_sheet(HEAD, stages)


def items(case: Case, count: int) -> list[NDArray[np.uint8]]:
    """Test pictures (H, W, 3), or volumes (D, H, W), evenly spaced; a larger one is of neighbours, mirrored."""
    (test,) = shipped_bytes(case.models[0], ["test"])
    chosen = test[np.unique(np.linspace(0, len(test) - 1, count).round().astype(int))]
    found = [each[0] if each.ndim == 4 else each.transpose(1, 2, 0) for each in chosen]
    wide = [(0, side - old) for side, old in zip(case.scene, found[0].shape, strict=False)]
    return [np.pad(each, [*wide, (0, 0)][: each.ndim], mode="symmetric") for each in found] if wide else found


def peak(node: NodeProcess) -> int:
    """MiB of a node's process that were resident at most."""
    status = Path(f"/proc/{node.process.pid}/status").read_text(encoding="ascii")
    line = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert line is not None
    return int(line[1]) // 1024


if __name__ == "__main__":
    main()
