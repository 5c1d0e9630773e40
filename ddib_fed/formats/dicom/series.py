"""Reads the slices of a DICOM series in their order in space, in the units of its modality.

The rule: what leaves is the pixels alone; headers are read here for order, units and warnings. Values of all slices are
treated alike.
"""

from __future__ import annotations

import io
import logging
import shlex
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import DdibError, ImageUnreadable, InputError
from ddib_fed.formats.recognition import COPY
from ddib_fed.samples.formats.decoded import Pixels

MAX_UNPACKED: Final = 1 << 27
"""Bytes of a deflated file once it is unpacked: those of 8,000 x 8,000 pixels of 16 bits."""
_PREFIX: Final = 144
"""Bytes in front of a file's meta information: preamble, mark, and the element that says its length (PS3.10 7.1)."""
MAX_VALUES: Final = 1 << 29
"""Values of a series at most, which then takes 2 GiB as float32."""
ODD_GAP: Final = 0.1
"""Share of the usual distance by which that of two slices may differ."""
# Modalities whose pictures often show the person's name, and have no BurnedInAnnotation that can be relied on.
OFTEN_BURNT_IN: Final = frozenset({"US", "XA", "RF", "SC", "OT", "ES", "XC", "GM", "SM", "DX", "CR"})
_PICTURES: Final = frozenset(
    {"MONOCHROME1", "MONOCHROME2", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"}
)
_GROUPS: Final = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
_OF_A_FRAME: Final = frozenset({
    "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices",
    "RescaleSlope", "RescaleIntercept", "RescaleType",
})  # fmt: skip
"""What an enhanced file says of a frame in functional groups (PS3.3 C.7.6.16), and any other at the top."""
SORTED_BY: Final = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "SeriesInstanceUID", "SeriesNumber", "InstanceNumber",
    "ImagePositionPatient", "ImageOrientationPatient", "BurnedInAnnotation", "RecognizableVisualFeatures",
    "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "Rows", "Columns", "BitsAllocated", *_GROUPS,
)  # fmt: skip
"""Attributes by which files are sorted into series and checked before any is read whole: many are in memory at once."""


@dataclass(frozen=True, slots=True)
class Series:
    """The slices of a series."""

    called: str
    headers: tuple[Any, ...]
    paths: tuple[Path, ...]
    warnings: tuple[str, ...]

    @property
    def modality(self) -> str:
        return str(self.headers[0].get("Modality", ""))

    @property
    def without_units(self) -> tuple[str, ...]:
        """The slices of a CT whose values are in no Hounsfield units, and why; none of another modality."""
        found = (
            zip(self.paths, map(_not_hounsfield, self.headers), strict=True) if self.modality == "CT" else ()
        )
        return tuple(f"{path} {why}" for path, why in found if why)


def pydicom() -> Any:
    """The package, which takes a while to import."""
    import pydicom as package
    import pydicom.pixels  # the package's own name stays bound to `package`

    return package


def read_header(path: Path, attributes: Sequence[str] | None = None) -> Any:
    """The dataset of a file, without pixels."""
    with _faults(path), quiet():
        only = None if attributes is None else list(attributes)
        return _dataset(path, stop_before_pixels=True, specific_tags=only)


def _dataset(path: Path, **how: Any) -> Any:
    """The dataset of a file; what functional groups say of its first frame stands at the top."""
    package = pydicom()
    meta = package.filereader.read_file_meta_info(path)
    if meta.get("TransferSyntaxUID") == package.uid.DeflatedExplicitVRLittleEndian:
        packed = path.read_bytes()[_PREFIX + meta.FileMetaInformationGroupLength :]
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, MAX_UNPACKED + 1)
        if len(content) > MAX_UNPACKED:
            raise ImageUnreadable(
                f"{path} unpacks to more than {MAX_UNPACKED} bytes",
                hop="client",
                hint="leave it out: pictures are smaller",
            )
        dataset = package.dcmread(io.BytesIO(content), force=True, **how)
        meta.TransferSyntaxUID = package.uid.ExplicitVRLittleEndian
        dataset.file_meta = meta
    else:
        dataset = package.dcmread(path, **how)
    for groups in _GROUPS:
        for macro in (element for group in (dataset.get(groups) or ())[:1] for element in group):
            items = macro.value if macro.VR == "SQ" else ()
            for element in items[0] if items else ():
                if element.keyword in _OF_A_FRAME:
                    dataset[element.tag] = element
        dataset.pop(groups, None)  # of a film they are larger than all else
    return dataset


