"""Tells by names and first bytes what files and folders are; loads neither numpy nor a package for any format.

The rule: a file that `format_of` knows never leaves as it is. `recognise` finds such files among paths, to be
translated as studies; where that is not done, `ddib_fed.client.files` refuses them, by `format_of_content` too.
"""

from __future__ import annotations

import io
import os
import shlex
import struct
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Final

from ddib_fed.errors import DdibError, ImageUnreadable
from ddib_fed.record import tiles_in

HIDDEN: Final = "hidden"
TAKEN: Final = {
    ".npy": ".npy", ".png": ".png", ".jpg": ".jpg", ".jpeg": ".jpg", ".tif": ".tif", ".tiff": ".tif",
}  # fmt: skip
"""Suffixes of files that a node takes as they are, and the usual suffix of their kind."""
DICOM_SUFFIX: Final = ".dcm"
NIFTI_SUFFIXES: Final = (".nii", ".nii.gz")
TIFF_SUFFIXES: Final = (".tif", ".tiff")
PICTURES: Final = {".jp2": "JPEG2000", ".j2k": "JPEG2000", ".webp": "WEBP", ".bmp": "BMP"}
"""Picture formats that nodes do not take, by suffix, as Pillow calls them."""
MAX_DICOM_FILES: Final = 100_000
# Tags of the GeoTIFF standard (OGC 19-008): pixel scale, tie points, transformation, key directory and its values; of
# rational polynomials (RPC) and of Intergraph's matrix, which GDAL reads as places on the earth too.
GEOTAGS: Final = frozenset({33550, 33922, 34264, 34735, 34736, 34737, 50844, 33920})
COPY: Final = "copy it again from where it came; its size there and here (ls -l) should be the same"
OPENINGS: Final = {
    ".png": (b"\x89PNG\r\n\x1a\n",), ".jpg": (b"\xff\xd8\xff",), ".npy": (b"\x93NUMPY",),
    ".tif": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), ".gz": (b"\x1f\x8b",), ".zip": (b"PK\3\4",), ".pdf": (b"%PDF",),
}  # fmt: skip
"""How files begin that often have another's suffix, by their own."""
_BARE_DICOM: Final = (b"\x08\0\0\0", b"\x08\0\5\0", b"\x08\0\x08\0", b"\x08\0\x16\0", b"\2\0\0\0")
"""First tags of a DICOM data set that has no preamble."""
_PREAMBLE: Final = 128
_MOST_TAGS: Final = 1 << 16
_MOST_PAGES: Final = 10_000


class Format(StrEnum):
    """A format of which pixels alone leave; the value is its name in messages."""

    NIFTI = "NIfTI volume"
    PICTURE = "picture of a format that nodes do not take"
    MAP = "TIFF with a georeference"
    LARGER = "picture in tiles"
    DICOM = "DICOM file"


@dataclass(frozen=True, slots=True)
class Sighting:
    """A file, or all DICOM files below a folder."""

    format: Format
    path: Path
    folder: Path | None = None
    files: tuple[Path, ...] = ()

    @property
    def is_picture(self) -> bool:
        return self.format in {Format.PICTURE, Format.LARGER}

    @property
    def within(self) -> str:
        below = "." if self.folder is None else self.path.parent.relative_to(self.folder).as_posix()
        return "" if below == "." else f"{below}/"


@dataclass(frozen=True, slots=True)
class Recognised:
    """What some paths hold; see `formats.study.Choice` for the fields that both have."""

    studies: tuple[Sighting, ...] = ()
    plain: tuple[Path, ...] = ()
    ignored: Counter[str] = field(default_factory=Counter)


