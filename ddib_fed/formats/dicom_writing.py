"""Writes the derived series: what the source slices say of the person, the study and the place, and new pixels.

Each is marked as synthetic, and says nothing of how its source was acquired. The headers say who the person is, and
stay on this machine as the source's own files do.
"""

from __future__ import annotations

import hashlib
import io
import uuid
from collections import Counter
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data.pictures import Pixels
from ddib_fed.errors import ImageUnreadable, InputError
from ddib_fed.formats.dicom import (
    Members,
    Series,
    affine_of,
    names_of,
    pydicom,
    quiet,
    read_series,
    readable,
    sort_files,
    uid_sha256,
)
from ddib_fed.formats.study import (
    PERCENTILES,
    Assembled,
    Bad,
    Options,
    Origin,
    Slices,
    Study,
    StudyResults,
    Unread,
    chosen_rule,
)
from ddib_fed.formats.volumes import Volumes, axial, from_axial, orientation_of, spacing_of
from ddib_fed.names import __version__

MAKER: Final = "ddib-fed"
SERIES_OFFSET: Final = 1000
"""Added to the number of the source's series."""
_SPACE: Final = uuid.UUID("6b1f2c2e-6d3d-5b0b-9d5e-0f1d0c9a7a11")
# What a result says as its source does: whom it shows, for which study, where and when. All else describes how the
# source was acquired, stored, shown or signed, and would be wrong of a picture in another contrast that a model made.
KEPT: Final = frozenset({
    "SpecificCharacterSet", "TimezoneOffsetFromUTC", "Modality", "InstitutionName", "InstitutionAddress",
    "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "StudyDescription", "AccessionNumber",
    "IssuerOfAccessionNumberSequence", "ReferringPhysicianName", "PhysiciansOfRecord", "ProcedureCodeSequence",
    "ReferencedStudySequence", "ReferencedPatientSequence", "AdmittingDiagnosesDescription",
    "AdmittingDiagnosesCodeSequence", "AcquisitionDate", "AcquisitionTime", "AcquisitionDateTime", "AcquisitionNumber",
    "InstanceNumber", "TemporalPositionIdentifier", "NumberOfTemporalPositions", "FrameOfReferenceUID",
    "PositionReferenceIndicator", "ImagePositionPatient", "ImageOrientationPatient", "PatientOrientation",
    "PatientPosition", "SliceLocation", "SliceThickness", "SpacingBetweenSlices", "PixelSpacing", "PixelAspectRatio",
    "PixelSpacingCalibrationType", "PixelSpacingCalibrationDescription", "ImagerPixelSpacing",
    "EstimatedRadiographicMagnificationFactor", "SequenceOfUltrasoundRegions", "Laterality", "ImageLaterality",
    "BodyPartExamined", "AnatomicRegionSequence", "ViewPosition", "BurnedInAnnotation", "RecognizableVisualFeatures",
    "LongitudinalTemporalInformationModified", "LossyImageCompression", "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
})  # fmt: skip
_KEPT_GROUPS: Final = frozenset({0x0010, 0x0012, 0x0038})
"""The patient, the trial with its marks of de-identification, and the visit."""
_Class = tuple[str, dict[str, str]]
# The class of a grey result by that of its source, and what it must say of an acquisition (PS3.3
# C.8.3.1, C.8.2.1): "RM" is a sequence that is none of the standard's, and an empty value one that is not known.
_CLASSES: Final[dict[str, _Class]] = {
    "MR Image Storage": ("MRImageStorage", {
        "ScanningSequence": "RM", "SequenceVariant": "NONE", "ScanOptions": "", "MRAcquisitionType": "",
        "RepetitionTime": "", "EchoTime": "", "EchoTrainLength": "",
    }),
    "CT Image Storage": ("CTImageStorage", {"KVP": "", "AcquisitionNumber": ""}),
}  # fmt: skip
_OTHER_CLASS: Final[_Class] = "SecondaryCaptureImageStorage", {"ConversionType": "WSD"}
_EQUIPMENT: Final = (
    "Manufacturer", "InstitutionName", "StationName", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions",
)  # fmt: skip


def derived_series(series: Series, stack: Pixels, translated: StudyResults) -> list[bytes]:
    now = datetime.now().astimezone()
    parts = [r.latent_sha256 + r.target_model_sha256 for r in translated.records if r is not None]
    recipe = hashlib.sha256(" ".join([translated.target, *parts]).encode()).hexdigest()
    hounsfield = series.modality == "CT" and not series.without_units
    hounsfield = hounsfield and translated.low is not None and translated.low <= -500
    made = []
    with quiet():
        for source, pixels in zip(series.headers, stack, strict=True):
            dataset = _kept(source, colours=pixels.shape[2] == 3)
            _identify(dataset, source, recipe, now, translated)
            _attribute(dataset, source, translated, now)
            _set_pixels(dataset, pixels, translated, hounsfield=hounsfield)
            made.append(_file(dataset))
    return made