def readable(
    members: Sequence[tuple[Path, Any]],
) -> tuple[list[tuple[Path, Any]], list[tuple[Path, DdibError]]]:
    """The slices of a series whose pixels can be read, and why others cannot; all where none can, or there is
    but one.
    """
    good: list[tuple[Path, Any]] = []
    bad: list[tuple[Path, DdibError]] = []
    for path, header in members if len(members) > 1 else ():
        try:
            _check(path, header)
            _slice(path)
        except ImageUnreadable as error:
            bad.append((path, error.kept()))
        else:
            good.append((path, header))
    return (good, bad) if good else ([*members], [])


def read_series(called: str, headers: Sequence[tuple[Path, Any]]) -> tuple[Series, NDArray[Any]]:
    """The slices of one series, and their values (N, H, W, C): uint8 colours, or float32 in units of the modality."""
    checked = [(path, header) for path, header in headers if _check(path, header)]
    ordered = in_space(checked)
    shapes = {(int(h.Rows), int(h.Columns), int(h.get("SamplesPerPixel", 1))) for _, h in ordered}
    if len(shapes) != 1:
        raise InputError(
            f"{called}: its slices have {len(shapes)} sizes",
            hop="client",
            hint="put the slices of each size into a folder of their own",
        )
    ((rows, columns, samples),) = shapes
    if len(ordered) * rows * columns * samples > MAX_VALUES:
        raise InputError(
            f"{called} has {len(ordered)} slices of {rows} x {columns} pixels, more than {MAX_VALUES} values in all",
            hop="client",
            hint="translate a part of them: ddib translate FOLDER/0*.dcm",
        )
    paths, sorted_by = zip(*ordered, strict=True)
    values = _stacked(paths, (rows, columns, samples))
    found = tuple(_warnings(called, sorted_by))
    return Series(called, tuple(read_header(path) for path in paths), paths, found), values


def in_space(headers: Sequence[tuple[Path, Any]]) -> list[tuple[Path, Any]]:
    """Slices along the normal of their plane (PS3.3 C.7.6.2.1.1), else by instance number, else by name."""

    def number(entry: tuple[Path, Any]) -> tuple[int, str]:
        return int(entry[1].get("InstanceNumber", None) or 0), str(entry[0])

    places = [position(header) for _, header in headers]
    if any(place is None for place in places) or not is_parallel([header for _, header in headers]):
        return sorted(headers, key=number)
    order = sorted(range(len(headers)), key=lambda at: (round(places[at] or 0.0, 4), number(headers[at])))
    return [headers[at] for at in order]


def position(header: Any) -> float | None:
    """Distance of a slice from the origin along its normal, mm; None where the header does not say."""
    directions, corner = header.get("ImageOrientationPatient"), header.get("ImagePositionPatient")
    if not directions or not corner or len(directions) != 6 or len(corner) != 3:
        return None
    across, down = (np.array([float(v) for v in directions[i : i + 3]]) for i in (0, 3))
    return float(np.cross(across, down) @ np.array([float(v) for v in corner]))


def is_parallel(headers: Sequence[Any]) -> bool:
    """Whether all slices have the same direction, or none says any."""
    found = [header.get("ImageOrientationPatient") for header in headers]
    if any(each is None or len(each) != 6 for each in found):
        return True
    directions = np.array([[float(v) for v in each] for each in found])
    return bool(np.abs(directions - directions[0]).max() < 1e-3)


def _check(path: Path, header: Any) -> bool:
    """Whether a file is one plain picture."""
    if "Rows" not in header or "Columns" not in header:
        raise ImageUnreadable(
            f"{path} is {header.get('SOPClassUID', 'a DICOM file')} without pixels",
            hop="client",
            hint="leave it out: a series of pictures is expected",
        )
    frames = int(header.get("NumberOfFrames", None) or 1)
    if frames > 1:
        raise ImageUnreadable(
            f"{path} has {frames} frames; a series of single pictures is expected",
            hop="client",
            hint="split it into single frames first, e.g. by emf2sf of dcm4che",
        )
    kind, bits = str(header.get("PhotometricInterpretation", "")), int(header.get("BitsAllocated", 0))
    if kind not in _PICTURES or bits not in {8, 16}:
        raise ImageUnreadable(
            f"{path} holds {kind or 'no photometric interpretation'} of {bits} bits, which is not translated",
            hop="client",
            hint="MONOCHROME1, MONOCHROME2, RGB and YBR of 8 or 16 bits are",
        )
    return True


@dataclass(frozen=True, slots=True)
class _Slice:
    """One file's pixels."""

    values: NDArray[Any]
    padded: NDArray[np.bool_] | None = None
    dark_is_more: bool = False