def recognise(
    paths: Sequence[Path], out: Path | None = None, larger: Callable[[Path], bool] = lambda _: False
) -> Recognised:
    """The studies among files and below folders, each file once, and the rest."""

    def kind_of(path: Path) -> Format | None:
        kind = format_of(path)
        return Format.LARGER if kind is None and path.suffix.lower() in TAKEN and larger(path) else kind

    studies: dict[Path, Sighting] = {}
    plain: list[Path] = []
    ignored: Counter[str] = Counter()
    for path in paths:
        if path.is_dir():
            found = _below(path, out, kind_of)
            plain += found.plain
            ignored += found.ignored
            for each in found.studies:
                studies.setdefault(each.path.absolute(), each)
        elif kind := kind_of(path):
            studies.setdefault(path.absolute(), Sighting(kind, path))
        else:
            plain.append(path)
    return Recognised(tuple(studies.values()), tuple(plain), ignored)


def _below(folder: Path, out: Path | None, kind_of: Callable[[Path], Format | None]) -> Recognised:
    """What lies below a folder; a folder without a study is left as it is."""
    below = files_below(folder, out)
    kinds = {path: kind_of(path) for path in below.files}
    dicom = tuple(
        path for path, kind in kinds.items() if kind is Format.DICOM and path.name[:8] != "DICOMDIR"
    )
    if len(dicom) > MAX_DICOM_FILES:
        raise ImageUnreadable(f"{folder} has more than {MAX_DICOM_FILES} DICOM files", hop="client")
    studies = [
        Sighting(kind, path, folder) for path, kind in kinds.items() if kind not in {None, Format.DICOM}
    ]
    if dicom:  # among such, one that does not begin as they do was cut or never written
        torn = {path for path, kind in kinds.items() if kind is None and path.suffix.lower() == DICOM_SUFFIX}
        kinds = {path: kind for path, kind in kinds.items() if path not in torn}
        studies.append(Sighting(Format.DICOM, folder, None, tuple(sorted({*dicom, *torn}))))
    if not studies:
        return Recognised(plain=(folder,))
    others = Counter(_suffix(path) for path, kind in kinds.items() if kind is None)
    if others.keys() & TAKEN.keys():  # those who list the folder's files count the ignored ones
        return Recognised(tuple(studies), (folder,))
    return Recognised(tuple(studies), below.unreadable, others + below.ignored)


@dataclass(frozen=True, slots=True)
class Below:
    files: tuple[Path, ...]
    unreadable: tuple[Path, ...]
    ignored: Counter[str]


def files_below(root: Path, out: Path | None) -> Below:
    """The files below a folder; neither hidden folders nor `out` nor links to folders are looked into."""
    without = None if out is None else out.resolve()
    found: list[Path] = []
    unreadable: list[Path] = []
    ignored: Counter[str] = Counter()
    for at, folders, names in os.walk(root, onerror=lambda error: unreadable.append(Path(error.filename))):
        here = Path(at)
        ignored[HIDDEN] += sum(name.startswith(".") for name in (*folders, *names))
        folders[:] = [d for d in folders if not d.startswith(".") and (here / d).resolve() != without]
        for path in (here / name for name in names if not name.startswith(".")):
            if path.exists() and not path.is_file():
                ignored[_suffix(path)] += 1
            else:
                found.append(path)
    return Below(tuple(sorted(found)), tuple(sorted(unreadable)), +ignored)


def _suffix(path: Path) -> str:
    return path.suffix.lower() or "without suffix"


def format_of(path: Path) -> Format | None:
    """The format of a file of which pixels alone leave; None for any other file, and for what cannot be opened."""
    suffix = path.suffix.lower()
    if is_nifti(path):
        return Format.NIFTI
    if suffix in PICTURES:
        return Format.PICTURE
    if suffix in TIFF_SUFFIXES and path.is_file():
        with suppress(OSError), path.open("rb") as file:
            if GEOTAGS & _tags(file):
                return Format.MAP
    return Format.DICOM if is_dicom(path) else None


