"""The files that were dropped: kept in a private folder, looked into at once, and arranged for a translation.

Formats of the field are read by `ddib_fed.formats`, as `ddib translate` reads them later; all else must be a file that
a node takes as it is. What cannot be sent is refused by name.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed.client.payload import MAX_ITEM_BYTES, payload
from ddib_fed.data.pictures import Pixels, encode_png, image_format, read_image
from ddib_fed.data.points import FEW_COLUMNS, MAGIC, parse_npy, read_header
from ddib_fed.errors import (
    DdibError,
    DiskFull,
    ImageUnreadable,
    InputError,
    ItemNotFound,
    KindMismatch,
    UsageError,
)
from ddib_fed.files import is_disk_full
from ddib_fed.formats.dicom import is_directory_file, read_series, sort_files
from ddib_fed.formats.opening import open_paths
from ddib_fed.formats.recognition import Format, format_of
from ddib_fed.formats.study import Options
from ddib_fed.terminal import escape
from ddib_fed.web.backend import DroppedSource, hinted_in_words

MEDIA: Final = {"PNG": "image/png", "JPEG": "image/jpeg"}
WINDOW: Final = (0.5, 99.5)
"""Percentiles of the values that are shown black and white."""
Window = tuple[float, float]
"""The numbers that are shown black and white."""
MAX_POINTS: Final = 10_000_000
SIZE: Final = 256
"""Pixels of a drawing of points, height and width."""
_SPREAD: Final = 1.06
_PNG_BITS_AT: Final = 24
"""Where a PNG says how many bits a value has."""


def preview(path: Path, window: Window | None = None) -> tuple[bytes, str]:
    """Bytes and media type of what a browser shows."""
    content = path.read_bytes()
    kind = image_format(content)
    if kind == "JPEG" or (kind == "PNG" and b"\x00" < content[_PNG_BITS_AT : _PNG_BITS_AT + 1] <= b"\x08"):
        return content, MEDIA[kind]
    pixels = density(_points(content)) if kind == "NPY" and _is_points(content) else _of_picture(path, window)
    return encode_png(pixels), MEDIA["PNG"]


def _is_points(content: bytes) -> bool:
    shape = read_header(content)[0].shape
    return len(shape) == 2 and shape[1] <= FEW_COLUMNS


def _points(content: bytes) -> NDArray[Any]:
    return parse_npy(content, max_bytes=len(content), max_points=MAX_POINTS)


def _of_picture(path: Path, window: Window | None) -> NDArray[np.uint8]:
    pixels = read_image(path).pixels
    return shown(pixels, window or own_window(pixels))


def own_window(values: Pixels) -> Window:
    """The numbers between which the middle 99 % of some values lie; those of 8 bits have all."""
    if values.dtype == np.uint8:
        return 0.0, 255.0
    low, high = np.percentile(values, WINDOW)
    return float(low), float(high)


def shown(values: Pixels, window: Window) -> NDArray[np.uint8]:
    """Pixels (H, W, C) as 8 bits, the window's numbers black and white; those of 8 bits are as they are."""
    if values.dtype == np.uint8:
        return np.asarray(values, np.uint8)
    low, high = window
    scaled = (values.astype(np.float64) - low) / max(high - low, 1e-12)
    return np.asarray(np.clip(scaled, 0.0, 1.0) * 255.0 + 0.5, np.uint8)


def density(points: NDArray[Any]) -> NDArray[np.uint8]:
    """A drawing (SIZE, SIZE, 1) of the first two coordinates of points (N, D): the darker, the more points."""
    if points.ndim != 2 or points.shape[0] == 0 or points.shape[1] == 0:
        raise KindMismatch(f"an array of shape {points.shape} is no set of points")
    across = points[:, 0].astype(np.float64)
    up = points[:, min(1, points.shape[1] - 1)].astype(np.float64)
    half = max(float(np.ptp(across)), float(np.ptp(up)), 1e-9) / 2 * _SPREAD
    middle = (across.max() + across.min()) / 2, (up.max() + up.min()) / 2
    edges = [np.linspace(each - half, each + half, SIZE + 1) for each in middle]
    counts, _, _ = np.histogram2d(across, up, bins=edges)
    dark = np.log1p(counts.T[::-1])
    return (255.0 - 230.0 * dark / max(float(dark.max()), 1e-9)).astype(np.uint8)[..., None]