def _file(dataset: Any) -> bytes:
    package = pydicom()
    meta = package.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    meta.TransferSyntaxUID = package.uid.ExplicitVRLittleEndian
    dataset.file_meta, dataset.preamble = meta, None
    file = io.BytesIO()
    package.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def _kept(source: Any, *, colours: bool) -> Any:
    """A copy of what the source's header says that is true of the result, too; nothing private."""
    kept = pydicom().Dataset()
    for element in source:
        if element.keyword in KEPT or element.tag.group in _KEPT_GROUPS:
            kept.add(deepcopy(element))
    kept.remove_private_tags()
    uids = pydicom().uid
    name = uids.UID(source.SOPClassUID).name
    kind, asked = _CLASSES.get("" if colours else name, _OTHER_CLASS)
    kept.SOPClassUID = getattr(uids, kind)
    for keyword, value in asked.items():
        if keyword not in kept:
            setattr(kept, keyword, value)
    return kept


def _identify(dataset: Any, source: Any, recipe: str, now: datetime, translated: StudyResults) -> None:
    """New UIDs, times, and the marks of a synthetic, derived picture."""
    for name in ("SOPInstanceUID", "SeriesInstanceUID"):
        number = uuid.uuid5(_SPACE, f"{source[name].value} {recipe}").int
        setattr(dataset, name, f"2.25.{number}")
    dataset.SeriesNumber = SERIES_OFFSET + int(source.get("SeriesNumber", None) or 0)
    dataset.SeriesDescription = f"SYNTHETIC {translated.target}"[:64]
    third = [str(value) for value in source.get("ImageType", ())][2:3]  # of MR it names the contrast
    plane = third if third in [["AXIAL"], ["LOCALIZER"]] else ["OTHER"]
    dataset.ImageType = ["DERIVED", "SECONDARY", *plane, "SYNTHETIC"]
    dataset.SyntheticData = "YES"
    dataset.InstanceCreationDate = dataset.ContentDate = dataset.SeriesDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.ContentTime = dataset.SeriesTime = now.strftime("%H%M%S")


def _attribute(dataset: Any, source: Any, translated: StudyResults, now: datetime) -> None:
    """From which picture, by what, and how it was derived."""
    package = pydicom()
    first = translated.first
    dataset.DerivationDescription = (
        f"Synthetic picture: translated from {translated.source} to {translated.target} by a Dual Diffusion Implicit "
        f"Bridge ({MAKER} {__version__}); models SHA-256 {first.source_model_sha256[:16]} and "
        f"{first.target_model_sha256[:16]}; not for diagnosis"
    )[:1024]
    reference, acquired, made = (package.Dataset() for _ in range(3))
    reference.ReferencedSOPClassUID = source.SOPClassUID
    reference.ReferencedSOPInstanceUID = source.SOPInstanceUID
    for name in _EQUIPMENT:
        if name in source and source[name].value not in {None, ""}:
            acquired.add(deepcopy(source[name]))
    acquired.setdefault("Manufacturer", "UNKNOWN")  # a value is required
    for each in (made, dataset):
        each.Manufacturer, each.ManufacturerModelName = MAKER, "Dual Diffusion Implicit Bridge"
        each.SoftwareVersions = __version__
    made.ContributionDateTime = now.strftime("%Y%m%d%H%M%S%z")
    made.ContributionDescription = f"Translated from {translated.source} to {translated.target}"[:1024]
    for each, value, meaning in (
        (reference, "121322", "Source image for image processing operation"),
        (acquired, "109101", "Acquisition Equipment"),
        (made, "109103", "Modifying Equipment"),
    ):
        code = package.Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
        each.PurposeOfReferenceCodeSequence = [code]
    dataset.SourceImageSequence = [reference]
    earlier = list(source.get("ContributingEquipmentSequence") or ())
    dataset.ContributingEquipmentSequence = [*deepcopy(earlier), acquired, made]


