"""MetaImage (.mha, .mhd) and NRRD (.nrrd, .nhdr): a volume or a slice, and one file of the same geometry out.

Both have a header of text, then the values, deflated or not, here or in a file beside it. Of the input's header only
its place in space goes into the output.
"""

from __future__ import annotations

import io
import math
import zlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddib_fed import __version__, studies
from ddib_fed.errors import ImageUnreadable

_LONGEST_HEADER: Final = 1 << 16
_PIECE: Final = 1 << 20
_EITHER: Final = zlib.MAX_WBITS + 32  # a header of zlib or of gzip
_ONE_FILE: Final = "write it as one .mha or .nrrd file, e.g. in 3D Slicer or by SimpleITK"
# Of MetaIO's types, long has four bytes on every machine.
_META: Final = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_META_PLACE: Final = (
    "TransformMatrix", "Offset", "Position", "Origin", "CenterOfRotation", "AnatomicalOrientation", "ElementSpacing",
)  # fmt: skip
_NRRD: Final = {
    name: kind
    for kind, names in {
        "i1": "signed char,int8,int8_t",
        "u1": "uchar,unsigned char,uint8,uint8_t",
        "i2": "short,short int,signed short,signed short int,int16,int16_t",
        "u2": "ushort,unsigned short,unsigned short int,uint16,uint16_t",
        "i4": "int,signed int,int32,int32_t",
        "u4": "uint,unsigned int,uint32,uint32_t",
        "i8": "longlong,long long,long long int,signed long long,signed long long int,int64,int64_t",
        "u8": "ulonglong,unsigned long long,unsigned long long int,uint64,uint64_t",
        "f4": "float",
        "f8": "double",
    }.items()
    for name in names.split(",")
}
_NRRD_PLACE: Final = ("space", "space directions", "space origin", "space units")
# What makes right, anterior and superior of the axes of a space.
_SPACES: Final = {
    "right-anterior-superior": (1, 1, 1), "ras": (1, 1, 1), "left-anterior-superior": (-1, 1, 1), "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1), "lps": (-1, -1, 1),
}  # fmt: skip


class ItkHeader(NamedTuple):
    """What a file says of its values, which lie `skip` bytes into `data`, or at its end if that is -1."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    affine: NDArray[np.float64]  # from indices to right, anterior and superior, in mm
    place: dict[str, Any]  # the fields that go into the output
    data: Path
    skip: int
    deflated: bool


@dataclass(frozen=True, slots=True)
class ItkStudy(studies.VolumeStudy):
    """A volume of MetaImage or NRRD."""

    place: dict[str, Any]
    is_longer: bool

    kind = "MetaImage or NRRD volume"

    @property
    def warnings(self) -> tuple[str, ...]:
        longer = f"{self.origin.called}: it holds more values than its header says; the others are left out"
        return (*super(ItkStudy, self).warnings, *((longer,) if self.is_longer else ()))

    def encoded(self, volume: studies.Pixels, translated: studies.StudyResults) -> bytes:
        said = f"SYNTHETIC {translated.target} ddib-fed {__version__}"
        volume = volume.reshape(*self.geometry.shape, -1)
        channels = volume.shape[-1]
        values = volume[..., 0] if channels == 1 else np.moveaxis(volume, -1, 0)
        write = _nrrd if self.origin.outputs[0].endswith(".nrrd") else _metaimage
        return write(values, channels, self.place, said)


def read_itk(origin: studies.Origin, options: studies.Options) -> ItkStudy:
    path = origin.given
    with _faults(path):
        header = read_header(path)
    geometry = studies.VolumeGeometry(header.shape, header.affine, hint=_ONE_FILE)
    plane = geometry.plane(options)
    values, is_longer = _values(path, header)
    values = geometry.planes(values, plane)
    return ItkStudy(origin, geometry.pixels(values, options), geometry, plane, header.place, is_longer)


def read_values(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return a file's values in its own axes, and its affine."""
    with _faults(path):
        header = read_header(path)
    return _values(path, header)[0], header.affine


def _faults(path: Path) -> AbstractContextManager[None]:
    what, how = studies.beginning_of(path)
    # Headers of text have no beginning of their own; another format's says what the file is.
    is_other = how != studies.COPY
    return studies.faults(f"{path}: it cannot be read{f': it {what}' if is_other else ''}", how, "client")