MAX_FILES: Final = 20_000
MAX_NAME: Final = 400
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9._ ()+=@,-]+")
_UNSAFE_WORD: Final = re.compile(r"[^A-Za-z0-9._-]+")
_DIGITS: Final = re.compile(r"(\d+)")
_SUFFIXES: Final = (".nii.gz",)
"""Suffixes of two parts."""
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
class Upload:
    number: int
    label: str
    path: Path
    size_bytes: int
    kind: Kind = Kind.PLAIN
    warnings: tuple[str, ...] = ()


class Uploads:
    """The files, by number; for several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[int, Upload] = {}
        self._next = 0
        self._lock = threading.Lock()

    async def add(self, label: str, chunks: AsyncIterator[bytes]) -> Upload:
        shown = escape(label.strip())[:MAX_NAME]
        leaf = safe_name(shown.rpartition("/")[2])
        if not leaf:
            raise UsageError("a file without a name was dropped")
        with self._lock:
            if len(self._files) >= MAX_FILES:
                raise UsageError(f"{MAX_FILES} files are here already", hint="translate these first")
            number = self._next
            self._next += 1
        path = self.folder / f"{number:05}" / leaf
        try:
            size = await _write(path, chunks)
            kind, warnings = await asyncio.to_thread(recognise, path, Path(shown.partition("/")[0]))
        except DdibError as error:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise renamed(error, {str(path): shown}) from error
        except BaseException:
            shutil.rmtree(path.parent, ignore_errors=True)
            raise
        upload = Upload(number, shown, path, size, kind, warnings)
        with self._lock:
            self._files[number] = upload
        return upload

    def list(self) -> tuple[Upload, ...]:
        with self._lock:
            return tuple(sorted(self._files.values(), key=lambda each: natural(each.label)))

    def remove(self, number: int) -> None:
        with self._lock:
            found = self._files.pop(number, None)
        if found is None:
            raise ItemNotFound(f"there is no file {number}", hint="load the page again")
        shutil.rmtree(found.path.parent, ignore_errors=True)

    def clear(self) -> None:
        for each in self.list():
            self.remove(each.number)

    def take(self) -> tuple[Upload, ...]:
        """All files, which are the caller's from now on."""
        taken = self.list()
        with self._lock:
            for each in taken:
                self._files.pop(each.number, None)
        return taken

    def put_back(self, files: Sequence[Upload]) -> None:
        with self._lock:
            self._files.update({each.number: each for each in files})


def natural(name: str) -> tuple[tuple[int, int | str], ...]:
    """A key by which names are sorted with the numbers in them as numbers."""
    return tuple(
        (0, int(part)) if part.isdecimal() else (1, part.casefold()) for part in _DIGITS.split(name) if part
    )


def safe_name(name: str) -> str:
    return _UNSAFE.sub("_", name).lstrip(". ")[-120:]


def renamed(error: DdibError, labels: dict[str, str]) -> DdibError:
    """The error with the names that the person knows instead of paths in the private folder."""
    for path, label in sorted(labels.items(), key=lambda named: -len(named[0])):
        error.detail = error.detail.replace(path, label)
        error.hint = error.hint.replace(path, label)
    error.args = (error.detail,)
    return error


