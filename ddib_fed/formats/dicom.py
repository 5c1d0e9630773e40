"""Sorts DICOM files into series and contrasts, and reads their slices in their order in space, in the modality's units.

What leaves is the pixels alone; headers are read for order, units and warnings.
"""

from __future__ import annotations

import filecmp
import logging
import shlex
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, MutableSequence, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import DdibError, ImageUnreadable, InputError
from ddib_fed.formats import is_dicom
from ddib_fed.studies import COPY, ImageLimits, beginning_of, faults, memory_of_values, parts_of

DECODING: Final = 12
"""Bytes of a value of one slice that decoding it takes at most, beside the values of all slices."""
_FREE_RUNS: Final = 1 << 24  # bytes that run lengths may become whatever the picture's size
MAX_INFLATED: Final = 1 << 28  # a deflated file may inflate to this many bytes
MAX_SCANS: Final = 64  # scans of a JPEG's frame: each is a passage over all pixels, whatever its own size
ODD_GAP: Final = 0.1  # a distance between slices may differ from the median by this share of it
# Modalities whose pictures often show the person's name, and have no BurnedInAnnotation that can be relied on.
OFTEN_BURNT_IN: Final = frozenset({"US", "XA", "RF", "SC", "OT", "ES", "XC", "GM", "SM", "DX", "CR"})
_PICTURES: Final = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
)
SORTED_BY: Final = [
    "SOPClassUID", "SOPInstanceUID", "Modality", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber",
    "InstanceNumber", "ImagePositionPatient", "ImageOrientationPatient", "BurnedInAnnotation",
    "RecognizableVisualFeatures", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns",
    "BitsAllocated", "SyntheticData", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
    "ImageType", "ComplexImageComponent", "EchoTime", "EchoNumbers", "DiffusionBValue", "InversionTime",
    "TemporalPositionIdentifier", "TriggerTime", "AcquisitionDate", "AcquisitionTime",
]  # fmt: skip
"""Attributes by which files are sorted into series and checked before any is read whole: many are in memory at once."""
ENHANCED: Final = {
    f"1.2.840.10008.5.1.4.1.1.{kind}": modality
    for modality, kinds in {"CT": ("2.1", "2.2"), "MR": ("4.1", "4.4"), "PT": ("130", "128.1")}.items()
    for kind in kinds
}
"""Enhanced CT, MR and PET, and the legacy converted ones: each frame of such a file is a slice."""
_FLATTENED: Final = (
    "PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence",
    "FrameContentSequence", "MREchoSequence", "MRDiffusionSequence", "MRImageFrameTypeSequence",
    "CTImageFrameTypeSequence", "PETFrameTypeSequence",
)  # fmt: skip
"""Functional groups whose attributes a plain slice has in its header."""


Members = list[tuple[Path, Any]]
"""Path and header (`SORTED_BY`) of each slice of a series; slices that are frames of one file share its path."""
_MAGNITUDES_ALONE: Final = "phase, real or imaginary picture"
_NO_ANATOMY: Final = {
    "localizer": {"LOCALIZER", "SCOUT", "TOPOGRAM"},
    "mosaic of slices": {"MOSAIC"},
    "screen or protocol": {"SCREEN SAVE", "CT_SOM5 PROT"},
    _MAGNITUDES_ALONE: {"P", "PHASE", "PHASE MAP", "VELOCITY", "VELOCITY MAP", "R", "REAL", "I", "IMAGINARY"},
}  # fmt: skip
"""Kinds of pictures by the third and later values of ImageType; the last kind counts for MR alone."""


@dataclass(frozen=True, slots=True)
class Series:
    headers: tuple[Any, ...]
    paths: tuple[Path, ...]
    warnings: tuple[str, ...]
    contrast: str = ""
    """Its name among the contrasts of the series, such as `echo2-type1`; empty for the only one."""

    @property
    def modality(self) -> str:
        return str(self.headers[0].get("Modality", ""))

    @property
    def without_units(self) -> tuple[str, ...]:
        """Name the slices of a CT whose values are in no Hounsfield units, and why; none for another modality."""
        pairs = zip(self.paths, map(_not_hounsfield, self.headers), strict=True)
        return tuple(f"{path} {why}" for path, why in pairs if why and self.modality == "CT")


