"""Writes the derived series: what the source slices say of the person, the study and the place, and new pixels.

Each is marked as synthetic, and says nothing of how its source was acquired; the headers stay on this machine.
"""

from __future__ import annotations

import hashlib
import io
import os
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed import __version__, studies
from ddib_fed.errors import ImageUnreadable, InputError
from ddib_fed.formats.dicom import (
    ENHANCED,
    Members,
    Series,
    affine_of,
    comparable,
    floats,
    frame_of,
    pydicom,
    read_header,
    read_series,
    readable,
    sort_files,
)

MAKER: Final = "ddib-fed"
SOFT_TISSUE: Final = (-160.0, 240.0)
"""The usual window of CT, of centre 40 and width 400, in Hounsfield units."""
SERIES_OFFSET: Final = 1000  # added to the number of the source's series
MAX_DICOM_FILES: Final = 100_000
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
_ECHO: Final = {"EchoNumbers", "EchoTime"}
_OF_STUDY: Final = frozenset({
    "SpecificCharacterSet", "TimezoneOffsetFromUTC", "StudyInstanceUID", "StudyID", "StudyDate", "StudyTime",
    "StudyDescription", "AccessionNumber", "IssuerOfAccessionNumberSequence", "ReferringPhysicianName",
})  # fmt: skip
"""What a report says of its study."""
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
# Of an enhanced result, what its class asks for, and in place of the source's functional groups of acquisition
# (PS3.3 C.8.13.2, C.8.15.2, C.8.22.5); of MR also what its contrast is called.
_ENHANCED: Final = {
    "PixelPresentation": "MONOCHROME", "VolumetricProperties": "VOLUME", "VolumeBasedCalculationTechnique": "NONE",
}  # fmt: skip
_ENHANCED_MR: Final = {"ComplexImageComponent": "MAGNITUDE", "AcquisitionContrast": "UNKNOWN"}
_KEPT_OF_FRAMES: Final = (
    "FrameContentSequence", "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence",
    "FrameAnatomySequence", "TemporalPositionSequence", "PatientOrientationInFrameSequence",
    "IrradiationEventIdentificationSequence",
)  # fmt: skip
"""Functional groups that are true of a result: where, when and of what a frame is."""
_CONTRASTS: Final = {
    "echo": ("EchoTime", "EffectiveEchoTime", "EchoNumbers"),
    "b": ("DiffusionBValue",),
    "inversion": ("InversionTime",),
    "time": ("TemporalPositionIdentifier", "TemporalPositionIndex"),
    "type": ("ImageType", "FrameType"),
}
"""Attributes whose values tell the contrasts of a series apart, by what a contrast is called."""
_EQUIPMENT: Final = (
    "Manufacturer", "InstitutionName", "StationName", "ManufacturerModelName", "DeviceSerialNumber", "SoftwareVersions",
)  # fmt: skip


