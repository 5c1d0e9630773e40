"""Scans a folder of pictures and checks every file.

Every picture is decoded once before training, so that a damaged file is found in the
first minute and not in the third hour; order and classes depend only on names.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ddib_fed.errors import DdibError, FileMissing, ImageUnreadable, PictureMisfit, UsageError
from ddib_fed.samples.images import (
    ImageLimits,
    Picture,
    decode_image,
    image_format,
    read_content,
    read_image,
)
from ddib_fed.samples.kinds import name_file

Classes = Literal["folders", "prefix"] | None
Progress = Callable[[int, int], None]
Check = Callable[[Picture], object]

SUFFIXES = frozenset({".png", ".apng", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".npy"})
# Unsupported picture formats: skipped silently, they would be missed much later.
OTHER_SUFFIXES = frozenset({
    ".bmp", ".dcm", ".gif", ".gz", ".heic", ".jp2", ".mha", ".mhd", ".nii", ".npz", ".nrrd", ".ppm", ".webp",
})  # fmt: skip
MAX_LISTED = 10


@dataclass(frozen=True, slots=True)
class Looks:
    """Properties of a decoded picture."""

    height: int
    width: int
    channels: int
    dtype: str
    format: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Entry:
    """One good picture of a folder."""

    path: Path
    label: str | None
    digest: str
    looks: Looks
    read: Callable[[], Picture] | None = None

    def picture(self, limits: ImageLimits | None = None) -> Picture:
        return self.read() if self.read is not None else read_image(self.path, limits)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder that was scanned."""

    root: Path
    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    bad: tuple[tuple[Path, str], ...]
    ignored: int


class Sides(NamedTuple):
    """The four folders of the layout `trainA/ trainB/ testA/ testB/`; a test folder may be missing."""

    train_a: Path
    train_b: Path
    test_a: Path | None
    test_b: Path | None


def two_sides(root: Path) -> Sides | None:
    """The folders of two domains under one root, or None if `root` has no such layout."""
    if not ((root / "trainA").is_dir() and (root / "trainB").is_dir()):
        return None
    tests = [p if p.is_dir() else None for p in (root / "testA", root / "testB")]
    return Sides(root / "trainA", root / "trainB", *tests)


def scan(
    root: Path,
    *,
    classes: Classes = None,
    limits: ImageLimits | None = None,
    skip_bad: bool = False,
    check: Check | None = None,
    progress: Progress | None = None,
) -> Folder:
    """Every picture below a folder, decoded once."""
    limits = limits or ImageLimits()
    require_one_domain(root)
    paths = list(_files(root))
    entries: list[Entry] = []
    bad: list[tuple[Path, DdibError]] = []
    ignored = 0
    for done, path in enumerate(paths, start=1):
        try:
            entry = _entry(path, root, classes, limits, check)
        except DdibError as error:
            bad.append((path, error.kept()))
        else:
            entries += [entry] if entry else []
            ignored += entry is None
        if progress:
            progress(done, len(paths))
    return as_folder(root, entries, bad, ignored, skip_bad=skip_bad)


def as_folder(
    root: Path, entries: list[Entry], bad: list[tuple[Path, DdibError]], ignored: int, *, skip_bad: bool
) -> Folder:
    """A folder of these; arguments and errors as of `scan`."""
    if bad and not skip_bad:
        raise _bad_files(root, bad, len(entries))
    if not entries:
        first = f"; {bad[0][0]}: {bad[0][1].detail}" if bad else ""
        raise FileMissing(f"no picture below {root} ({len(bad)} bad files, {ignored} of other kinds){first}")
    names = _sorted_names({e.label for e in entries if e.label is not None})
    reasons = tuple((path, error.detail) for path, error in bad)
    return Folder(root, tuple(entries), names, reasons, ignored)


def picture_files(root: Path) -> tuple[list[Path], int]:
    """Files below a folder with a picture's suffix, in the order of `scan`, and how many others; none is opened."""
    require_one_domain(root)
    paths = list(_files(root))
    named = [path for path in paths if path.suffix.lower() in SUFFIXES]
    return named, len(paths) - len(named)


