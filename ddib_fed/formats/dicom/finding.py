"""Finds the series in a folder, in a DICOMDIR or among files, and names their results.

The rule: no file is passed over without a word. One that is no picture by its class is counted, any other without
pixels is unreadable. A name depends on the series alone, and not on what else lies in the folder.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ddib_fed.errors import DdibError, FileMissing, ImageUnreadable, InputError
from ddib_fed.formats.dicom.series import SORTED_BY, pydicom, quiet, read_header
from ddib_fed.formats.origin import safe_name
from ddib_fed.formats.recognition import COPY, beginning_of, is_dicom

Members = list[tuple[Path, Any]]
"""Path and header (`SORTED_BY`) of each file of a series."""
_OF_THE_STANDARD: Final = "1.2.840.10008."
COPIES: Final = "copies of other DICOM files"
"""What further files of the same picture, byte for byte, are counted as."""


@dataclass(frozen=True, slots=True)
class SortedFiles:
    """DICOM files by what they are."""

    series: Mapping[str, Members]
    unreadable: tuple[tuple[Path, DdibError], ...]
    others: Counter[str]


@dataclass(frozen=True, slots=True)
class SeriesName:
    """What the results of a series are called."""

    name: str
    also: tuple[str, ...]
    uid_sha256: str


def listed_files(directory: Path) -> tuple[list[Path], list[tuple[Path, DdibError]]]:
    """The pictures that a DICOMDIR lists (PS3.3 F.3), in its order; and those that cannot be used, with the reason."""
    header = read_header(directory)
    records = header.get("DirectoryRecordSequence") or ()
    root = directory.parent.resolve()
    found: list[Path] = []
    bad: list[tuple[Path, DdibError]] = []
    for record in records:
        parts = record.get("ReferencedFileID")
        if record.get("DirectoryRecordType") != "IMAGE" or not parts:
            continue
        names = [parts] if isinstance(parts, str) else [str(part) for part in parts]
        path = root.joinpath(*names).resolve()
        if root not in path.parents:
            outside = f"{directory} lists {'/'.join(names)}, which lies outside its folder"
            bad.append((directory, ImageUnreadable(outside, hop="client")))
        elif not path.is_file():
            bad.append((path, FileMissing(f"{directory} lists {path}, which is not there", hop="client")))
        else:
            found.append(path)
    if not found and not bad:
        raise ImageUnreadable(f"{directory} lists no pictures", hop="client")
    return found, bad


def is_directory_file(path: Path) -> bool:
    """Whether a file is a DICOMDIR, by name or by content."""
    if not path.is_file() or not is_dicom(path):
        return False
    if path.name.upper().startswith("DICOMDIR"):
        return True
    return bool(read_header(path).file_meta.get("MediaStorageSOPClassUID") == _directory_class())


def sort_files(paths: Iterable[Path]) -> SortedFiles:
    """Look into the header of each file."""
    pictures: dict[str, Members] = {}
    unreadable: list[tuple[Path, DdibError]] = []
    others: Counter[str] = Counter()
    with quiet():  # values are read when they are asked for
        for path in paths:
            try:
                header = _header(path)
            except ImageUnreadable as error:
                unreadable.append((path, error.kept()))
                continue
            if "Rows" in header and not (header.get("SOPClassUID") and header.get("SOPInstanceUID")):
                why = (
                    f"{path} has no SOP Instance UID, or no SOP Class UID, so nothing can be derived from it"
                )
                unreadable.append((path, ImageUnreadable(why, hop="client", hint="export it again")))
            elif "Rows" in header:
                pictures.setdefault(str(header.SOPInstanceUID), []).append((path, header))
            elif kind := _other_kind(header):
                others[kind] += 1
            else:
                unreadable.append((path, _without_pixels(path, header)))
    series: dict[str, Members] = {}
    for (path, header), *more in pictures.values():
        others[COPIES] += len(more)
        unlike = [other for other, _ in more if not filecmp.cmp(path, other, shallow=False)]
        if unlike:
            unreadable += [(each, _conflict(path, unlike[0])) for each in (path, *unlike)]
        else:
            series.setdefault(str(header.get("SeriesInstanceUID", "")), []).append((path, header))
    return SortedFiles(series, tuple(unreadable), +others)


def _conflict(path: Path, other: Path) -> InputError:
    return InputError(
        f"{path} and {other} have the same SOP Instance UID and different contents",
        hop="client",
        hint="remove the one that is wrong, or translate each of them in a folder of its own",
    )


def _header(path: Path) -> Any:
    if not is_dicom(path):
        what, how = beginning_of(path)
        raise ImageUnreadable(f"{path} does not begin as DICOM files do: it {what}", hop="client", hint=how)
    return read_header(path, SORTED_BY)


def _other_kind(header: Any) -> str:
    """The class of a file that is no picture, in words; empty for pictures, and where the file does not say."""
    found = {str(header.file_meta.get("MediaStorageSOPClassUID", "")), str(header.get("SOPClassUID", ""))}
    if len(found) != 1:
        return ""
    uid = pydicom().uid.UID(found.pop())
    if not uid.startswith(_OF_THE_STANDARD):
        return "DICOM file of a private class without pixels" if uid else ""
    if uid.type != "SOP Class" or "Image" in uid.name:
        return ""
    return f"DICOM {uid.name.removesuffix(' Storage')}"


def _without_pixels(path: Path, header: Any) -> ImageUnreadable:
    uid = header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID")
    what = pydicom().uid.UID(str(uid)).name if uid else "a DICOM file of no known class"
    return ImageUnreadable(
        f"{path} is {what}, and ends before its pixels: it is not complete",
        hop="client",
        hint=COPY,
    )


def names_of(series: Mapping[str, Members], root: Path | None) -> Iterator[tuple[SeriesName, Members]]:
    """A name for the results of each series."""
    alone = root is None and sum(map(len, series.values())) == 1
    digests = {uid: hashlib.sha256(uid.encode()).hexdigest() for uid in series}
    plain = {
        uid: safe_name(members[0][0].stem) if alone else _place(members, root, digests[uid])
        for uid, members in series.items()
    }
    alike = Counter(plain.values())
    for uid, members in series.items():
        both = plain[uid], f"{plain[uid]}-{digests[uid][:8]}"
        name, other = both if alike[plain[uid]] == 1 else both[::-1]
        yield SeriesName(name, (other,), digests[uid]), members


def _place(members: Members, root: Path | None, digest: str) -> str:
    common = Path(os.path.commonpath([path.absolute().parent for path, _ in members]))
    top = common if root is None else root
    below = () if root is None else common.relative_to(root.absolute()).parts
    return "/".join((safe_name(top.resolve().name), *below, f"series-{_number(members) or digest[:8]}"))


def _number(members: Members) -> str:
    """The number of a series; empty where the header has none that is one."""
    with quiet():
        try:
            number = members[0][1].get("SeriesNumber", None)
            return "" if number is None else str(int(number))
        except (TypeError, ValueError, OverflowError):
            return ""


def _directory_class() -> str:
    return str(pydicom().uid.MediaStorageDirectoryStorage)