def derived_series(
    series: Series, stack: studies.Pixels, translated: studies.StudyResults, pixels: studies.Planes
) -> list[bytes]:
    """Return the files of the result: enhanced where the source's are and the result is grey, else one a slice.

    UIDs follow from those of the source, the request, the rule of intensity, both models and the values of the
    contrast, so that a repeat replaces what it repeats, also where other contrasts have come meanwhile.
    """
    now, first = datetime.now().astimezone(), translated.first
    with suppress(ValueError):  # the times that are kept are in the source's zone
        zone = str(series.headers[0].get("TimezoneOffsetFromUTC", ""))
        now = now.astimezone(datetime.strptime(zone, "%z").tzinfo)
    models = first.source_model_sha256, first.target_model_sha256, first.calibration_sha256
    parts = [translated.source, translated.target, str(first.asked_sha256), pixels.rule, *models]
    parts += [str(comparable(series.headers[0], keyword)) for keyword in chain(*_CONTRASTS.values())]
    parts.append(series.contrast.partition("repeat")[2] or "1")
    recipe = hashlib.sha256(" ".join(parts).encode()).hexdigest()
    hounsfield = series.modality == "CT" and not series.without_units
    hounsfield = hounsfield and translated.low is not None and translated.low <= -500
    made, enhanced = [], dict[Path, list[tuple[int, studies.Pixels]]]()
    computed, spacing = pixels.computed(translated), floats(series.headers[0], "PixelSpacing", 2)

    def begun(source: Any, frames: studies.Pixels) -> Any:
        dataset = _kept(source, colours=frames.shape[3] == 3, echoes="echo" in series.contrast)
        _identify(dataset, source, recipe, now)
        said = (text for _, text in comparable(source, "SeriesDescription"))  # several with a backslash
        words = filter(None, ("SYNTHETIC", series.contrast, translated.target, *said))
        dataset.SeriesDescription = " ".join(words)[:64].strip()
        _attribute(dataset, source, translated, now, computed.lost)
        if spacing is not None and computed.shrink > 1:
            resolution = computed.shrink * float(max(spacing))
            dataset.SpatialResolution = pydicom().valuerep.DSfloat(resolution, auto_format=True)
        _set_pixels(dataset, frames, translated, hounsfield=hounsfield)
        return dataset

    for path, source, plane in zip(series.paths, series.headers, stack, strict=True):
        if source.SOPClassUID in ENHANCED and plane.shape[2] == 1:
            enhanced.setdefault(path, []).append((frame_of(source), plane))
            continue
        made.append(begun(source, plane[None]))
    for path, frames in enhanced.items():
        numbers, planes = zip(*sorted(frames, key=lambda each: each[0]), strict=True)
        whole = read_header(path)
        kept = (*_KEPT_OF_FRAMES, "MREchoSequence") if "echo" in series.contrast else _KEPT_OF_FRAMES
        made.append(_set_frames(begun(whole, np.stack(planes)), whole, numbers, kept))
    return [_file(each) for each in made]


def report_of(path: Path, why: str) -> bytes:
    """Write a Basic Text SR (PS3.3 A.35.1) of a file's study: its series was not translated, and why."""
    package = pydicom()
    # Not read_header, which refuses a header with a malformed value.
    source = package.dcmread(path, stop_before_pixels=True)
    now = datetime.now().astimezone()
    made = package.Dataset()
    for tag in source.keys():  # noqa: SIM118 - a dataset iterates over elements, which would be read
        if tag.group in _KEPT_GROUPS or package.datadict.keyword_for_tag(tag) in _OF_STUDY:
            # What pydicom raises for a malformed value, and (the last) for a VR that the standard does not have.
            with suppress(ValueError, TypeError, OverflowError, NotImplementedError):
                made.add(deepcopy(source[tag]))
    made.remove_private_tags()
    made.SOPClassUID, made.Modality = package.uid.BasicTextSRStorage, "SR"
    for name, of in (("SeriesInstanceUID", "report"), ("SOPInstanceUID", f"report {why}")):
        setattr(made, name, f"2.25.{uuid.uuid5(_SPACE, f'{source.SeriesInstanceUID} {of}').int}")
    made.SeriesNumber, made.InstanceNumber = SERIES_OFFSET, 1
    made.SeriesDescription, made.Manufacturer = "Not translated", MAKER
    made.ContentDate, made.ContentTime = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    made.CompletionFlag, made.VerificationFlag = "COMPLETE", "UNVERIFIED"
    made.ReferencedPerformedProcedureStepSequence, made.PerformedProcedureCodeSequence = [], []
    made.ValueType, made.ContinuityOfContent = "CONTAINER", "SEPARATE"
    made.ConceptNameCodeSequence = _coded("NOTE", "Note on translation", "99DDIBFED")
    text = _dataset(RelationshipType="CONTAINS", ValueType="TEXT")
    text.ConceptNameCodeSequence = _coded("121106", "Comment")
    text.TextValue = f"The series of this image was not translated: {why}"
    image = _dataset(RelationshipType="CONTAINS", ValueType="IMAGE", ReferencedSOPSequence=[_sop(source)])
    made.ContentSequence = [text, image]
    made.CurrentRequestedProcedureEvidenceSequence = _evidence(source)
    return _file(made)


