"""The files that were dropped: kept in a private folder and looked into at once; and what a browser shows of a file.

Formats of the field are read by `ddib_fed.formats`, as `ddib translate` reads them later; all else must be a file that
a node takes as it is. What cannot be sent is refused by name.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import threading
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ddib_fed.client.files import MAX_ITEM_BYTES, FileItem, read_items
from ddib_fed.data.pictures import Pixels, encode_png, image_format, shown_pixels
from ddib_fed.data.points import FEW_COLUMNS, parse_npy, read_header
from ddib_fed.errors import DdibError, DiskFull, InputError, ItemNotFound, UsageError
from ddib_fed.files import is_disk_full, make_private_folders
from ddib_fed.formats.dicom import read_series, sort_files
from ddib_fed.formats.opening import open_paths
from ddib_fed.formats.study import Options
from ddib_fed.recognition import Format, format_of
from ddib_fed.terminal import escape
from ddib_fed.web.guard import hinted_in_words

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
    shape = read_header(content).shape if kind == "NPY" else ()
    if len(shape) == 2 and shape[1] <= FEW_COLUMNS:
        pixels = density(parse_npy(content, max_bytes=len(content), max_points=MAX_POINTS))
    else:
        pixels = shown(shown_pixels(content), window)
    return encode_png(pixels), MEDIA["PNG"]


def own_window(values: Pixels) -> Window:
    """The numbers between which the middle 99 % of some values lie."""
    low, high = np.percentile(values, WINDOW)
    return float(low), float(high)


def shown(values: Pixels, window: Window | None = None) -> NDArray[np.uint8]:
    """Pixels (H, W, C) as 8 bits, the window's numbers black and white; those of 8 bits are as they are."""
    if values.dtype == np.uint8:
        return np.asarray(values, np.uint8)
    low, high = window or own_window(values)
    scaled = (values.astype(np.float64) - low) / max(high - low, 1e-12)
    return np.asarray(np.clip(scaled, 0.0, 1.0) * 255.0 + 0.5, np.uint8)


def density(points: NDArray[Any]) -> NDArray[np.uint8]:
    """A drawing (SIZE, SIZE, 1) of the first two coordinates of points (N, D): the darker, the more points."""
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
MAX_PART: Final = 200
"""Bytes of a file's name: a file system takes 255, with what results and temporary files have besides."""
DROPPED: Final = "dicom"
"""Name of the folder with the files of a translation; after it are called the results of DICOM files."""
_ONE_AT_A_TIME: Final = threading.Lock()
"""A volume or a map takes a few times its size while it is read, and files are dropped several at once."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that was dropped; plain ones go to the node as they are.

    Attributes:
        label: Its path in what was dropped, which leads nowhere else.
    """

    number: int
    label: str
    path: Path
    size_bytes: int
    is_plain: bool = True
    warnings: tuple[str, ...] = ()


class Uploads:
    """The files, by number; for several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[int, Upload] = {}
        self._next = 0
        self._lock = threading.Lock()

    async def add(self, label: str, chunks: AsyncIterator[bytes]) -> Upload:
        label = safe_label(label)
        if not label:
            raise UsageError("a file without a name was dropped")
        with self._lock:
            if len(self._files) >= MAX_FILES:
                raise UsageError(f"{MAX_FILES} files are here already", hint="translate these first")
            number = self._next
            self._next += 1
        folder = self.folder / f"{number:05}"
        path = folder / label
        try:
            size = await _write(path, chunks)
            is_plain, warnings = await asyncio.to_thread(recognise, path, label)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, DdibError):
                renamed(error, folder)
            raise
        upload = Upload(number, label, path, size, is_plain, warnings)
        with self._lock:
            self._files[number] = upload
        return upload

    def list(self) -> tuple[Upload, ...]:
        with self._lock:
            return tuple(sorted(self._files.values(), key=lambda each: each.label.casefold()))

    def remove(self, number: int) -> None:
        with self._lock:
            found = self._files.pop(number, None)
        if found is None:
            raise ItemNotFound(f"there is no file {number}", hint="load the page again")
        shutil.rmtree(self.folder / f"{number:05}", ignore_errors=True)

    def clear(self) -> None:
        for each in self.list():
            self.remove(each.number)

    def take(self) -> tuple[Upload, ...]:
        """All files, which are the caller's from now on."""
        with self._lock:
            taken, self._files = tuple(self._files.values()), {}
        return taken

    def put_back(self, files: Sequence[Upload]) -> None:
        with self._lock:
            self._files.update({each.number: each for each in files})


def safe_label(name: str) -> str:
    """The path that a browser names, without what leads out of a folder, hides a file or does not print."""
    parts = (part.strip().lstrip(". ") for part in escape(name.strip())[:MAX_NAME].split("/"))
    return "/".join(_shortened(part.encode()) for part in parts if part)


def _shortened(name: bytes) -> str:
    """A name without its middle, if no file of results could be called after it."""
    return (name if len(name) <= MAX_PART else name[: MAX_PART - 40] + name[-40:]).decode(errors="ignore")


def renamed(error: DdibError, folder: Path) -> DdibError:
    """The error with the names that the person knows instead of paths in a private folder."""
    for private in (f"{folder}: {DROPPED}/", f"{folder}/"):
        error.detail = error.detail.replace(private, "")
    error.detail = error.detail.replace(str(folder), "the DICOM files")
    error.hint = error.hint.replace(f"{folder}/", "")
    return error


async def _write(path: Path, chunks: AsyncIterator[bytes]) -> int:
    size = 0
    try:
        make_private_folders(path.parent)
        with path.open("xb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > MAX_ITEM_BYTES:
                    raise InputError(f"{path} is larger than {MAX_ITEM_BYTES} bytes", hop="client")
                file.write(chunk)
    except OSError as error:
        kind = DiskFull if is_disk_full(error) else InputError
        raise kind(
            f"{path} cannot be kept: {error.strerror}", hop="client", hint="make room in /tmp"
        ) from error
    return size


def recognise(path: Path, label: str) -> tuple[bool, tuple[str, ...]]:
    """Whether a file is plain, once it is known that it can be translated; and what a person has to know of it."""
    kind = format_of(path)
    with hinted_in_words():
        if kind is Format.DICOM:
            found = sort_files([path])
            for _, error in found.unreadable:
                raise error
            found.require_pictures(path)
            (headers,) = found.series.values()
            return False, read_series(label.partition("/")[0], headers)[0].warnings
        if kind is not None:
            with _ONE_AT_A_TIME:
                return False, open_paths([path], Options()).studies[0].warnings
        for bad in read_items([FileItem(path.stem, label, path=path)], lambda _: "", decode=True)[1]:
            bad.error.detail = f"{path}: {bad.why}"
            raise bad.error
        return True, ()


def arranged(files: Sequence[Upload], folder: Path) -> Path:
    """The folder that is translated: the files as they lay in what was dropped; of one name they get numbers."""
    dropped = folder / DROPPED
    # The deepest first: a file that is called like a folder gets a number.
    for each in sorted(files, key=lambda each: -each.label.count("/")):
        path = dropped / each.label
        numbered = (path.with_name(f"{path.stem}-{n}{path.suffix}") for n in itertools.count(2))
        at = next(place for place in itertools.chain([path], numbered) if not place.exists())
        make_private_folders(at.parent)
        try:
            os.link(each.path, at)
        except OSError:
            shutil.copyfile(each.path, at)
    return dropped