def format_of_content(content: bytes) -> Format | None:
    """Return the format of a file's content that begins like a file that a node takes; None for any other."""
    if content[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
        return Format.DICOM
    return Format.MAP if GEOTAGS & _tags(io.BytesIO(content)) else None


def beginning(content: bytes, path: Path) -> tuple[str, str]:
    """Say what a file is by its first bytes (352 are enough), and which command helps."""
    found = next((suffix for suffix, openings in OPENINGS.items() if content.startswith(openings)), "")
    if content[_PREAMBLE : _PREAMBLE + 4] == b"DICM":
        found = DICOM_SUFFIX
    elif content[344:348] == b"n+1\0" or content[4:8] == b"n+2\0":
        found = ".nii"
    given, bare = shlex.quote(str(path)), path.with_suffix("") if path.suffix == ".gz" else path
    if found in {".gz", ".zip"} and not is_nifti(path):
        folder = shlex.quote(str(path.with_suffix("")))
        return f"is a {found} file", f"gzip -dk {given}" if found == ".gz" else f"unzip {given} -d {folder}"
    if found:
        right = f"{bare}.gz" if found == ".gz" else str(bare.with_suffix(found))
        return f"is a {found} file", COPY if right == str(path) else f"mv -n {given} {shlex.quote(right)}"
    if content.startswith(_BARE_DICOM):
        whole = shlex.quote(str(path.with_name(f"{path.stem}-whole{DICOM_SUFFIX}")))
        how = f"dcmconv {given} {whole}   (dcmtk writes it)"
        return "is DICOM without the beginning that files have", how
    if content.lstrip()[:1] == b"<":
        how = "open it in a browser: a page to log in is often saved"
        return "is a web page or other text with tags", how
    return ("begins as no known format does" if content else "is empty"), COPY


def beginning_of(path: Path) -> tuple[str, str]:
    with path.open("rb") as file:
        return beginning(file.read(352), path)


def is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do (PS3.10 7.1)."""
    with suppress(OSError), path.open("rb") as file:
        return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    return False


def is_larger(path: Path, tile: tuple[int, int], most: int | None) -> bool:
    """Whether a picture that a node takes is sent in tiles instead, by its header; `most` as `Options.most_tiles`."""
    from ddib_fed.data.pictures import ImageLimits, cost_of, image_format, read_content

    try:
        content = read_content(path, ImageLimits())
        if image_format(content) is None:
            return False
        with warnings.catch_warnings(action="ignore"):  # of what is over the limits the node says more
            size = cost_of(content, ImageLimits()).geometry
    except DdibError:  # whoever reads it says what is wrong
        return False
    return tile_of(size.height, size.width, tile, most) is not None


def tile_of(
    height: int, width: int, tile: tuple[int, int] | None, most: int | None
) -> tuple[int, int] | None:
    """Return the size of the tiles of a picture; None if it is sent whole."""
    count = 0 if tile is None else tiles_in(height, width, tile)
    return tile if 0 < count <= (most or count) else None


def _tags(file: BinaryIO) -> set[int]:
    """Return the tags of a TIFF's pages, as far as they can be read; empty for any other file."""
    opening = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(opening[:2])
    version = struct.unpack_from(f"{order}H", opening, 2)[0] if order and len(opening) == 16 else 0
    if version not in {42, 43}:
        return set()
    # A page is the number of its tags, the tags, and where the next page is; 43 is BigTIFF.
    of_version = {42: ("H", 12, "I", 4), 43: ("Q", 20, "Q", 8)}
    head, entry, place, first = of_version[version]
    head, place = f"{order}{head}", f"{order}{place}"
    (at,) = struct.unpack_from(place, opening, first)
    found: set[int] = set()
    seen: set[int] = set()
    try:
        while at and at not in seen and len(seen) < _MOST_PAGES:
            seen.add(at)
            file.seek(min(at, 2**62))
            (count,) = struct.unpack(head, file.read(struct.calcsize(head)))
            table = file.read(min(count, _MOST_TAGS) * entry)
            found |= {
                struct.unpack_from(f"{order}H", table, tag)[0] for tag in range(0, len(table) - 1, entry)
            }
            (at,) = struct.unpack(place, file.read(struct.calcsize(place)))
    except struct.error:  # it ends in the middle of a page
        pass
    return found