def _bad(why: str, hint: str, kind: type[DdibError] = ImageUnreadable) -> DdibError:
    return kind(why, hop="client", hint=hint)


def pydicom() -> Any:
    """Return the package, silenced: its log and its warnings quote values of headers."""
    import pydicom as package
    import pydicom.pixels  # the package's own name stays bound to `package`

    import ddib_fed.formats.dicom_lossless  # noqa: F401  # in place of GDCM

    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # each import sets it anew
    warnings.filterwarnings("ignore", module=r"pydicom\b")
    return package


def read_header(path: Path, attributes: list[str] | None = None) -> Any:
    """Return the dataset of a file without pixels; raise ImageUnreadable if one of its values is malformed."""
    package = pydicom()
    with _faults(path):
        meta = package.filereader.read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == package.uid.DeflatedExplicitVRLittleEndian:
            _require_inflated(path, meta)
        header = package.dcmread(path, stop_before_pixels=True, specific_tags=attributes)
        for each in (header.file_meta, header):  # pydicom reads a value, or fails to, when it is first used
            each.walk(lambda _, element: element.value)
        return header


def _require_inflated(path: Path, meta: Any) -> None:
    """Raise ImageUnreadable if a deflated file becomes too large, before all of it is in memory."""
    size, inflate = 0, zlib.decompressobj(-zlib.MAX_WBITS)
    with path.open("rb") as file:
        # Preamble, prefix, and the element of the length itself.
        file.seek(144 + int(meta.FileMetaInformationGroupLength))
        while size <= MAX_INFLATED and (part := file.read(1 << 16)):
            size += len(inflate.decompress(part))
    if size > MAX_INFLATED:
        why = f"{path} is deflated, and inflates to more than {MAX_INFLATED >> 20} MiB"
        raise _bad(why, "dcmconv +te IN OUT   (of dcmtk)")