def _stacked(paths: Sequence[Path], shape: tuple[int, int, int]) -> NDArray[Any]:
    """(N, H, W, C) of a series: more is brighter, and padding has the least value of all slices."""
    values: NDArray[Any] = np.empty(0)
    padded: dict[int, NDArray[np.bool_]] = {}
    turned: list[int] = []
    least, most = np.inf, -np.inf
    for at, path in enumerate(paths):
        found = _slice(path)
        if not at:
            values = np.empty((len(paths), *shape), dtype=found.values.dtype)
        values[at] = found.values
        measured = found.values if found.padded is None else found.values[~found.padded]
        if measured.size:
            least, most = min(least, float(measured.min())), max(most, float(measured.max()))
        if found.padded is not None:
            padded[at] = found.padded
        if found.dark_is_more:
            turned.append(at)
    if least > most:  # all of it is padding
        return values
    for at in turned:
        values[at] = least + most - values[at]
    for at, where in padded.items():
        values[at][where] = least
    return values


def _slice(path: Path) -> _Slice:
    """The pixels of one file."""
    package = pydicom()
    with _faults(path), quiet():
        dataset = _dataset(path)
        _require_size(path, dataset)
        pixels = package.pixels.pixel_array(dataset)
        if pixels.ndim == 3:
            if pixels.dtype != np.uint8:
                raise ImageUnreadable(
                    f"{path} holds colours of {pixels.dtype}, 8 bits are read", hop="client"
                )
            return _Slice(np.ascontiguousarray(pixels))
        padded = _padded(pixels, dataset)
        values = _in_units(pixels, dataset)
    return _Slice(values[:, :, None], padded, dataset.PhotometricInterpretation == "MONOCHROME1")


def _require_size(path: Path, dataset: Any) -> None:
    """Return if a compressed picture has the size that the header says, before it is decoded."""
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    from PIL import Image, UnidentifiedImageError

    frame = io.BytesIO(pydicom().encaps.get_frame(dataset.PixelData, 0, number_of_frames=1))
    with suppress(UnidentifiedImageError), Image.open(frame) as picture:  # run lengths name no size
        if picture.size != (dataset.Columns, dataset.Rows):
            raise ImageUnreadable(
                f"{path} holds {picture.height} x {picture.width} pixels, its header says {dataset.Rows} x "
                f"{dataset.Columns}",
                hop="client",
                hint=COPY,
            )


def _in_units(pixels: Pixels, dataset: Any) -> Pixels:
    """Stored numbers by the modality's table or rescale (PS3.3 C.11.1), float32; without either themselves."""
    if dataset.get("ModalityLUTSequence"):
        made: Pixels = pydicom().pixels.apply_modality_lut(pixels, dataset)
    else:
        slope, intercept = (dataset.get(f"Rescale{part}") for part in ("Slope", "Intercept"))
        made = pixels * (1.0 if slope is None else float(slope)) + float(intercept or 0)
    return made.astype(np.float32)


def _padded(pixels: Pixels, dataset: Any) -> NDArray[np.bool_] | None:
    """Where pixels are padding; None where the header names none."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return None
    last = dataset.get("PixelPaddingRangeLimit")
    ends = np.array([int(first), int(first if last is None else last)]).astype(f"{pixels.dtype.kind}2")
    padded: NDArray[np.bool_] = (pixels >= ends.min()) & (pixels <= ends.max())
    return padded


def _not_hounsfield(header: Any) -> str:
    """Why the values of a CT's slice are in no Hounsfield units; empty where they are (PS3.3 C.11.1.1.2)."""
    if tables := header.get("ModalityLUTSequence"):
        kind = tables[0].get("ModalityLUTType")
    elif None in {header.get("RescaleSlope"), header.get("RescaleIntercept")}:
        return "has no rescale slope and intercept"
    else:
        kind = header.get("RescaleType") or "HU"
    return "" if kind == "HU" else f"has the rescale type {kind}"


def _warnings(called: str, headers: Sequence[Any]) -> Iterator[str]:
    """What a person has to know before pixels leave this machine."""
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
    places = [position(header) for header in headers]
    if len(headers) > 2 and all(place is not None for place in places):
        gaps = np.diff([place or 0.0 for place in places])
        usual = float(np.median(gaps))
        odd = int(np.count_nonzero(np.abs(gaps - usual) > ODD_GAP * abs(usual) + 1e-4))
        if odd:
            yield f"{called}: {odd} of {len(gaps)} distances between slices are not {usual:.3g} mm: is a slice missing?"


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, pydicom neither warns nor logs: its remarks on values that a file should not have hold these values."""
    logger = logging.getLogger("pydicom")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Maps what pydicom and its decoders raise on damaged files to ours."""
    try:
        yield
    except DdibError:
        raise
    except Exception as error:
        raise ImageUnreadable(
            f"{path} cannot be read as DICOM: {type(error).__name__}: {error}"[:400],
            hop="client",
            hint=f"dcmdjpeg or gdcmconv --raw decompress it; is it complete? (dcmdump {shlex.quote(str(path))})",
        ) from error
