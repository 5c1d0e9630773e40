"""Series of the brain template's T1 as DICOM files, and a sender of files."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pydicom
import pynetdicom
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pynetdicom import _config

from ddib_fed import datasets

MODELS = ("brain-t1", "brain-t2")
MR, ENHANCED_MR = pydicom.uid.MRImageStorage, pydicom.uid.EnhancedMRImageStorage
PORTABLE = (MR, ENHANCED_MR, pydicom.uid.BasicTextSRStorage, "1.2.840.10008.1.1")
SPACING, THICKNESS = [1.5, 1.5], 3.0
OF_A_SLICE = (
    *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SliceLocation"),
    *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "EchoTime"),
)
BROKEN = -1
"""Status of an instance whose association ended before its answer."""


def brain_series(folder: Path, study: str, number: int, slices: int = 8, **changes: Any) -> list[Path]:
    """Write slices as an MR series of a study; files are named against their order in space."""
    folder.mkdir(parents=True, exist_ok=True)
    planes = np.take(heads(), range(number, number + slices), axis=0, mode="wrap").astype(np.uint16) * 4
    series, paths = pydicom.uid.generate_uid(), []
    for at, plane in enumerate(planes):
        dataset = header(plane)
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
        dataset.SeriesNumber, dataset.InstanceNumber = number, at + 1
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        dataset.ImagePositionPatient = [-10, -20, THICKNESS * at]
        dataset.PixelSpacing, dataset.SliceThickness = SPACING, THICKNESS
        for keyword, value in changes.items():
            setattr(dataset, keyword, value)
        paths.append(folder / f"IM{slices - at:03}")
        dataset.save_as(paths[-1])
    return paths


@cache
def heads() -> NDArray[np.uint8]:
    """Return the test slices (N, H, W) of the brain template's T1."""
    return datasets.shipped_bytes(MODELS[0], ["test"])[0][:, 0]


def header(plane: NDArray[np.uint16]) -> Any:
    """Return a slice with the header of pydicom's test file, and a UID of its own."""
    dataset = pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False)))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset.Rows, dataset.Columns = plane.shape
    dataset.PixelRepresentation, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 0, 16, 16, 15
    for keyword in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue"):
        if keyword in dataset:  # signed or not, as the pixels are
            del dataset[keyword]
    dataset.PixelData = plane.astype("<u2").tobytes()
    return dataset


def write_frames(path: Path, count: int, side: int = 512) -> None:
    """Write an enhanced MR of so many frames, each the same slice of the brain."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plane = np.kron(heads()[20, 8:40, 8:40], np.ones((side // 32, side // 32))).astype(np.uint16) * 4
    dataset = header(plane)
    for keyword in OF_A_SLICE:
        if keyword in dataset:
            del dataset[keyword]
    dataset.remove_private_tags()
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ENHANCED_MR
    dataset.SeriesInstanceUID = pydicom.uid.generate_uid()
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    looks = {"PixelPresentation": "MONOCHROME", "VolumetricProperties": "VOLUME"}
    looks |= {"VolumeBasedCalculationTechnique": "NONE", "ComplexImageComponent": "MAGNITUDE"}
    looks["AcquisitionContrast"] = "T1"
    for keyword, value in looks.items():
        setattr(dataset, keyword, value)
    shared = item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=SPACING, SliceThickness=THICKNESS)],
        MRImageFrameTypeSequence=[item(FrameType=dataset.ImageType, **looks)],
    )
    frame = item(
        FrameContentSequence=[item(StackID="1", InStackPositionNumber=1, DimensionIndexValues=[1, 1])],
        PlanePositionSequence=[item(ImagePositionPatient=[-10, -20, 0])],
        PixelValueTransformationSequence=[item(RescaleSlope=1, RescaleIntercept=0, RescaleType="US")],
    )
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = [frame] * count
    dataset.NumberOfFrames = count
    dataset.PixelData = dataset.PixelData * count
    dataset.save_as(path, enforce_file_format=True)


def item(**values: Any) -> Any:
    """Return an item of a sequence."""
    dataset = pydicom.Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def send(port: int, files: Path | Iterable[Path], called: str = "DDIB", pause_s: float = 0.0) -> list[int]:
    """Send files, or all below a folder, on one association; return the status of each, `BROKEN` without one."""
    paths = sorted(p for p in files.rglob("*") if p.is_file()) if isinstance(files, Path) else list(files)
    entity = pynetdicom.AE("STORESCU")
    headers = [pydicom.dcmread(path, stop_before_pixels=True) for path in paths]
    for kind, syntax in {(each.SOPClassUID, each.file_meta.TransferSyntaxUID) for each in headers}:
        entity.add_requested_context(kind, syntax)
    association = entity.associate("127.0.0.1", port, ae_title=called)
    statuses = []
    with patch.object(_config, "STORE_SEND_CHUNKED_DATASET", True):  # files are sent without being in memory
        for path in paths:
            answer = association.send_c_store(path) if association.is_established else {}
            statuses.append(int(answer.get("Status", BROKEN)))
            time.sleep(pause_s)
    if association.is_established:
        association.release()
    return statuses