def read_header(path: Path) -> ItkHeader:
    """Read a file's header; raise ImageUnreadable or ValueError on one that says something else than a volume."""
    with path.open("rb") as file:
        opening = file.read(_LONGEST_HEADER)
    header = _nrrd_header(path, opening) if opening.startswith(b"NRRD000") else _meta_header(path, opening)
    if len(header.shape) not in {2, 3} or min(header.shape) < 1:
        raise ImageUnreadable(
            f"it has {len(header.shape)} axes; slices and volumes are translated", hint=_ONE_FILE
        )
    return header


def _beside(path: Path, name: str) -> Path:
    """Return the file with the values. A header that names one elsewhere could send any file of this machine."""
    if not name or Path(name).name != name or "%" in name or name in {"LIST", "."}:
        raise ImageUnreadable(
            f"its values lie in {name!r}, which is no single file beside it", hint=_ONE_FILE
        )
    if not (data := path.parent / name).is_file():
        raise ImageUnreadable(
            f"its values lie in {name}, which is not beside it", hint="copy both files into one folder"
        )
    return data


def _meta_header(path: Path, opening: bytes) -> ItkHeader:
    fields, at = {}, 0
    while "ElementDataFile" not in fields:
        end = opening.find(b"\n", at)
        line = opening[at : end if end >= 0 else len(opening)].decode("latin-1")
        name, equals, value = line.partition("=")
        if not equals:
            raise ValueError(f"no line of a MetaImage header: {line[:60]!r}")
        fields[name.strip()] = value.strip()
        at = end + 1 if end >= 0 else len(opening)
    if (channels := int(fields.get("ElementNumberOfChannels", 1))) != 1:
        raise ImageUnreadable(
            f"it has {channels} numbers at each place", hint="write each as a volume of its own"
        )
    if fields.get("BinaryData", "True").lower() != "true":
        raise ImageUnreadable("its values are written as text", hint=_ONE_FILE)
    shape = tuple(map(int, fields["DimSize"].split()))
    axes = len(shape)
    spacing = _numbers(fields.get("ElementSpacing") or fields.get("ElementSize") or "1 " * axes, axes)
    matrix = fields.get("TransformMatrix") or fields.get("Rotation") or fields.get("Orientation")
    directions = np.eye(axes) if matrix is None else _numbers(matrix, axes * axes).reshape(axes, axes)
    origin = next((fields[name] for name in ("Offset", "Position", "Origin") if name in fields), "0 " * axes)
    big = next(
        (fields[name] for name in ("BinaryDataByteOrderMSB", "ElementByteOrderMSB") if name in fields),
        "False",
    )
    local = fields["ElementDataFile"].upper() == "LOCAL"
    return ItkHeader(
        shape,
        np.dtype(_META[fields["ElementType"]]).newbyteorder(">" if big.lower() == "true" else "<"),
        _affine(directions * spacing[:, None], _numbers(origin, axes), (-1, -1, 1)),
        {name: fields[name] for name in _META_PLACE if name in fields},
        path if local else _beside(path, fields["ElementDataFile"]),
        at if local else int(fields.get("HeaderSize", 0)),
        fields.get("CompressedData", "False").lower() == "true",
    )


def _nrrd_header(path: Path, opening: bytes) -> ItkHeader:
    import nrrd

    file = io.BytesIO(opening)
    fields = nrrd.read_header(file)
    space, directions = str(fields.get("space", "none")).lower(), fields.get("space directions")
    if (
        space not in _SPACES
        or directions is None
        or np.isnan(directions := np.asarray(directions, float)).any()
    ):
        raise ImageUnreadable(
            f"its space is {space!r}, which does not say where its axes point",
            hint=f"a volume of one number at each place, in one of {', '.join([*_SPACES][::2])}; {_ONE_FILE}",
        )
    encoding = str(fields["encoding"]).lower()
    if encoding not in {"raw", "gzip", "gz"}:
        raise ImageUnreadable(f"its values are stored as {encoding}", hint=_ONE_FILE)
    if int(fields.get("line skip", 0)):
        raise ImageUnreadable("lines of text come before its values", hint=_ONE_FILE)
    name, skip = fields.get("data file") or fields.get("datafile"), int(fields.get("byte skip", 0))
    return ItkHeader(
        tuple(int(size) for size in fields["sizes"]),
        np.dtype(_NRRD[str(fields["type"]).lower()]).newbyteorder(
            ">" if fields.get("endian") == "big" else "<"
        ),
        _affine(directions, np.asarray(fields.get("space origin", np.zeros(3)), float), _SPACES[space]),
        {name: fields[name] for name in _NRRD_PLACE if name in fields},
        path if name is None else _beside(path, str(name)),
        skip if skip < 0 else skip + (file.tell() if name is None else 0),
        encoding != "raw",
    )