def _file(dataset: Any) -> bytes:
    package, file = pydicom(), io.BytesIO()
    dataset.file_meta = package.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = package.uid.ExplicitVRLittleEndian
    package.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def _kept(source: Any, *, colours: bool, echoes: bool) -> Any:
    """Copy what the source's header says that is true of the result, too (also its echo, PS3.3 C.8.3.1)."""
    kept = _copied(source, KEPT | (_ECHO if echoes and not colours else set()), _KEPT_GROUPS)
    kept.remove_private_tags()
    uids = pydicom().uid
    uid = uids.UID(source.SOPClassUID)
    kind, asked = _CLASSES.get("" if colours else uid.name, _OTHER_CLASS)
    kept.SOPClassUID = getattr(uids, kind)
    if uid in ENHANCED and not colours:
        asked = _ENHANCED | {"ContentQualification": "RESEARCH", "PresentationLUTShape": "IDENTITY"}
        kept.AcquisitionContextSequence = []
        asked |= _ENHANCED_MR if ENHANCED[uid] == "MR" else {}
        kept.SOPClassUID, kept.NumberOfFrames = uid, 1
    for keyword, value in asked.items():
        kept.setdefault(keyword, value)
    return kept


def _identify(dataset: Any, source: Any, recipe: str, now: datetime) -> None:
    """Set new UIDs, times, and the marks of a synthetic, derived picture."""
    for name in ("SOPInstanceUID", "SeriesInstanceUID"):
        frame = source.get("ReferencedFrameNumber", "") if name == "SOPInstanceUID" else ""
        number = uuid.uuid5(_SPACE, f"{source[name].value} {frame} {recipe}").int
        setattr(dataset, name, f"2.25.{number}")
    numbers = [number for number, _ in comparable(source, "SeriesNumber")]
    dataset.SeriesNumber = SERIES_OFFSET + int(numbers[0] if numbers else 0)
    plane = "AXIAL" if "AXIAL" in source.get("ImageType", ()) else "OTHER"  # of MR it names the contrast
    dataset.ImageType = ["DERIVED", "SECONDARY", plane, "SYNTHETIC"]
    if "NumberOfFrames" in dataset:  # its terms are others (PS3.3 C.8.16.1)
        dataset.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "SYNTHETIC"]
    dataset.SyntheticData = "YES"
    dataset.InstanceCreationDate = dataset.ContentDate = dataset.SeriesDate = now.strftime("%Y%m%d")
    dataset.InstanceCreationTime = dataset.ContentTime = dataset.SeriesTime = now.strftime("%H%M%S")


def _attribute(dataset: Any, source: Any, translated: studies.StudyResults, now: datetime, lost: str) -> None:
    """State the source image, the equipment and the method of a derived picture."""
    first = translated.first
    doubts = sorted({doubt for record in translated.records if record for doubt in record.doubts or ()})
    doubtful = f"doubtful: {', '.join(doubts)}" if doubts else ""
    facts = "; ".join(filter(None, ("not for diagnosis", lost, translated.clipped, doubtful)))
    models = f"models SHA-256 {first.source_model_sha256} and {first.target_model_sha256}"
    dataset.DerivationDescription = (
        f"Synthetic picture: translated from {translated.source} to {translated.target} by a Dual Diffusion Implicit "
        f"Bridge ({MAKER} {__version__}); {models}; {facts}"
    )[:1024]
    acquired = _copied(source, {name for name in _EQUIPMENT if source.get(name)})
    acquired.setdefault("Manufacturer", "UNKNOWN")  # a value is required
    acquired.PurposeOfReferenceCodeSequence = _coded("109101", "Acquisition Equipment")
    made = _dataset(Manufacturer=MAKER, ManufacturerModelName="Dual Diffusion Implicit Bridge")
    made.SoftwareVersions, made.DeviceSerialNumber = __version__, first.target_model_sha256 or "0"
    dataset.update(made)
    made.ContributionDateTime = now.strftime("%Y%m%d%H%M%S%z")
    how = f"Translated from {translated.source} to {translated.target}; {models}"
    made.ContributionDescription = how[:1024]
    made.PurposeOfReferenceCodeSequence = _coded("109103", "Modifying Equipment")
    dataset.DerivationCodeSequence = _coded("DDIB", "Synthesis by a diffusion bridge", "99DDIBFED")
    dataset.SourceImageSequence = [_reference(source)]
    earlier = list(source.get("ContributingEquipmentSequence") or ())
    dataset.ContributingEquipmentSequence = [*deepcopy(earlier), acquired, made]


