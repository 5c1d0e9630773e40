"""Lists the files to translate from the files and folders of a command line, with the name of each one's results.

A file's results are called as it is; below a folder the path is kept. Hidden files, and files whose suffix is that of
no format, are left out and counted.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddib_fed.client.payload import SUFFIXES
from ddib_fed.errors import FileMissing
from ddib_fed.formats.recognition import files_below, format_of, is_study


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file to translate."""

    path: Path
    file: str


@dataclass(frozen=True, slots=True)
class Found:
    """Every file to translate, in order, and how many were left out below folders, by suffix or as "hidden"."""

    files: tuple[FoundFile, ...]
    ignored: Counter[str]

    def ignored_line(self) -> str:
        return ignored_line(self.ignored)


def find_files(
    given: Sequence[Path], out: Path | None, *, apart: bool = False, without: Iterable[Path] = ()
) -> Found:
    """The files that are given, and those below folders that are given, each file once."""
    elsewhere = {path.absolute() for path in without}
    ignored: Counter[str] = Counter()
    found: dict[Path, FoundFile] = {}
    for path in given:
        if not path.is_dir():
            found.setdefault(path.absolute(), FoundFile(path, path.name))
            continue
        below = [file for file in _below(path, out, ignored, apart=apart) if file.absolute() not in elsewhere]
        for file in below:
            found.setdefault(file.absolute(), FoundFile(file, file.relative_to(path).as_posix()))
        if not below:
            raise _nothing_below(path, studies=not apart and is_study(path))
    return Found(tuple(found.values()), ignored)


def ignored_line(ignored: Counter[str]) -> str:
    """What was left out below folders, for people; empty for nothing."""
    count = ignored.total()
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in ignored.most_common(6))
    return f"ignored {count:,} other file{'s' * (count != 1)} ({kinds})" if count else ""


def _below(root: Path, out: Path | None, ignored: Counter[str], *, apart: bool) -> list[Path]:
    """Files below a folder in the order of their paths, and folders that cannot be read: they are refused later."""
    below = files_below(root, out)
    ignored += below.ignored
    found = list(below.unreadable)
    for path in below.files:
        suffix = path.suffix.lower()
        if apart and format_of(path) is not None:
            continue
        if suffix in SUFFIXES:
            found.append(path)
        else:
            ignored[suffix or "without suffix"] += 1
    return sorted(found)


def _nothing_below(folder: Path, *, studies: bool) -> FileMissing:
    """The error about a folder without a file to translate; one of studies is named with the command for them."""
    quoted = shlex.quote(str(folder))
    hint = (
        f"ddib translate {quoted} --to INSTITUTION/DOMAIN --out DIR   (DICOM, NIfTI, GeoTIFF and the like)"
        if studies
        else f"known are {', '.join(sorted(SUFFIXES))}; `ls -la {quoted}` shows what is there"
    )
    return FileMissing(f"{folder} holds no file to translate", hint=hint, hop="client")
