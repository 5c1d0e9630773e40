"""Tells by names and first bytes what a path is; loads neither numpy nor a package for any format."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO, Final

from ddib_fed.errors import ImageUnreadable

NIFTI_SUFFIXES: Final = (".nii", ".nii.gz")
TIFF_SUFFIXES: Final = (".tif", ".tiff")
PICTURES: Final = {".jp2": "JPEG2000", ".j2k": "JPEG2000", ".webp": "WEBP", ".bmp": "BMP"}
"""Picture formats that nodes do not take, by suffix, as Pillow calls them."""
MAX_DICOM_FILES: Final = 100_000
# Tags of the GeoTIFF standard (OGC 19-008): pixel scale, tie points, transformation, key directory.
GEOTAGS: Final = frozenset({33550, 33922, 34264, 34735})
_PREAMBLE: Final = 128
_MOST_TAGS: Final = 4096


def is_study(path: Path) -> bool:
    """Whether a file or folder is of a format that is translated here, and not sent as it is."""
    if path.is_dir():
        return bool(dicom_files(path))
    return is_nifti(path) or is_picture(path) or is_georeferenced(path) or is_dicom(path)


def is_nifti(path: Path) -> bool:
    """Whether a file is called as NIfTI files are."""
    return path.name.lower().endswith(NIFTI_SUFFIXES)


def is_picture(path: Path) -> bool:
    """Whether a file has a suffix of `PICTURES`."""
    return path.suffix.lower() in PICTURES


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM files do (PS3.10 7.1)."""
    try:
        with path.open("rb") as file:
            return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
    except OSError:
        return False


def dicom_files(folder: Path) -> list[Path]:
    """The DICOM files below a folder but directories, in the order of their names; hidden ones are left out.

    Raises:
        ImageUnreadable: There are more than `MAX_DICOM_FILES`.
    """
    found: list[Path] = []
    for at, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            path = Path(at) / name
            if not name.startswith((".", "DICOMDIR")) and is_dicom(path):
                found.append(path)
        if len(found) > MAX_DICOM_FILES:
            raise ImageUnreadable(f"{folder} has more than {MAX_DICOM_FILES} DICOM files", hop="client")
    return found


def is_georeferenced(path: Path) -> bool:
    """Whether a file is a TIFF that says where on the earth it lies, by its tags alone."""
    if path.suffix.lower() not in TIFF_SUFFIXES or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return bool(GEOTAGS & _tags(file))
    except (OSError, struct.error):
        return False


def _tags(file: BinaryIO) -> set[int]:
    """The tags of a TIFF's first page; empty for anything else."""
    opening = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(opening[:2])
    if order is None or len(opening) < 16:
        return set()
    (version,) = struct.unpack_from(f"{order}H", opening, 2)
    if version == 42:
        (at,) = struct.unpack_from(f"{order}I", opening, 4)
        head, entry = f"{order}H", 12
    elif version == 43:  # BigTIFF
        (at,) = struct.unpack_from(f"{order}Q", opening, 8)
        head, entry = f"{order}Q", 20
    else:
        return set()
    file.seek(min(at, 2**62))
    (count,) = struct.unpack(head, file.read(struct.calcsize(head)))
    table = file.read(min(count, _MOST_TAGS) * entry)
    return {struct.unpack_from(f"{order}H", table, start)[0] for start in range(0, len(table) - 1, entry)}
