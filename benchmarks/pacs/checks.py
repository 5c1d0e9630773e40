"""What other programs say of DICOM files: `dciodvfy` of dicom3tools, and dcm2niix."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel
import pydicom


def write(files: list[bytes], folder: Path) -> list[Path]:
    """Write files into a folder."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.dcm" for number in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    return paths


def errors_of(path: Path) -> set[str]:
    """Return what `dciodvfy` calls errors."""
    result = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    return {line for line in result.stderr.splitlines() if line.startswith("Error")}


def geometry(paths: list[Path]) -> tuple[tuple[int, ...], Any]:
    """Return the shape and the affine that dcm2niix gives a series."""
    folder = paths[0].parent
    out = folder.with_name(f"{folder.name}-nii")
    out.mkdir(exist_ok=True)
    subprocess.run(["dcm2niix", "-o", str(out), "-f", "x", str(folder)], capture_output=True, check=True)
    image = nibabel.as_closest_canonical(nibabel.load(next(out.glob("x*.nii"))))
    return image.shape, image.affine


def places(files: Iterable[Path]) -> list[tuple[float, ...]]:
    """Return where each instance lies in space: its place, its directions and its spacing."""
    headers = [pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in files]
    names = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")
    return sorted(tuple(float(value) for name in names for value in each[name].value) for each in headers)


def is_near(one: list[tuple[float, ...]], other: list[tuple[float, ...]]) -> bool:
    """Whether instances lie in the same places."""
    pairs = [
        (a, b) for first, second in zip(one, other, strict=False) for a, b in zip(first, second, strict=True)
    ]
    return len(one) == len(other) and all(math.isclose(a, b, abs_tol=1e-4) for a, b in pairs)
