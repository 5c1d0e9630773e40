"""DICOM series made of real headers: those of pydicom's test files, with pictures and places of our own."""

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


def write_contrasts(folder: Path, values: np.ndarray, *contrasts: dict, **how) -> Path:
    """One series in which each contrast has other values; a file is named by its contrast and its place."""
    uid = pydicom.uid.generate_uid()
    for number, changes in enumerate(contrasts, 1):
        for path in write_series(
            folder / "new", values * number * 7, SeriesInstanceUID=uid, **{**how, **changes}
        ):
            path.rename(folder / f"{number}-{path.name}")
    return folder


ENHANCED = {
    "MR": ("1.2.840.10008.5.1.4.1.1.4.1", "MRImageFrameTypeSequence"),
    "CT": ("1.2.840.10008.5.1.4.1.1.2.1", "CTImageFrameTypeSequence"),
}
LOOKS = {
    "PixelPresentation": "MONOCHROME", "VolumetricProperties": "VOLUME", "VolumeBasedCalculationTechnique": "NONE",
}  # fmt: skip
OF_MR = {"ComplexImageComponent": "MAGNITUDE", "AcquisitionContrast": "T1"}


def item(**values) -> pydicom.Dataset:
    made = pydicom.Dataset()
    for keyword, value in values.items():
        setattr(made, keyword, value)
    return made


def write_enhanced(
    path: Path,
    values: np.ndarray,
    *,
    header: str = "MR_small.dcm",
    rescale: list[tuple[float, float]] = (),
    **changes,
) -> Path:
    """The same slices as frames of one enhanced file, last in space first; `rescale` is slope and intercept of each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = pydicom.dcmread(DICOM / header)
    for keyword in (
        "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SliceLocation",
        "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "EchoTime", "RepetitionTime",
        "ScanningSequence", "SequenceVariant", "ScanOptions", "SpacingBetweenSlices", *AMBIGUOUS,
    ):  # fmt: skip
        if keyword in dataset:
            del dataset[keyword]
    dataset.remove_private_tags()
    kind, frame_type = ENHANCED[dataset.Modality]
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = kind
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    dataset.SeriesInstanceUID = pydicom.uid.generate_uid()
    looks = LOOKS | (OF_MR if dataset.Modality == "MR" else {})
    for keyword, value in {
        **looks,
        "ContentQualification": "RESEARCH",
        "AcquisitionContextSequence": [],
    }.items():
        setattr(dataset, keyword, value)
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    uid = pydicom.uid.generate_uid()
    organisation = item(DimensionOrganizationUID=uid)
    pointers = [
        item(DimensionIndexPointer=tag, FunctionalGroupPointer=group, DimensionOrganizationUID=uid)
        for tag, group in ((0x00189082, 0x00189114), (0x00209057, 0x00209111))
    ]
    dataset.DimensionOrganizationSequence, dataset.DimensionIndexSequence = [organisation], pointers
    dataset.SharedFunctionalGroupsSequence = [item(
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        PixelMeasuresSequence=[item(PixelSpacing=[1.5, 1.5], SliceThickness=3)],
        MREchoSequence=[item(EffectiveEchoTime=17.0)],
        **{frame_type: [item(FrameType=dataset.ImageType, **looks)]},
    )]  # fmt: skip
    rescale = rescale or [(1.0, 0.0)] * len(values)
    dataset.PerFrameFunctionalGroupsSequence = [
        item(
            FrameContentSequence=[
                item(StackID="1", InStackPositionNumber=at + 1, DimensionIndexValues=[1, at + 1])
            ],
            PlanePositionSequence=[item(ImagePositionPatient=[-10, -20, 3.0 * (len(values) - 1 - at)])],
            PixelValueTransformationSequence=[item(RescaleSlope=s, RescaleIntercept=i, RescaleType="US")],
        )
        for at, (s, i) in enumerate(rescale)
    ]
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = values.shape
    dataset.PixelRepresentation, dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 0, 16, 16, 15
    for keyword, value in changes.items():
        setattr(dataset, keyword, value)
    dataset.PixelData = values[::-1].astype("<u2").tobytes()
    pydicom.dcmwrite(path, dataset, enforce_file_format=True)
    return path


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
