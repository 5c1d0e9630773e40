"""Looks into a dropped file: what it is, whether it can be translated, and what to know before its pixels leave.

Formats of the field are read by `ddib_fed.formats`, as `ddib translate` reads them later; all else must be a file that
a node takes as it is.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from ddib_fed.client.payload import payload
from ddib_fed.errors import DdibError, ImageUnreadable, InputError
from ddib_fed.formats.dicom.finding import is_directory_file, sort_files
from ddib_fed.formats.dicom.series import read_series
from ddib_fed.formats.opening import open_paths
from ddib_fed.formats.recognition import Format, format_of
from ddib_fed.formats.study import Options
from ddib_fed.samples.images import read_image
from ddib_fed.samples.points import MAGIC
from ddib_fed.web.researcher.words import hinted_in_words

_ONE_AT_A_TIME: Final = threading.Lock()
"""A volume or a map takes a few times its size while it is read, and files are dropped several at once."""


class Kind(StrEnum):
    """How a file is translated."""

    PLAIN = "plain"
    """As it is."""
    SLICE = "slice"
    """A DICOM file: with the others of its series."""
    WHOLE = "whole"
    """A volume, a map, or a picture that nodes do not take: in items of pixels."""


@dataclass(frozen=True, slots=True)
class Recognised:
    """What a file is, and what a person has to know of it; warnings have the name that was given to `recognise`."""

    kind: Kind
    warnings: tuple[str, ...] = ()


def recognise(path: Path, called: Path) -> Recognised:
    """What a file is, once it is known that it can be translated."""
    if format_of(path) is Format.DICOM and is_directory_file(path):
        raise InputError(
            f"{path} lists the files of a folder, and is no picture",
            hop="client",
            hint="drop the whole folder: its pictures are found without the list",
        )
    with hinted_in_words():
        return _recognised(path, called)


def _recognised(path: Path, called: Path) -> Recognised:
    kind = format_of(path)
    if kind is Format.DICOM:
        return _dicom(path, called)
    if kind is not None:
        with _ONE_AT_A_TIME:
            return Recognised(Kind.WHOLE, open_paths([path], Options()).studies[0].warnings)
    payload(path)
    with path.open("rb") as file:
        points = file.read(len(MAGIC)) == MAGIC
    if not points:
        _require_picture(path)
    return Recognised(Kind.PLAIN)


def _dicom(path: Path, called: Path) -> Recognised:
    """A slice of a series, decoded once."""
    found = sort_files([path])
    for _, error in found.unreadable:
        raise error
    if not found.series:
        raise ImageUnreadable(f"{path} holds no picture", hop="client")
    (headers,) = found.series.values()
    return Recognised(Kind.SLICE, read_series(str(called), headers)[0].warnings)


def _require_picture(path: Path) -> None:
    """Return if a picture can be decoded."""
    try:
        read_image(path)
    except DdibError as error:
        if str(path) not in error.detail:
            error.detail = f"{path}: {error.detail}"
        raise
