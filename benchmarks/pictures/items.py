"""Pictures and volumes as files, and the slices of a volume on a sheet."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
from PIL import Image

from benchmarks.pictures.sheet import save_sheet
from ddib_fed import datasets, metrics


def write(
    domain: str, folder: Path, number: int, scene: Sequence[int] = (), file: Path | None = None
) -> metrics.Resamples:
    """Write test items of a domain, evenly spaced, or a copy of one file; return the draws of their clusters.

    With a `scene`, the size of a larger one, an item is continued by its mirror image.
    """
    folder.mkdir()
    if file is not None:
        shutil.copy(file, folder)
        return metrics.resample(1)
    (test,) = datasets.shipped_bytes(domain, ["test"])
    rows = np.linspace(0, len(test) - 1, number).round().astype(int)
    for row in rows:
        item = test[row][0] if test.ndim == 5 else test[row].transpose(1, 2, 0)
        wide = [(0, side - now) for side, now in zip(scene, item.shape, strict=False)] or [(0, 0)] * 3
        item = np.pad(item, [*wide, (0, 0)][: item.ndim], mode="symmetric")
        if test.ndim == 5:
            np.save(folder / f"{row:03}.npy", item)
        else:
            Image.fromarray(item).save(folder / f"{row:03}.png")
    # Blocks overlap one another all: they are one cluster.
    clusters = np.zeros(len(test)) if test.ndim == 5 else datasets.clusters_of(domain)
    return metrics.resample(len(rows), clusters[rows])


def show(sheet: Path, files: dict[str, Path]) -> None:
    """Draw the middle slices of NIfTI volumes, each between its 0.5th and 99.5th percentile."""
    rows = {}
    for name, file in files.items():
        volume = nibabel.as_closest_canonical(nibabel.load(file)).get_fdata().T[:, ::-1]
        low, high = np.percentile(volume, (0.5, 99.5))
        largest = max(volume.shape)
        middle = [np.take(volume, side // 2, axis) for axis, side in enumerate(volume.shape)]
        middle = [np.pad(each, [(0, largest - side) for side in each.shape]) for each in middle]
        slices = np.clip((np.stack(middle)[:, None] - low) / (high - low) * 2 - 1, -1, 1)
        rows[name] = slices.astype(np.float32).repeat(4, 2).repeat(4, 3)
    save_sheet(sheet, rows)