def slices_of(header: Any) -> list[Any]:
    """Return a plain header for each frame of an enhanced file (PS3.3 C.7.6.16), or the header itself.

    A frame has its number, from 1, as `ReferencedFrameNumber`.
    """
    frames = header.get("PerFrameFunctionalGroupsSequence")
    if str(header.get("SOPClassUID", "")) not in ENHANCED or not frames:
        return [header]
    whole = pydicom().Dataset()
    left = ("NumberOfFrames", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    whole.update({e.tag: e for e in header if e.keyword not in left})
    slices = []
    for number, own in enumerate(frames, 1):
        frame = pydicom().Dataset()
        frame.update(whole)
        for groups in (*header.get("SharedFunctionalGroupsSequence", ()), own):
            for items in (groups.get(keyword) for keyword in _FLATTENED):
                frame.update(items[0] if items else {})
        frame.InstanceNumber = frame.ReferencedFrameNumber = number
        slices.append(frame)
    return slices


def frame_of(header: Any) -> int:
    """Return the index of a slice among the frames of its file, from 0."""
    return int(header.get("ReferencedFrameNumber", 1)) - 1


def readable(members: Members) -> tuple[Members, list[tuple[Path, DdibError]]]:
    """Decode all slices; return those of whole files, and the error of each file with a bad frame."""
    good: Members = []
    bad: list[tuple[Path, DdibError]] = []
    for path, entries in _by_file(members).items():
        slices = [(path, header) for _, header in entries]
        try:
            _require_readable(str(path), slices)
            with _faults(path):
                in_space(slices)  # raises if an instance number is none
            for _ in _planes(path, [frame_of(header) for _, header in slices]):
                pass
        except InputError as error:
            bad.append((path, error.kept()))
        else:
            good += slices
    return good, bad


def _by_file(members: Members) -> dict[Path, list[tuple[int, Any]]]:
    """Group slices by file, with their index among all."""
    groups: dict[Path, list[tuple[int, Any]]] = {}
    for at, (path, header) in enumerate(members):
        groups.setdefault(path, []).append((at, header))
    return groups


def read_series(called: str, headers: Members, contrast: str = "") -> tuple[Series, NDArray[Any]]:
    """Return one contrast of a series and its values (N, H, W, C): uint8 colours, or float32 in its units."""
    _require_readable(called, headers)
    ordered = in_space(headers)
    paths, sorted_by = zip(*ordered, strict=True)
    values: NDArray[Any] = np.empty(0)
    read: list[Any] = [None] * len(paths)
    for path, entries in _by_file(ordered).items():
        places, frames = [at for at, _ in entries], [frame_of(header) for _, header in entries]
        for at, (header, plane) in zip(places, _planes(path, frames), strict=True):
            if not values.size:
                values = np.empty((len(paths), *plane.shape), dtype=plane.dtype)
            values[at], read[at] = plane, header
    if values.dtype.kind == "f":
        least = np.fmin.reduce(values, axis=None)
        for plane in values:  # padding is NaN until here
            plane[np.isnan(plane)] = 0 if np.isnan(least) else least
    transformed = {bool(each.get("ModalityLUTSequence")) or "RescaleSlope" in each for each in read}
    modality = read[0].get("Modality")  # of CT the rule of intensity decides
    if (len(transformed) > 1 and modality != "CT") or (modality == "PT" and transformed != {True}):
        why = f"{called}: slices have no rescale slope, so their values are in no common units"
        raise _bad(why, "export it again with its rescale", InputError)
    return Series(tuple(read), paths, tuple(_warnings(called, sorted_by)), contrast), values


def in_space(members: Members) -> Members:
    """Sort slices along the normal of their plane (PS3.3 C.7.6.2.1.1), else by instance number, else by name."""
    places = _places([header for _, header in members])

    def order(at: int) -> tuple[float, int, str]:
        path, header = members[at]
        place = 0.0 if places is None else round(places[at], 4)
        return place, int(header.get("InstanceNumber", None) or 0), str(path)

    return [members[at] for at in sorted(range(len(members)), key=order)]


def floats(header: Any, keyword: str, count: int) -> NDArray[np.float64] | None:
    """Return an attribute's numbers; None unless there are `count` of them."""
    value = header.get(keyword)
    with suppress(TypeError, ValueError):  # what is no number says nothing
        return np.array([float(v) for v in value]) if value and len(value) == count else None
    return None


def _places(headers: Sequence[Any]) -> list[float] | None:
    """Return distances of slices from the origin along their normal, mm; None unless all are placed and parallel."""
    places = []
    for header in headers:
        directions = floats(header, "ImageOrientationPatient", 6)
        corner = floats(header, "ImagePositionPatient", 3)
        if directions is None or corner is None:
            return None
        places.append(float(np.cross(directions[:3], directions[3:]) @ corner))
    return places if is_parallel(headers) else None


def affine_of(headers: Sequence[Any]) -> NDArray[np.float64]:
    """Return the affine from slice, row and column to mm (right, anterior, superior; PS3.3 C.7.6.2.1.1)."""
    first, last = headers[0], headers[-1]
    directions, spacing = floats(first, "ImageOrientationPatient", 6), floats(first, "PixelSpacing", 2)
    corners = [floats(header, "ImagePositionPatient", 3) for header in (first, last)]
    placed = (places := _places(headers)) is not None and (np.diff(places) > 1e-3).all()
    if directions is None or spacing is None or corners[0] is None or corners[1] is None or not placed:
        raise ImageUnreadable(
            "its slices are no volume, which the source's model takes: each must say where it lies, in parallel and "
            "no two at one place",
            hint="a source whose model takes slices (ddib domains)",
        )
    across, down = directions[:3] * spacing[1], directions[3:] * spacing[0]
    through = np.cross(directions[:3], directions[3:])
    if len(headers) > 1:
        through = (corners[1] - corners[0]) / (len(headers) - 1)
    affine = np.eye(4)
    affine[:3] = np.stack([through, down, across, corners[0]], axis=1) * [[-1.0], [-1.0], [1.0]]
    return affine


def is_parallel(headers: Sequence[Any]) -> bool:
    """Return whether all slices have the same direction, or the direction of one is unknown."""
    orientations = [floats(header, "ImageOrientationPatient", 6) for header in headers]
    return any(each is None for each in orientations) or bool(
        np.ptp(np.array(orientations), axis=0).max() < 1e-3
    )


def _check(path: Path, header: Any) -> None:
    """Raise ImageUnreadable unless a header is that of one plain picture."""
    frames = int(header.get("NumberOfFrames", None) or 1)
    kind, bits = str(header.get("PhotometricInterpretation", "")), int(header.get("BitsAllocated", 0))
    if "Rows" not in header or "Columns" not in header:
        what = f"is {header.get('SOPClassUID', 'a DICOM file')} without pixels"
        how = "leave it out: a series of pictures is expected"
    elif "ReferencedFrameNumber" not in header and (frames > 1 or header.get("SOPClassUID") in ENHANCED):
        what = f"has {frames} frames and no functional groups, which say what each of them shows"
        if header.get("SOPClassUID") not in ENHANCED:
            what = f"has {frames} frames, which are read of enhanced CT, MR and PET alone"
        how = "make a series of single pictures of it first, e.g. by emf2sf of dcm4che"
    elif kind not in _PICTURES or bits not in {8, 16}:
        what = f"holds {kind or 'no photometric interpretation'} of {bits} bits, which is not translated"
        how = "MONOCHROME1, MONOCHROME2, RGB and YBR of 8 or 16 bits are"
    else:
        return
    raise _bad(f"{path} {what}", how)


def _require_readable(called: str, members: Members) -> None:
    """Raise InputError unless slices are plain pictures of one size, and there is memory for their values, the largest
    file and the decoding of one slice.
    """
    with _faults(members[0][0]):
        for path, header in members:
            _check(path, header)
        sizes = {(int(h.Rows), int(h.Columns), int(h.get("SamplesPerPixel") or 1)) for _, h in members}
        if len(sizes) != 1:
            why = f"{called}: its slices have {len(sizes)} sizes"
            raise _bad(why, "put the slices of each size into a folder of their own", InputError)
        ((rows, columns, samples),) = sizes
        values = rows * columns * samples
        need = memory_of_values(len(members) * values, 4 if samples == 1 else 1) + DECODING * values
        need += max(path.stat().st_size for path, _ in members)
        hint = "translate a part of it: ddib translate FOLDER/0*.dcm, or files of fewer frames"
        ImageLimits().check_memory(need, hint, f"{called}, {len(members)} x {rows} x {columns} pixels,")


def _planes(path: Path, frames: Sequence[int]) -> Iterator[tuple[Any, NDArray[Any]]]:
    """Yield the header and the values (H, W, C) of frames of one file; padding is NaN."""
    package = pydicom()
    with _faults(path), warnings.catch_warnings(action="ignore"):  # decoders warn, too
        whole, source = read_header(path), path  # type: Any, Any
        headers, syntax = slices_of(whole), whole.file_meta.TransferSyntaxUID
        if syntax.is_encapsulated or syntax.is_deflated:
            source = package.dcmread(path)
        if syntax.is_encapsulated:
            count = int(whole.get("NumberOfFrames", None) or 1)
            for frame in package.encaps.generate_frames(source.PixelData, number_of_frames=count):
                _require_size(path, whole, frame)
        decoders = package.pixels.get_decoder(syntax).available_plugins
        # GDCM, where it is installed, ends the whole process on some damaged frames.
        plugin = next((p for p in ("pydicom", "imagecodecs", "pylibjpeg", "pillow") if p in decoders), "")
        decoded = package.pixels.iter_pixels(source, indices=frames, decoding_plugin=plugin)
        for at, pixels in zip(frames, decoded, strict=True):
            yield headers[at], _in_units(path, headers[at], pixels)


def _in_units(path: Path, header: Any, pixels: NDArray[Any]) -> NDArray[Any]:
    if pixels.ndim == 3:
        if pixels.dtype != np.uint8:
            raise ImageUnreadable(f"{path} holds colours of {pixels.dtype}, 8 bits are read", hop="client")
        return np.ascontiguousarray(pixels)
    # By the modality's table or rescale (PS3.3 C.11.1); without either the stored numbers themselves.
    if header.get("ModalityLUTSequence"):
        values: NDArray[Any] = pydicom().pixels.apply_modality_lut(pixels, header).astype(np.float32)
    else:
        slope, intercept = (header.get(f"Rescale{part}") for part in ("Slope", "Intercept"))
        values = np.empty(pixels.shape, np.float32)
        for part in parts_of(pixels):
            values[part] = pixels[part] * (1.0 if slope is None else float(slope)) + float(intercept or 0)
    if _is_negative(header):
        last = np.float32((1 << int(header.BitsStored)) - 1 if pixels.dtype.kind == "u" else -1)
        np.subtract(last, values, out=values)
    if (first := header.get("PixelPaddingValue")) is not None:
        last = header.get("PixelPaddingRangeLimit")
        ends = np.array([int(first), int(first if last is None else last)])
        ends = ends.astype(f"{pixels.dtype.kind}2")
        values[(pixels >= ends.min()) & (pixels <= ends.max())] = np.nan
    return values[:, :, None]


def _is_negative(header: Any) -> bool:
    """Return whether stored numbers are grey levels of a film, the least of which is white (PS3.3 C.7.6.3.1.2).

    How a value is displayed does not change it: what a modality transform gives stays as it is, and so does the signal
    of CT, MR and PET. The identity without a unit, which each DX has (C.8.11.3), transforms nothing.
    """
    if header.PhotometricInterpretation != "MONOCHROME1" or header.get("ModalityLUTSequence"):
        return False
    rescale = tuple(header.get(f"Rescale{part}") for part in ("Slope", "Intercept", "Type"))
    units = rescale not in {(None, None, None), (1, 0, None), (1, 0, "US")}
    return not units and header.get("Modality") not in {"CT", "MR", "PT"}


def _require_size(path: Path, dataset: Any, frame: bytes) -> None:
    """Raise unless a compressed picture has the size that the header says, before it is decoded."""
    said = int(dataset.Rows), int(dataset.Columns), int(dataset.get("SamplesPerPixel", 1))
    if dataset.file_meta.TransferSyntaxUID == pydicom().uid.RLELossless:
        _require_runs(path, frame, said[0] * said[1])
        return
    size = _jpeg_size(frame) or _jpeg_2000_size(frame)
    if size is None or frame.count(b"\xff\xda") > MAX_SCANS:
        raise ValueError(f"a compressed picture states no size, or holds more than {MAX_SCANS} scans")
    if size != said:
        differ = 2 if size[:2] != said[:2] else 3
        came, stated = (" x ".join(map(str, each[:differ])) for each in (size, said))
        raise _bad(f"{path} holds {came} pixels, its header says {stated}", COPY)


def _require_runs(path: Path, frame: bytes, pixels: int) -> None:
    """Raise if run lengths (PS3.5 G.3) become many more bytes than a picture has: its decoder has no bound."""
    count, *starts = struct.unpack("<16L", frame[:64])
    for start, end in pairwise([*starts[:count], len(frame)]):
        at, size, most = start, 0, max(pixels, _FREE_RUNS)
        while at < min(end, len(frame)) and size <= most < 64 * (end - start):  # two bytes become at most 128
            run = frame[at]
            at, size = (at + run + 2, size + run + 1) if run < 128 else (at + 2, size + 257 - run)
        if size > most:
            raise _bad(f"{path} holds run lengths of more than its {pixels} pixels", COPY)


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int] | None:
    """Height, width and samples by the first marker of a JPEG 2000 codestream, perhaps in boxes (ITU-T T.800 A.5.1)."""
    begins = b"\xff\x4f\xff\x51"
    at = 0 if frame[:1] == b"\xff" else frame.find(begins)  # a comment of a JPEG may look like one
    is_hidden = at > 0 and frame.count(begins) > 1  # one box may hold what looks like another
    if frame[at : at + 4] != begins or is_hidden or len(frame) < at + 42:
        return None
    right, bottom, left, top, samples = struct.unpack(">4L16xH", frame[at + 8 : at + 42])
    return bottom - top, right - left, samples


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    """Height, width and samples by the frame header of a JPEG or JPEG-LS (ITU-T T.81 B.2.2, T.87 C.2.2)."""
    at = 2 if frame[:2] == b"\xff\xd8" else len(frame)
    while at + 10 <= len(frame) and frame[at] == 0xFF:
        kind = frame[at + 1]
        if kind == 0xF7 or (0xC0 <= kind <= 0xCF and kind not in {0xC4, 0xC8, 0xCC}):
            height, width, samples = struct.unpack(">HHB", frame[at + 5 : at + 10])
            return height, width, samples
        if kind < 0xC0 or 0xD0 <= kind <= 0xDA:  # no segment: a decoder would go on at another place
            return None
        at += 1 if kind == 0xFF else 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _not_hounsfield(header: Any) -> str:
    """Say why the values of a CT's slice are in no Hounsfield units; empty if they are (PS3.3 C.11.1.1.2)."""
    if tables := header.get("ModalityLUTSequence"):
        kind = tables[0].get("ModalityLUTType")
    elif None in {header.get("RescaleSlope"), header.get("RescaleIntercept")}:
        return "has no rescale slope and intercept"
    else:
        kind = header.get("RescaleType") or "HU"
    return "" if kind == "HU" else f"has the rescale type {kind}"


