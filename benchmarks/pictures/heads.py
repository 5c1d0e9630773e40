"""How a model of one head takes another one: round trips of heads that were not in training, and of a phantom.

    python -m benchmarks.pictures.heads      25 minutes of one core; needs `pip install dipy==1.12.1`

Two models of the shipped head's T1: the one that ships, and one that is trained here in the same way with
`augment=scan`; it is kept below build/heads. A real head is one coronal slice that dipy carries, at six sizes and three
contrasts (v^0.6, v, v^1.5). The phantom is Shepp and Logan's. 48 evaluations a leg, to brain-t2 and back. Intervals are
over clusters of slices; the 18 pictures of the real slice are one cluster.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data

import ddib_fed
from benchmarks import command
from benchmarks.calibration.directed import from_bytes
from benchmarks.command import Rows, Run
from benchmarks.pictures.judged import mean
from ddib_fed import Model, Request, Settings, TrainConfig, datasets, metrics
from ddib_fed.errors import JobFailed
from ddib_fed.metrics import Pictures

SIDE, LARGEST, DOUBTFUL_BELOW = 48, 42, 30.0
SIZES, POWERS = range(36, 48, 2), (0.6, 1.0, 1.5)
SLICE = "t1_coronal_slice.npy"
SCANS = {
    "domain": "brain-t1",
    "name": "brain-t1",
    "preset": "tiny-32",
    "augment": "scan",
    "soften_sigma": 0.1,
}
STEPS = {"steps": 2_500, "batch": 16, "microbatch": 16, "learning_rate": 1e-3, "checkpoint_every": 500}
OUT = command.ROOT / "build" / "heads"


def measure(run: Run) -> Rows:
    """Measure each model on each set of pictures."""
    target, models = Model.open("brain-t2", threads=1), {"shipped": Model.open("brain-t1", threads=1)}
    slices = (from_bytes(datasets.shipped_bytes("brain-t1", ["test"])[0]) + 1) / 2
    chosen = slice(0, run.pick(smoke=4, long=None), 2)
    clusters = datasets.clusters_of("brain-t1")
    sets: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        "test slices of the head in training": (slices[chosen, 0], clusters[chosen])
    }
    sets["phantom"] = framed(data.shepp_logan_phantom())[None], np.zeros(1)  # type: ignore[no-untyped-call]
    if not run.smoke:
        real = np.load(datasets.package_folder("dipy", "dipy") / "data" / "files" / SLICE).squeeze()
        pictures = np.stack([framed(real, size) ** power for size in SIZES for power in POWERS])
        sets["a real head"] = pictures, np.zeros(len(pictures))
        models["augmented"] = ddib_fed.train(TrainConfig.model_validate({**SCANS, **STEPS}), OUT, resume=True)
    request = Request(Settings(evaluations=run.pick(smoke=12, long=48)), cycle=True)
    for name, model in models.items():
        for kind, (shown, groups) in sets.items():
            row = round_trips(model, target, shown, groups, request)
            yield {"model": name, "set": kind, "pictures": len(shown), **row}


def round_trips(
    model: Model, target: Model, pictures: NDArray[Any], clusters: NDArray[Any], request: Request
) -> dict[str, Any]:
    """Return round trips in dB, and how many pictures are marked or refused, as a node would."""
    files, results = [np.rint(picture * 255).astype(np.uint8) for picture in pictures], []
    with suppress(JobFailed):  # raised after the results, where some are refused
        for result in ddib_fed.translate(files, model, target, request):
            results.append(result)  # noqa: PERF402 - those before the error count
    if not results:
        return {"refused": len(pictures)}
    figures = [result.record.picture for result in results]
    cycles = np.array([one.cycle_psnr for one in figures if one is not None], float)
    return {
        "refused": len(pictures) - len(results),
        "median": float(np.median(cycles)),
        "mean": mean(metrics.resample(len(cycles), clusters[[result.item for result in results]]), cycles),
        "least": float(cycles.min()),
        "marked_by_round_trip": int((cycles < DOUBTFUL_BELOW).sum()),
        "marked_by_structure": sum(bool(one and one.structure_doubtful) for one in figures),
    }


def framed(picture: NDArray[Any], largest: float = LARGEST) -> Pictures:
    """Return what of a picture is bright, its larger side so long, in the middle of the model's size; in [0, 1]."""
    rows, columns = np.where(picture > 0.05 * picture.max())
    cut = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    small = ndimage.zoom(cut, largest / max(cut.shape), order=1)[:SIDE, :SIDE]
    top, left = (SIDE - small.shape[0]) // 2, (SIDE - small.shape[1]) // 2
    edges = ((top, SIDE - top - small.shape[0]), (left, SIDE - left - small.shape[1]))
    return np.asarray(np.pad(small, edges).clip(0.0, 1.0), np.float32)


if __name__ == "__main__":
    sys.exit(command.command(measure, "pictures/heads"))
