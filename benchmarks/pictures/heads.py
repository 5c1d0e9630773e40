"""How a model of one head takes another one: round trips of heads that were not in training, and of a phantom.

    python -m benchmarks.pictures.heads --models shipped=brain-t1 augmented=FOLDER [--slice t1_coronal_slice.npy]

Writes docs/benchmarks/pictures/heads.json. `--slice` is one real coronal slice, as dipy 1.12.1 carries it
(dipy/data/files), at six sizes and three contrasts (v^0.6, v, v^1.5). The phantom is Shepp and Logan's. 48 evaluations
a leg, to brain-t2 and back, as a node does it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import options
from benchmarks.calibration.directed import OUT
from ddib_fed import Request, datasets
from ddib_fed.client.in_process import InProcess
from ddib_fed.data.pictures import encode_png
from ddib_fed.engine.local_party import open_party
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.files import write_json
from ddib_fed.models.bundle import open_bundle
from ddib_fed.record import DOUBTFUL_BELOW, Settings

SIDE, LARGEST = 48, 42


def framed(picture: np.ndarray, largest: float = LARGEST) -> np.ndarray:
    """What of a picture is bright, its larger side so long, in the middle of the model's size."""
    from scipy import ndimage

    rows, columns = np.where(picture > 0.05 * picture.max())
    cut = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    small = ndimage.zoom(cut, largest / max(cut.shape), order=1)[:SIDE, :SIDE]
    top, left = (SIDE - small.shape[0]) // 2, (SIDE - small.shape[1]) // 2
    edges = ((top, SIDE - top - small.shape[0]), (left, SIDE - left - small.shape[1]))
    return np.pad(small, edges).clip(0.0, 1.0)


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=MODEL")
    parser.add_argument("--slice", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    from skimage.data import shepp_logan_phantom

    sets = {
        "test slices of the head in training": (datasets.load_shipped("brain-t1").test[::2, 0] + 1) / 2,
        "phantom": framed(shepp_logan_phantom())[None],
    }
    if given.slice is not None:
        real = np.load(given.slice).squeeze()
        sizes, contrasts = range(36, 48, 2), (0.6, 1.0, 1.5)
        sets["a real head"] = np.stack([framed(real, each) ** power for each in sizes for power in contrasts])
    rows = [
        {"model": name, "set": kind, **round_trips(model, pictures)}
        for name, model in (each.split("=") for each in given.models)
        for kind, pictures in sets.items()
    ]
    write_json(OUT.parent / "pictures" / "heads.json", rows)
    return 0


def round_trips(model: str, pictures: np.ndarray) -> dict[str, Any]:
    client = InProcess(open_party(open_bundle(model)), open_party(open_bundle("brain-t2")))
    files = [encode_png(each) for each in to_pixels((pictures[:, None] * 2 - 1).astype(np.float32))]
    job = client.submit(files, client.target, Request(Settings(), cycle=True))
    found = [each.record.picture for each in client.results(job.job_id)]
    cycles = [each.cycle_psnr for each in found if each is not None and each.cycle_psnr is not None]
    row = {
        "pictures": len(pictures),
        "refused": len(pictures) - len(found),
        "median": float(np.median(cycles)),
        "least": min(cycles),
        "marked_by_round_trip": sum(each < DOUBTFUL_BELOW for each in cycles),
        "marked_by_structure": sum(bool(each and each.structure_doubtful) for each in found),
    }
    print(model, row, flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