def _warnings(called: str, headers: Sequence[Any]) -> Iterator[str]:
    """Yield warnings that a user must see before pixels leave this machine."""
    marks = {str(header.get("BurnedInAnnotation", "")).upper() for header in headers}
    modality = str(headers[0].get("Modality", ""))
    if "YES" in marks:
        yield (
            f"{called}: burnt-in text: the header says that pixels show text, which may be a name; "
            "text in pixels leaves with them"
        )
    elif marks != {"NO"} and modality in OFTEN_BURNT_IN:
        yield (
            f"{called}: pictures of modality {modality} often have burnt-in text, and the header does not say that "
            "they have none; look at them first"
        )
    if str(headers[0].get("RecognizableVisualFeatures", "")).upper() == "YES":
        yield f"{called}: the header says that a person may be recognised by the pixels"
    if not is_parallel(headers):
        yield f"{called}: the slices are not parallel; they are taken in the order of their instance numbers"
        return
    if len(headers) > 2 and (places := _places(headers)) is not None:
        gaps = np.diff(places)
        usual = float(np.median(gaps))
        odd = int(np.count_nonzero(np.abs(gaps - usual) > ODD_GAP * abs(usual) + 1e-4))
        if odd:
            yield f"{called}: {odd} of {len(gaps)} distances between slices are not {usual:.3g} mm: is a slice missing?"