def _dataset(**values: Any) -> Any:
    made = pydicom().Dataset()
    made.update(values)
    return made


def _copied(source: Iterable[Any], keywords: Collection[str], groups: Collection[int] = ()) -> Any:
    made = pydicom().Dataset()
    made.update({e.tag: deepcopy(e) for e in source if e.keyword in keywords or e.tag.group in groups})
    return made


def _coded(value: str, meaning: str, scheme: str = "DCM") -> list[Any]:
    return [_dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)]


def _sop(source: Any) -> Any:
    return _dataset(ReferencedSOPClassUID=source.SOPClassUID, ReferencedSOPInstanceUID=source.SOPInstanceUID)


def _evidence(source: Any) -> list[Any]:
    """Name a file within its series and its study (PS3.3 Table 10-4)."""
    series = _dataset(SeriesInstanceUID=source.SeriesInstanceUID, ReferencedSOPSequence=[_sop(source)])
    return [_dataset(StudyInstanceUID=source.StudyInstanceUID, ReferencedSeriesSequence=[series])]


def _reference(source: Any, frame: int | None = None) -> Any:
    """Refer to the source image, or to a frame of it."""
    made = _sop(source)
    if frame := frame or source.get("ReferencedFrameNumber"):
        made.ReferencedFrameNumber = int(frame)
    made.PurposeOfReferenceCodeSequence = _coded("121322", "Source image for image processing operation")
    return made


def _set_frames(dataset: Any, source: Any, frames: Sequence[int], keywords: Sequence[str]) -> Any:
    """Set the functional groups of an enhanced result (PS3.3 C.7.6.16): some of the source's, and our values."""
    package = pydicom()
    dataset.NumberOfFrames = len(frames)
    shared = package.Dataset()
    for groups in source.get("SharedFunctionalGroupsSequence", ()):
        shared.update(_copied(groups, keywords))
    look, values, window = _copied(dataset, {*_ENHANCED, *_ENHANCED_MR}), package.Dataset(), package.Dataset()
    look.FrameType = dataset.ImageType
    kind = {"CT": "CTImageFrameTypeSequence", "MR": "MRImageFrameTypeSequence", "PT": "PETFrameTypeSequence"}
    setattr(shared, kind[ENHANCED[dataset.SOPClassUID]], [look])
    for item, begins in ((values, "Rescale"), (window, "Window")):
        item.update({e.tag: e for e in dataset if e.keyword.startswith(begins)})
        for tag in item.keys():  # noqa: SIM118 - a dataset iterates over elements
            del dataset[tag]
    shared.PixelValueTransformationSequence, shared.FrameVOILUTSequence = [values], [window]
    dataset.SourceImageEvidenceSequence = _evidence(source)
    dataset.SharedFunctionalGroupsSequence = [shared]
    # A dimension may point to a group of the acquisition, which is not kept.
    kept = [package.tag.Tag(keyword) for keyword in keywords]
    indices = source.get("DimensionIndexSequence", ())
    places = [at for at, index in enumerate(indices) if index.get("FunctionalGroupPointer") in kept]
    dataset.DimensionOrganizationSequence = deepcopy(source.get("DimensionOrganizationSequence", []))
    if places:
        dataset.DimensionIndexSequence = [deepcopy(indices[at]) for at in places]
    own = []
    for number in frames:
        frame = _copied(source.PerFrameFunctionalGroupsSequence[number], keywords)
        for content in frame.get("FrameContentSequence", ()):
            if values := content.get("DimensionIndexValues"):
                values = [values] if isinstance(values, int) else values
                content.DimensionIndexValues = [values[at] for at in places if at < len(values)]
        derivation = _dataset(DerivationCodeSequence=dataset.DerivationCodeSequence)
        derivation.SourceImageSequence = [_reference(source, number + 1)]
        frame.DerivationImageSequence = [derivation]
        own.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = own
    return dataset