def describe(picture: Picture) -> tuple[str, Looks]:
    """The digest and the looks of a picture."""
    pixels = picture.pixels
    digest = hashlib.sha256(f"{pixels.dtype.name} {pixels.shape}\n".encode())
    digest.update(np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).data)
    height, width, channels = pixels.shape
    low, high = float(pixels.min()), float(pixels.max())
    return digest.hexdigest(), Looks(height, width, channels, pixels.dtype.name, picture.format, low, high)


def require_outside(out: Path, pictures: Path) -> None:
    """Return if `out` is not inside the folder `pictures`, where output would become training pictures."""
    root = pictures.resolve()
    if pictures.is_dir() and (out.resolve() == root or root in out.resolve().parents):
        raise UsageError(
            f"{out} lies among the pictures of {pictures}: results would become sources",
            hint="choose a folder beside it",
        )


def require_one_domain(root: Path) -> None:
    if not root.exists():
        raise FileMissing(f"no such folder: {root}")
    if two_sides(root):
        raise UsageError(
            f"{root} holds trainA and trainB, which are two domains",
            hint=f"name one of them: {root / 'trainA'}",
        )


def _files(root: Path) -> Iterator[Path]:
    """Files below a folder in the order of their paths; neither hidden ones nor those of hidden folders."""
    if root.is_file():
        yield root
        return
    found: list[Path] = []
    for folder, below, names in os.walk(root):
        below[:] = [d for d in below if not d.startswith(".") and d != "__MACOSX"]
        found += [Path(folder) / n for n in names if not n.startswith(".")]
    yield from sorted(found, key=lambda p: p.relative_to(root).as_posix())


def _entry(
    path: Path, root: Path, classes: Classes, limits: ImageLimits, check: Check | None
) -> Entry | None:
    """The entry of a file; None for a file that is not a picture by name or content."""
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES | OTHER_SUFFIXES and not _begins_like_one(path):
        return None
    picture = decode_image(read_content(path, limits), limits)
    if check is not None:
        check(picture)
    digest, looks = describe(picture)
    return Entry(path, label_of(path, root, classes), digest, looks)


def _begins_like_one(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return image_format(file.read(16)) is not None
    except OSError:
        return False


def label_of(path: Path, root: Path, classes: Classes) -> str | None:
    if classes is None:
        return None
    if classes == "prefix":
        name, mark, _ = path.stem.partition("_")
        if not mark or not name:
            raise ImageUnreadable("its name has no class before an underscore, as in cat_001.png")
        return name
    parts = path.relative_to(root).parts
    if len(parts) < 2:
        raise ImageUnreadable("it lies in no sub-folder, which would name its class")
    return parts[0]


def _sorted_names(names: set[str]) -> tuple[str, ...]:
    if all(n.isdecimal() for n in names):
        return tuple(sorted(names, key=lambda n: (int(n), n)))
    return tuple(sorted(names))


def _bad_files(root: Path, bad: list[tuple[Path, DdibError]], good: int) -> DdibError:
    """The error that names bad files; for a single file, and for pictures in other units, with what would fit."""
    path, first = bad[0]
    first = name_file(first, str(path))
    if root.is_file():
        return first
    listed = [f"  {path}: {error.detail}" for path, error in bad[:MAX_LISTED]]
    more = [f"  and {len(bad) - MAX_LISTED} more"] if len(bad) > MAX_LISTED else []
    detail = "\n".join(
        [f"{len(bad)} of {len(bad) + good} pictures below {root} cannot be used:", *listed, *more]
    )
    if all(isinstance(error, PictureMisfit) for _, error in bad):
        others = "; or leave them out with --skip-bad" if good else ""
        return PictureMisfit(detail, hint=f"{first.hint}{others}", facts=first.facts)
    return ImageUnreadable(
        detail, hint="repair or remove them, or leave them out with --skip-bad", facts={"bad": len(bad)}
    )
