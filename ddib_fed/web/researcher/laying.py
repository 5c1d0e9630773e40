"""Lays dropped files out as `ddib translate` expects them: DICOM files in their folders, all else under unique names.

JOB/dicom/FOLDER/...    the DICOM files of one dropped folder, whatever folders are in it
JOB/dicom/NAME          DICOM files that were dropped without a folder
JOB/whole/NAME.nii.gz   volumes, maps and pictures that nodes do not take
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ddib_fed.web.researcher.desk import Given
from ddib_fed.web.researcher.recognising import Kind
from ddib_fed.web.researcher.tray import Dropped, safe_name

_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._-]+")
_SUFFIXES: Final = (".nii.gz",)
"""Suffixes of two parts."""


def laid_out(files: Sequence[Dropped], folder: Path) -> tuple[Given, ...]:
    """What there is to translate, with a name for the results of each, all different."""
    taken: set[str] = set()
    found = _series(files, folder / "dicom", taken)
    for each in files:
        if each.kind is Kind.SLICE:
            continue
        stem, suffix = _parted(each.label.replace("/", "_"))
        name = _unique(plain_word(stem, "picture"), taken)
        if each.kind is Kind.PLAIN:
            found.append(Given(each.path, name, each.label))
        else:
            path = folder / "whole" / f"{name}{suffix}"
            _lay(each.path, path)
            found.append(Given(path, name, each.label, is_study=True))
    return tuple(found)


def numbered(name: str) -> Iterator[str]:
    return itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))


def _series(files: Sequence[Dropped], folder: Path, taken: set[str]) -> list[Given]:
    """DICOM files: one `Given` for each dropped folder, and one for each file without a folder."""
    found: list[Given] = []
    tops: dict[str, Path] = {}
    slices = [each for each in files if each.kind is Kind.SLICE]
    for each in sorted(slices, key=lambda each: "/" in each.label):
        top, _, below = each.label.partition("/")
        if not below:
            path = folder / _free(folder, safe_name(top) or "slice")
            taken |= {folder.name, path.stem.casefold()}  # what the results of such files may be called
            found.append(Given(path, path.name, each.label, is_study=True))
        else:
            if top not in tops:
                tops[top] = folder / _unique(plain_word(top, "series"), taken)
                found.append(Given(tops[top], tops[top].name, top, is_study=True))
            *parents, leaf = [safe_name(part) or "_" for part in below.split("/")]
            place = tops[top].joinpath(*parents)
            path = place / _free(place, leaf)
        _lay(each.path, path)
    return found


def _parted(name: str) -> tuple[str, str]:
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)], suffix
    path = Path(name)
    return path.stem, path.suffix.lower()


def plain_word(text: str, otherwise: str) -> str:
    return _UNSAFE.sub("_", text).strip("._") or otherwise


def _unique(name: str, taken: set[str]) -> str:
    found = next(each for each in numbered(name) if each.casefold() not in taken)
    taken.add(found.casefold())
    return found


def _free(folder: Path, name: str) -> str:
    return next(each for each in numbered(name) if not (folder / each).exists())


def _lay(path: Path, at: Path) -> None:
    at.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.link(path, at)
    except OSError:
        shutil.copyfile(path, at)