def _set_pixels(
    dataset: Any, pixels: studies.Pixels, translated: studies.StudyResults, *, hounsfield: bool
) -> None:
    """Set the pixels (N, H, W, C) of all frames and their attributes: 16 bits for grey, 8 for colours."""
    number = partial(pydicom().valuerep.DSfloat, auto_format=True)
    frames = pixels if "NumberOfFrames" in dataset else pixels[0]
    if frames.shape[-1] == 3:
        colours = (frames >> 8).astype(np.uint8) if frames.dtype == np.uint16 else frames
        dataset.set_pixel_data(colours, "RGB", 8, generate_instance_uid=False)
        return
    grey = frames[..., 0].astype(np.uint16)
    dataset.set_pixel_data(grey, "MONOCHROME2", 16, generate_instance_uid=False)
    slope, low, high = translated.slope, translated.low, translated.high
    if not translated.plain or dataset.SOPClassUID in {pydicom().uid.CTImageStorage, *ENHANCED}:
        dataset.RescaleSlope, dataset.RescaleIntercept = number(slope), number(translated.intercept)
        dataset.RescaleType = "HU" if hounsfield else "US"
    low = translated.intercept if low is None else low
    high = low + slope * np.iinfo(translated.dtype).max if high is None else high
    low, high = SOFT_TISSUE if hounsfield else (low, high)
    dataset.WindowCenter, dataset.WindowWidth = number((low + high) / 2), number(max(high - low, 1))


@dataclass(frozen=True, slots=True)
class DicomStudy(studies.Study):
    pixels: studies.Slices
    series: Series
    orientation: NDArray[Any] | None = None  # of a volume, as nibabel has it

    @property
    def kind(self) -> str:
        units = " without Hounsfield units" if self.series.without_units else ""
        return f"DICOM series ({self.series.modality or 'no modality'}{units})"

    @property
    def subject(self) -> tuple[str, str]:
        header = self.series.headers[0]
        examination = str(header.get("StudyInstanceUID") or "")
        return str(header.get("PatientID") or examination), examination

    @property
    def warnings(self) -> tuple[str, ...]:
        """Burnt-in text, missing slices, a CT whose numbers are in no units."""
        odd = self.series.without_units
        said = [f"these are no Hounsfield units: {odd[0]}"] if odd else []
        said += self.pixels.warnings
        return (*self.series.warnings, *(f"{self.origin.called}: {line}" for line in said))

    def assemble(self, translated: studies.StudyResults) -> studies.Assembled:
        stack = self.pixels.stack(translated)
        if self.orientation is not None:
            stack = studies.unsliced(stack, self.orientation)
        report, said = self.pixels.summary(translated)
        contents = derived_series(self.series, stack, translated, self.pixels)
        files = {f"{self.name}/{at + 1:04}.dcm": content for at, content in enumerate(contents)}
        header = self.series.headers[0]
        spacing = floats(header, "PixelSpacing", 2)
        report["geometry"] = {
            "modality": self.series.modality,
            "rows": int(header.Rows),
            "columns": int(header.Columns),
            "pixel_spacing_mm": None if spacing is None else spacing.tolist(),
        }
        return studies.Assembled(files, report, said)


def find_dicom(
    given: Path, files: Iterable[Path], root: Path | None, options: studies.Options
) -> studies.FoundStudies:
    """Return the contrasts of all series among files, the errors of unreadable ones, and counts of others."""
    if root is not None:
        files = [path for path in files if not path.name.startswith("DICOMDIR")]
        if not files:
            return studies.FoundStudies([], [], Counter())
        if len(files) > MAX_DICOM_FILES:
            raise ImageUnreadable(f"{given} has more than {MAX_DICOM_FILES} DICOM files", hop="client")
    sorted_files = sort_files(files)
    sorted_files.require_pictures(given)
    unread, bad, series = list[studies.Unread](), [*sorted_files.unreadable], sorted_files.series
    settings = options.settings("intensity")
    for uid, of_series in _names_of(series, root).items():
        good, unreadable = readable(series[uid])
        bad += unreadable
        for contrast, slices in _contrasts_of(good).items():
            name = f"{of_series}-{contrast}" if contrast else of_series
            inputs = tuple(dict.fromkeys(path for path, _ in slices))
            label = f"{given}: {name}" if len(series) > 1 or contrast else ""
            origin = studies.Origin(given, name, (name,), inputs, settings, label, series_sha256=_sha256(uid))
            unread.append(studies.Unread(origin, partial(read_dicom, slices, contrast, options)))
    return studies.FoundStudies(unread, bad, sorted_files.others)