def _numbers(text: str, count: int) -> NDArray[np.float64]:
    numbers = np.array(text.split(), float)
    if len(numbers) != count:
        raise ValueError(f"{len(numbers)} numbers where {count} belong: {text[:60]!r}")
    return numbers


def _affine(
    steps: NDArray[np.float64], origin: NDArray[np.float64], signs: tuple[int, ...]
) -> NDArray[np.float64]:
    """Return (4, 4) of the step of each axis, by rows, in a space; a slice has none, and steps across its plane."""
    whole = np.eye(4)
    whole[: steps.shape[1], : len(steps)] = steps.T
    if steps.shape == (2, 3):
        whole[:3, 2] = np.cross(*steps)
    whole[: len(origin), 3] = origin
    return np.diag([*signs, 1.0]) @ whole


def _values(path: Path, header: ItkHeader) -> tuple[NDArray[Any], bool]:
    """Return the values in the axes of the file, if there is memory for them, and whether the file holds more."""
    size = math.prod(header.shape) * header.dtype.itemsize
    need = studies.memory_of_values(math.prod(header.shape), header.dtype.itemsize)
    studies.ImageLimits().check_memory(need, "cut it into parts first")
    with _faults(path):
        content = _content(header, size)
        if len(content) < size:
            raise ValueError(f"its header says {size} bytes of values, the file holds {len(content)}")
        values = np.frombuffer(content, header.dtype, math.prod(header.shape)).reshape(
            header.shape, order="F"
        )
        return values.astype(header.dtype.newbyteorder("="), copy=False), len(content) > size


def _content(header: ItkHeader, size: int) -> bytes | bytearray:
    """Return at most one byte more than `size` of the values: a few deflated bytes may unpack to any number."""
    with header.data.open("rb") as file:
        if header.skip < 0:
            file.seek(-size, io.SEEK_END)
        else:
            file.seek(header.skip)
        if not header.deflated:
            return file.read(size + 1)
        inflater, content = zlib.decompressobj(_EITHER), bytearray()
        while not inflater.eof and len(content) <= size and (packed := file.read(_PIECE)):
            while packed and len(content) <= size:
                content += inflater.decompress(packed, size + 1 - len(content))
                packed = inflater.unconsumed_tail
        return content


def _metaimage(values: studies.Pixels, channels: int, place: dict[str, Any], said: str) -> bytes:
    shape = values.shape if channels == 1 else values.shape[1:]
    kinds = {kind: name for name, kind in reversed(_META.items())}
    content = zlib.compress(values.astype(values.dtype.newbyteorder("<")).tobytes(order="F"))
    fields = {
        "ObjectType": "Image",
        "NDims": len(shape),
        "Comment": said,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": "False",
        "CompressedData": "True",
        "CompressedDataSize": len(content),
        **place,
        "DimSize": " ".join(map(str, shape)),
        **({"ElementNumberOfChannels": channels} if channels > 1 else {}),
        "ElementType": kinds[values.dtype.str[1:]],
        "ElementDataFile": "LOCAL",
    }
    return "".join(f"{name} = {value}\n" for name, value in fields.items()).encode("latin-1") + content


def _nrrd(values: studies.Pixels, channels: int, place: dict[str, Any], said: str) -> bytes:
    import nrrd

    colours = channels > 1
    header = {**place, "kinds": [*(["vector"] if colours else []), *["domain"] * (values.ndim - colours)]}
    if colours:
        directions = np.asarray(place["space directions"], float)
        header["space directions"] = np.vstack([np.full(directions.shape[1], np.nan), directions])
    file = io.BytesIO()
    nrrd.write(file, values, {**header, "encoding": "gzip", "synthetic": said})
    return file.getvalue()
