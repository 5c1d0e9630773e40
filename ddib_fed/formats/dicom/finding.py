"""Finds the series in a folder, in a DICOMDIR or among files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ddib_fed.errors import FileMissing, ImageUnreadable
from ddib_fed.formats.dicom.series import SORTED_BY, pydicom, read_header
from ddib_fed.formats.recognition import is_dicom
from ddib_fed.formats.study import safe_name


def listed_files(directory: Path) -> list[Path]:
    """The pictures that a DICOMDIR lists (PS3.3 F.3), in its order.

    Raises:
        ImageUnreadable: It lists none, or a file outside its folder.
        FileMissing: A listed file is not there.
    """
    header = read_header(directory)
    records = header.get("DirectoryRecordSequence") or ()
    root, found = directory.parent.resolve(), []
    for record in records:
        parts = record.get("ReferencedFileID")
        if record.get("DirectoryRecordType") != "IMAGE" or not parts:
            continue
        names = [parts] if isinstance(parts, str) else [str(part) for part in parts]
        path = root.joinpath(*names).resolve()
        if root not in path.parents:
            raise ImageUnreadable(
                f"{directory} lists {'/'.join(names)}, which lies outside its folder", hop="client"
            )
        if not path.is_file():
            raise FileMissing(f"{directory} lists {path}, which is not there", hop="client")
        found.append(path)
    if not found:
        raise ImageUnreadable(f"{directory} lists no pictures", hop="client")
    return found


def is_directory_file(path: Path) -> bool:
    """Whether a file is a DICOMDIR, by name or by content."""
    if not path.is_file() or not is_dicom(path):
        return False
    if path.name.upper().startswith("DICOMDIR"):
        return True
    return bool(read_header(path).file_meta.get("MediaStorageSOPClassUID") == _directory_class())


def grouped(paths: Iterable[Path]) -> dict[str, list[tuple[Path, Any]]]:
    """Path and header (`SORTED_BY`) of each picture, by series; files without pixels (reports, plans) are left out."""
    found: dict[str, list[tuple[Path, Any]]] = {}
    for path in paths:
        header = read_header(path, SORTED_BY)
        if "Rows" in header:
            found.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((path, header))
    return found


def names_of(
    stem: str, groups: dict[str, list[tuple[Path, Any]]]
) -> Iterator[tuple[str, list[tuple[Path, Any]]]]:
    """A name for the results of each series: the stem, with the series number where there are several."""
    taken: set[str] = set()
    for members in groups.values():
        number = members[0][1].get("SeriesNumber", None)
        name = safe_name(stem) if len(groups) == 1 else safe_name(f"{stem}-series-{number or 0}")
        unique, count = name, 1
        while unique in taken:
            count += 1
            unique = f"{name}-{count}"
        taken.add(unique)
        yield unique, members


def _directory_class() -> str:
    return str(pydicom().uid.MediaStorageDirectoryStorage)