def _set_pixels(dataset: Any, pixels: Pixels, translated: StudyResults, *, hounsfield: bool) -> None:
    """The pixels and what describes them: 16 bits for grey, 8 for colours."""
    number = pydicom().valuerep.DSfloat
    colours = pixels.shape[2] == 3
    if colours:
        if pixels.dtype == np.uint16:
            pixels = (pixels >> 8).astype(np.uint8)
        dataset.PlanarConfiguration = 0
    bits = 8 if colours else 16
    dataset.SamplesPerPixel = pixels.shape[2]
    dataset.PhotometricInterpretation = "RGB" if colours else "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation = bits - 1, 0
    raw = np.ascontiguousarray(pixels, dtype=np.dtype("u1") if colours else np.dtype("<u2")).tobytes()
    dataset.PixelData = raw + b"\0" * (len(raw) % 2)
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    if colours:
        return
    slope, low, high = translated.slope, translated.low, translated.high
    if not translated.plain or dataset.SOPClassUID == pydicom().uid.CTImageStorage:
        dataset.RescaleSlope = number(slope, auto_format=True)
        dataset.RescaleIntercept = number(translated.intercept, auto_format=True)
        dataset.RescaleType = "HU" if hounsfield else "US"
    low = translated.intercept if low is None else low
    high = low + slope * np.iinfo(translated.dtype).max if high is None else high
    dataset.WindowCenter = number((low + high) / 2, auto_format=True)
    dataset.WindowWidth = number(max(high - low, 1), auto_format=True)


@dataclass(frozen=True, slots=True)
class DicomStudy(Study):
    pixels: Slices | Volumes
    series: Series
    orientation: NDArray[Any] | None = None
    """Of a volume, as nibabel has it."""

    @property
    def kind(self) -> str:
        units = " without Hounsfield units" if self.series.without_units else ""
        return f"DICOM series ({self.series.modality or 'no modality'}{units})"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Burnt-in text, missing slices, a CT whose numbers are in no units."""
        odd = self.series.without_units
        said = [f"these are no Hounsfield units: {odd[0]}"] if odd else []
        said += self.pixels.warnings
        return (*self.series.warnings, *(f"{self.origin.called}: {line}" for line in said))

    def assemble(self, translated: StudyResults) -> Assembled:
        stack = self.pixels.stack(translated)
        if self.orientation is not None:
            stack = from_axial(stack, self.orientation)
        report, said = self.pixels.summary(translated)
        contents = derived_series(self.series, stack, translated)
        files = {f"{self.name}/{at + 1:04}.dcm": content for at, content in enumerate(contents)}
        header = self.series.headers[0]
        spacing = header.get("PixelSpacing")
        report["geometry"] = {
            "modality": self.series.modality,
            "rows": int(header.Rows),
            "columns": int(header.Columns),
            "pixel_spacing_mm": [float(v) for v in spacing] if spacing else None,
        }
        report["marks"] = {
            "synthetic_data": "YES",
            "image_type": "DERIVED\\SECONDARY",
            "burnt_in_annotation": str(header.get("BurnedInAnnotation", "")) or None,
        }
        return Assembled(files, report, said)


def find_dicom(
    given: Path, files: Iterable[Path], root: Path | None, options: Options
) -> tuple[list[Unread], Bad, Counter[str]]:
    """The series among some files, what cannot be read, and how many others."""
    found = sort_files(files)
    if not found.series and not found.unreadable:
        hint = "dcmdump FILE; in place of a DICOMDIR name its folder"
        raise ImageUnreadable(f"{given} holds no DICOM pictures", hop="client", hint=hint)
    unread, bad = list[Unread](), [*found.unreadable]
    for uid, name in names_of(found.series, root).items():
        good, unreadable = readable(found.series[uid])
        bad += unreadable
        if good:
            origin = Origin(
                given,
                name,
                (name,),
                tuple(path for path, _ in good),
                options.settings("intensity"),
                label=f"{given}: {name}" if len(found.series) > 1 else "",
                series_sha256=uid_sha256(uid),
            )
            unread.append(Unread(origin, partial(read_dicom, good, options)))
    return unread, bad, found.others


def read_dicom(members: Members, options: Options, origin: Origin) -> DicomStudy:
    series, values = read_series(origin.called, members)
    odd = series.without_units
    rule = chosen_rule(options.intensity, values, series.modality, of_model=options.of_model)
    if odd and (rule.name == "hu" or len(odd) < len(series.paths)):
        raise InputError(
            f"{len(odd)} of {len(series.paths)} slices are in no Hounsfield units: {odd[0]}",
            hint=f"export it again with its rescale, or send numbers without units: --intensity {PERCENTILES}",
        )
    if options.volume is None:
        return DicomStudy(origin, Slices.of(values, rule), series)
    affine = affine_of(series.headers)
    orientation = orientation_of(affine)
    volume, spacing = axial(values, orientation), spacing_of(affine, orientation)
    return DicomStudy(origin, Volumes.of(volume[None], rule, spacing, options.volume), series, orientation)