async def _write(path: Path, chunks: AsyncIterator[bytes]) -> int:
    path.parent.mkdir(mode=0o700)
    size = 0
    try:
        with path.open("xb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > MAX_ITEM_BYTES:
                    raise InputError(
                        f"{path} is too large: {MAX_ITEM_BYTES} bytes are the limit", hop="client"
                    )
                file.write(chunk)
    except OSError as error:
        kind = DiskFull if is_disk_full(error) else InputError
        raise kind(
            f"{path} cannot be kept: {error.strerror}", hop="client", hint="make room in /tmp"
        ) from error
    return size


def recognise(path: Path, called: Path) -> tuple[Kind, tuple[str, ...]]:
    """What a file is, once it is known that it can be translated, and what a person has to know of it."""
    if format_of(path) is Format.DICOM and is_directory_file(path):
        raise InputError(
            f"{path} lists the files of a folder, and is no picture",
            hop="client",
            hint="drop the whole folder: its pictures are found without the list",
        )
    with hinted_in_words():
        kind = format_of(path)
        if kind is Format.DICOM:
            return _dicom(path, called)
        if kind is not None:
            with _ONE_AT_A_TIME:
                return Kind.WHOLE, open_paths([path], Options()).studies[0].warnings
        payload(path)
        with path.open("rb") as file:
            points = file.read(len(MAGIC)) == MAGIC
        if not points:
            _require_picture(path)
        return Kind.PLAIN, ()


def _dicom(path: Path, called: Path) -> tuple[Kind, tuple[str, ...]]:
    """A slice of a series, decoded once."""
    found = sort_files([path])
    for _, error in found.unreadable:
        raise error
    if not found.series:
        raise ImageUnreadable(f"{path} holds no picture", hop="client")
    (headers,) = found.series.values()
    return Kind.SLICE, read_series(str(called), headers)[0].warnings


def _require_picture(path: Path) -> None:
    try:
        read_image(path)
    except DdibError as error:
        if str(path) not in error.detail:
            error.detail = f"{path}: {error.detail}"
        raise


def arranged(files: Sequence[Upload], folder: Path) -> tuple[DroppedSource, ...]:
    """The uploads as `ddib translate` expects them, with a name for the results of each, all different.

    FOLDER/dicom/NAME/...      the DICOM files of one dropped folder, whatever folders are in it
    FOLDER/dicom/NAME          DICOM files that were dropped without a folder
    FOLDER/whole/NAME.nii.gz   volumes, maps and pictures that nodes do not take
    """
    taken: set[str] = set()
    found = _series(files, folder / "dicom", taken)
    for each in files:
        if each.kind is Kind.SLICE:
            continue
        stem, suffix = _parted(each.label.replace("/", "_"))
        name = _unique(plain_word(stem, "picture"), taken)
        if each.kind is Kind.PLAIN:
            found.append(DroppedSource(each.path, name, each.label))
        else:
            path = folder / "whole" / f"{name}{suffix}"
            _link(each.path, path)
            found.append(DroppedSource(path, name, each.label, is_study=True))
    return tuple(found)


def numbered(name: str) -> Iterator[str]:
    return itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))


def _series(files: Sequence[Upload], folder: Path, taken: set[str]) -> list[DroppedSource]:
    """DICOM files: one `DroppedSource` for each dropped folder, and one for each file without a folder."""
    found: list[DroppedSource] = []
    tops: dict[str, Path] = {}
    slices = [each for each in files if each.kind is Kind.SLICE]
    for each in sorted(slices, key=lambda each: "/" in each.label):
        top, _, below = each.label.partition("/")
        if not below:
            path = folder / _free(folder, safe_name(top) or "slice")
            taken |= {folder.name, path.stem.casefold()}  # what the results of such files may be called
            found.append(DroppedSource(path, path.name, each.label, is_study=True))
        else:
            if top not in tops:
                tops[top] = folder / _unique(plain_word(top, "series"), taken)
                found.append(DroppedSource(tops[top], tops[top].name, top, is_study=True))
            *parents, leaf = [safe_name(part) or "_" for part in below.split("/")]
            place = tops[top].joinpath(*parents)
            path = place / _free(place, leaf)
        _link(each.path, path)
    return found


def _parted(name: str) -> tuple[str, str]:
    for suffix in _SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)], suffix
    path = Path(name)
    return path.stem, path.suffix.lower()


def plain_word(text: str, otherwise: str) -> str:
    return _UNSAFE_WORD.sub("_", text).strip("._") or otherwise


def _unique(name: str, taken: set[str]) -> str:
    found = next(each for each in numbered(name) if each.casefold() not in taken)
    taken.add(found.casefold())
    return found


def _free(folder: Path, name: str) -> str:
    return next(each for each in numbered(name) if not (folder / each).exists())


def _link(path: Path, at: Path) -> None:
    at.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        os.link(path, at)
    except OSError:
        shutil.copyfile(path, at)