def _faults(path: Path) -> AbstractContextManager[None]:
    hint = f"dcmdjpeg or gdcmconv --raw decompress it; is it complete? (dcmdump {shlex.quote(str(path))})"
    return faults(f"{path} cannot be read as DICOM", hint, "client")


def readable_syntaxes() -> list[str]:
    """List the transfer syntaxes for which a decoder is installed, uncompressed ones first."""
    uids = pydicom().uid
    syntaxes = [uids.ExplicitVRLittleEndian, uids.ImplicitVRLittleEndian, uids.ExplicitVRBigEndian]
    for syntax in (uids.DeflatedExplicitVRLittleEndian, *uids.AllTransferSyntaxes):
        with suppress(NotImplementedError):  # pydicom raises it for a syntax that it has no decoder for
            if syntax not in syntaxes and pydicom().pixels.get_decoder(syntax).is_available:
                syntaxes.append(syntax)
    return syntaxes


@dataclass(frozen=True, slots=True)
class SortedFiles:
    series: Mapping[str, Members]
    unreadable: tuple[tuple[Path, DdibError], ...]
    others: Counter[str]

    def require_pictures(self, given: Path) -> None:
        """Raise ImageUnreadable if the files have no picture, readable or not."""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.others.items())
        why = f"{given} holds no DICOM pictures of anatomy{kinds and ': '}{kinds}"
        if not self.series and not self.unreadable:
            raise _bad(why, "dcmdump +P ImageType FILE shows its kind; for a DICOMDIR name its folder")