def _names_of(series: Mapping[str, Members], root: Path | None) -> dict[str, str]:
    """Name the results of each series, by its UID."""
    alone = root is None and len({path for members in series.values() for path, _ in members}) == 1
    names = {}
    for uid, members in series.items():
        common = Path(os.path.commonpath([path.absolute().parent for path, _ in members]))
        below = () if root is None else common.relative_to(root.absolute()).parts
        number = _sha256(uid)[:8]
        with suppress(TypeError, ValueError, OverflowError):
            number = str(int(members[0][1].get("SeriesNumber", None)))
        place = studies.safe_name((root or common).resolve().name), *below, f"series-{number}"
        names[uid] = studies.safe_name(members[0][0].stem) if alone else "/".join(place)
    alike = Counter(names.values())
    return {uid: name if alike[name] == 1 else f"{name}-{_sha256(uid)[:8]}" for uid, name in names.items()}


def _sha256(uid: str) -> str:
    return hashlib.sha256(uid.encode()).hexdigest()


def _contrasts_of(members: Members) -> dict[str, Members]:
    """The slices of a series by their contrast, such as `echo2-type1`; the only one has no name."""
    columns: list[Sequence[Any]] = [
        [tuple(comparable(header, keyword) for keyword in keywords) for _, header in members]
        for keywords in _CONTRASTS.values()
    ]
    columns.append(_repeats(members, [*zip(*columns, strict=True)]))
    named = []
    for what, column in zip((*_CONTRASTS, "repeat"), columns, strict=True):
        numbers = {value: number for number, value in enumerate(sorted(set(column)), 1)}
        named.append([f"{what}{numbers[value]}" if len(numbers) > 1 else "" for value in column])
    parts: dict[str, Members] = {}
    for member, *names in zip(members, *named, strict=True):
        parts.setdefault("-".join(filter(None, names)), []).append(member)
    return {name: parts[name] for name in sorted(parts, key=lambda each: (len(each), each))}


def _repeats(members: Members, contrasts: Sequence[Any]) -> list[int]:
    """Count, for each slice, those of its contrast that were acquired at its place before it."""

    def acquired(at: int) -> tuple[Any, ...]:
        path, header = members[at]
        when = ("TriggerTime", "AcquisitionDate", "AcquisitionTime", "InstanceNumber")
        return *(comparable(header, keyword) for keyword in when), str(path)

    seen, repeats = Counter[Any](), [0] * len(members)
    for at in sorted(range(len(members)), key=acquired):
        header = members[at][1]
        place = comparable(header, "ImagePositionPatient"), comparable(header, "ImageOrientationPatient")
        if place[0]:
            repeats[at] = seen[contrasts[at], place]
            seen[contrasts[at], place] += 1
    return repeats


def read_dicom(
    members: Members, contrast: str, options: studies.Options, origin: studies.Origin
) -> DicomStudy:
    series, values = read_series(origin.called, members, contrast)
    odd = series.without_units
    rule = studies.chosen_rule(options, values, series.modality)
    if odd and (rule.name == "hu" or len(odd) < len(series.paths)):
        raise InputError(
            f"{len(odd)} of {len(series.paths)} slices are in no Hounsfield units: {odd[0]}",
            hint=f"export it again with its rescale, or send numbers without units: --intensity {studies.PERCENTILES}",
        )
    if options.volume is None:
        return DicomStudy(origin, studies.Slices.of(values, rule), series)
    affine = affine_of(series.headers)
    orientation = studies.orientation_of(affine)
    volume, spacing = studies.sliced(values, orientation), studies.spacing_of(affine, orientation)
    return DicomStudy(
        origin, studies.Volumes.fit(volume[None], rule, spacing, options.volume), series, orientation
    )
