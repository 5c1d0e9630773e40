"""DICOM series made of real headers: those of pydicom's test files, with pictures and places of our own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom

from tests.formats.echoes import DICOM

AMBIGUOUS = ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue")
"""Signed or not, as the pixels are."""


def write_series(
    folder: Path,
    values: np.ndarray,
    *,
    header: str = "MR_small.dcm",
    slope: float = 1.0,
    intercept: float = 0.0,
    **changes,
) -> list[Path]:
    """Slices (N, H, W) of whole numbers from 0 on, stored as uint16; files are named against their order in space."""
    folder.mkdir(parents=True, exist_ok=True)
    series = pydicom.uid.generate_uid()
    paths = []
    for at, plane in enumerate(values):
        dataset = pydicom.dcmread(DICOM / header)
        dataset.SeriesInstanceUID, dataset.SOPInstanceUID = series, pydicom.uid.generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.InstanceNumber = at + 1
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [-10, -20, 3.0 * at]
        dataset.PixelSpacing, dataset.SliceThickness = [1.5, 1.5], 3
        dataset.Rows, dataset.Columns = plane.shape
        dataset.PixelRepresentation = 0
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit = 15
        for keyword in AMBIGUOUS:
            if keyword in dataset:
                del dataset[keyword]
        if dataset.Modality == "CT" or slope != 1 or intercept != 0:
            dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
        for keyword, value in changes.items():
            if keyword in AMBIGUOUS:
                dataset.add_new(keyword, "US", value)
            else:
                setattr(dataset, keyword, value)
        dataset.PixelData = plane.astype("<u2").tobytes()
        path = folder / f"IM{len(values) - at:03}"
        pydicom.dcmwrite(path, dataset)
        paths.append(path)
    return paths


def words_of(path: Path) -> set[str]:
    """Every text of a header that is long enough to be found by no accident: names, numbers, dates, UIDs."""
    found: set[str] = set()

    def keep(dataset, element) -> None:
        del dataset
        if element.VR in {"OB", "OW", "SQ", "US", "SS", "UL", "AT", "FL", "FD"}:
            return
        values = element.value if element.VM > 1 else [element.value]
        found.update(str(value).strip() for value in values or () if _is_telling(str(value).strip()))

    pydicom.dcmread(path).walk(keep)
    return found


def _is_telling(text: str) -> bool:
    return len(text) >= (8 if text.isdecimal() else 6) and len(set(text)) >= 4