def sort_files(paths: Iterable[Path]) -> SortedFiles:
    """Sort files into series by their headers; count files that show no anatomy, and copies."""
    pictures: dict[str, Members] = {}
    unreadable: list[tuple[Path, DdibError]] = []
    others: Counter[str] = Counter()
    for path in paths:
        try:
            header = _sorted_header(path)
        except ImageUnreadable as error:
            unreadable.append((path, error.kept()))
            continue
        if "Rows" in header:
            pictures.setdefault(str(header.SOPInstanceUID), []).append((path, header))
        elif kind := _class_without_pixels(header):
            others[kind] += 1
        else:
            kind = str(header.get("SOPClassUID") or "a DICOM file of no known class")
            ends = f"{path} is {pydicom().uid.UID(kind).name}, and ends before its pixels: it is not complete"
            unreadable.append((path, _bad(ends, COPY)))
    series: dict[str, Members] = {}
    for (path, header), *more in pictures.values():
        others["copies of other DICOM files"] += len(more)
        if unlike := [other for other, _ in more if not filecmp.cmp(path, other, shallow=False)]:
            why = f"{path} and {unlike[0]} have the same SOP Instance UID and different contents"
            hint = "remove the one that is wrong, or translate each of them in a folder of its own"
            unreadable += [(each, _bad(why, hint, InputError)) for each in (path, *unlike)]
            continue
        for each in slices_of(header):
            if what := no_anatomy(each):
                others[what] += 1
            else:
                series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((path, each))
    return SortedFiles(series, tuple(unreadable), +others)


def checked_header(path: Path) -> Any:
    """Return a picture's attributes of SORTED_BY; raise InputError if it cannot be translated by its header.

    What is synthetic already is refused: a result that comes back into the PACS would be routed again, without end.
    """
    header = _sorted_header(path)
    if header.get("SyntheticData") == "YES":
        raise _bad(f"{path} is synthetic itself", "route other series alone")
    _require_readable(str(path), [(path, each) for each in slices_of(header)])
    return header


def _sorted_header(path: Path) -> Any:
    """Return a file's attributes of SORTED_BY; raise ImageUnreadable if it is a picture without its UIDs."""
    with path.open("rb") as file:
        begins = is_dicom(file)
    if not begins:
        what, how = beginning_of(path)
        raise _bad(f"{path} does not begin as DICOM files do: it {what}", how)
    header = read_header(path, SORTED_BY)
    why, needed = "", ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID")
    with _faults(path):
        slices_of(header)  # raises if a functional group is none
        if "Rows" in header and not all(header.get(name) for name in needed):
            why = "has no UID of its class, its series or its own, so nothing can be derived from it"
        frames = int(header.get("NumberOfFrames", None) or 1)
        if (groups := header.get("PerFrameFunctionalGroupsSequence")) and len(groups) != frames:
            why = f"has {frames} frames, and functional groups of {len(groups)}"
    if why:
        raise _bad(f"{path} {why}", "export it again")
    return header


def _class_without_pixels(header: Any) -> str:
    """Name the class of a file that is no picture; empty for a picture or an unknown class."""
    uids = pydicom().uid
    of_file = str(header.file_meta.get("MediaStorageSOPClassUID", ""))
    classes = {of_file, str(header.get("SOPClassUID", ""))}
    uid = uids.UID(max(classes))
    if of_file == uids.MediaStorageDirectoryStorage:
        return "DICOMDIR"
    if len(classes) > 1 or not uid:
        return ""
    if uid.is_private:
        return "DICOM file of a private class without pixels"
    is_other = uid.type == "SOP Class" and "Image" not in uid.name
    return f"DICOM {uid.name.removesuffix(' Storage')}" if is_other else ""


def no_anatomy(header: Any) -> str:
    """Name the type of a picture that shows no slice of anatomy; empty for a slice."""
    modality, types = header.get("Modality"), ("FrameType" if "FrameType" in header else "ImageType")
    words = {text.upper() for _, text in comparable(header, types)[2:]}
    words.add(str(header.get("ComplexImageComponent")))
    for what, known in _NO_ANATOMY.items():
        if words & known and (modality == "MR" or what != _MAGNITUDES_ALONE):
            return f"DICOM {what}"
    colours = modality in {"CT", "MR", "PT"} and header.get("SamplesPerPixel") == 3
    return "DICOM colour map" if colours else ""


def comparable(header: Any, keyword: str) -> tuple[tuple[float, str], ...]:
    """Return the values of an attribute in a form that can be sorted; empty if none is valid."""
    with suppress(TypeError, ValueError, OverflowError):
        content = header.get(keyword)
        values = content if isinstance(content, MutableSequence) else [content]
        kept = [value for value in values if value not in {None, ""}]
        return tuple((0.0, v.strip()) if isinstance(v, str) else (round(float(v), 3), "") for v in kept)
    return ()
