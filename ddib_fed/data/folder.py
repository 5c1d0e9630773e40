"""Scans a folder of pictures and decodes each once before training; order and classes depend only on names."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data.fitting import TYPE_RANGES, PictureRule, check_numbers, fit_picture, read_fitted
from ddib_fed.data.pictures import ImageLimits, Picture, decode_image, image_format, read_content, read_image
from ddib_fed.data.points import name_file
from ddib_fed.errors import (
    DdibError,
    FileMissing,
    ImageUnreadable,
    PictureMisfit,
    SettingsInvalid,
    UsageError,
)

Classes = Literal["folders", "prefix"] | None
Progress = Callable[[int, int], None]
Check = Callable[[Picture], object]
Sides = tuple[Path, Path, Path | None, Path | None]
"""Pictures of two domains to train on, and held-out pictures of each."""

SUFFIXES = frozenset({".png", ".apng", ".jpg", ".jpeg", ".jpe", ".tif", ".tiff", ".npy"})
# Unsupported picture formats: skipped silently, they would be missed much later.
OTHER_SUFFIXES = frozenset({
    ".bmp", ".dcm", ".gif", ".gz", ".heic", ".jp2", ".mha", ".mhd", ".nii", ".npz", ".nrrd", ".ppm", ".webp",
})  # fmt: skip
MAX_LISTED = 10


@dataclass(frozen=True, slots=True)
class Looks:
    height: int
    width: int
    channels: int
    dtype: str
    format: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Entry:
    path: Path
    label: str | None
    digest: str
    looks: Looks
    read: Callable[[], Picture] | None = None

    def picture(self) -> Picture:
        return self.read() if self.read is not None else read_image(self.path)


@dataclass(frozen=True, slots=True)
class Folder:
    root: Path
    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    bad: tuple[tuple[Path, str], ...]
    ignored: int


def two_sides(root: Path) -> Sides | None:
    """The four folders of the layout `trainA/ trainB/ testA/ testB/` under a root; None if it has no such layout."""
    if not ((root / "trainA").is_dir() and (root / "trainB").is_dir()):
        return None
    test_a, test_b = (path if path.is_dir() else None for path in (root / "testA", root / "testB"))
    return root / "trainA", root / "trainB", test_a, test_b


def scan(
    root: Path,
    *,
    classes: Classes = None,
    skip_bad: bool = False,
    check: Check | None = None,
    progress: Progress | None = None,
) -> Folder:
    """Every picture below a folder, decoded once."""
    require_one_domain(root)
    paths = list(_files(root))
    entries: list[Entry] = []
    bad: list[tuple[Path, DdibError]] = []
    ignored = 0
    for done, path in enumerate(paths, start=1):
        try:
            if path.suffix.lower() not in SUFFIXES | OTHER_SUFFIXES and not _begins_like_one(path):
                ignored += 1
            else:
                picture = decode_image(read_content(path, ImageLimits()))
                if check is not None:
                    check(picture)
                entries.append(Entry(path, label_of(path, root, classes), *describe(picture)))
        except DdibError as error:
            bad.append((path, error.kept()))
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
    names = {e.label for e in entries if e.label is not None}
    by = (lambda n: (int(n), n)) if all(n.isdecimal() for n in names) else None
    reasons = tuple((path, error.detail) for path, error in bad)
    return Folder(root, tuple(entries), tuple(sorted(names, key=by)), reasons, ignored)


def picture_files(root: Path) -> tuple[list[Path], int]:
    """Files below a folder with a picture's suffix, in the order of `scan`, and how many others; none is opened."""
    require_one_domain(root)
    paths = list(_files(root))
    named = [path for path in paths if path.suffix.lower() in SUFFIXES]
    return named, len(paths) - len(named)


def describe(picture: Picture) -> tuple[str, Looks]:
    pixels = picture.pixels
    digest = hashlib.sha256(f"{pixels.dtype.name} {pixels.shape}\n".encode())
    digest.update(np.ascontiguousarray(pixels, dtype=pixels.dtype.newbyteorder("<")).data)
    height, width, channels = pixels.shape
    low, high = float(pixels.min()), float(pixels.max())
    return digest.hexdigest(), Looks(height, width, channels, pixels.dtype.name, picture.format, low, high)


def require_outside(out: Path, pictures: Path) -> None:
    """Raise if `out` is inside the folder `pictures`, where output would become training pictures."""
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
    files: list[Path] = []
    for folder, below, names in os.walk(root):
        below[:] = [d for d in below if not d.startswith(".") and d != "__MACOSX"]
        files += [Path(folder) / n for n in names if not n.startswith(".")]
    yield from sorted(files, key=lambda p: p.relative_to(root).as_posix())


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


def _bad_files(root: Path, bad: list[tuple[Path, DdibError]], good: int) -> DdibError:
    """The error that names bad files; for a single file, and for pictures in other units, with what would fit."""
    path, first = bad[0]
    first = name_file(first, str(path))
    if root.is_file():
        return first
    named = [(path, error.detail) for path, error in bad]
    text = _listing(f"{len(bad)} of {len(bad) + good} pictures below {root} cannot be used:", named)
    if all(isinstance(error, PictureMisfit) for _, error in bad):
        others = "; or leave them out with --skip-bad" if good else ""
        return PictureMisfit(text, hint=f"{first.hint}{others}", facts=first.facts)
    hint = "repair or remove them, or leave them out with --skip-bad"
    return ImageUnreadable(text, hint=hint, facts={"bad": len(bad)})


def _listing(head: str, files: Sequence[tuple[Path, str]]) -> str:
    """A line for each of the first files and what is wrong with it."""
    lines = [head, *(f"  {path}: {what}" for path, what in files[:MAX_LISTED])]
    lines += [f"  and {len(files) - MAX_LISTED} more"] if len(files) > MAX_LISTED else []
    return "\n".join(lines)


SAMPLE_PICTURES = 200
SAMPLE_PIXELS = 20_000
MIN_USED = 0.5
MAX_CLIPPED = 0.05

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_VALUES = re.compile(rf"({_NUMBER}):({_NUMBER})")
_PERCENTILES = re.compile(r"p(\d+(?:\.\d+)?):p(\d+(?:\.\d+)?)")


class Survey(NamedTuple):
    """How many pictures of a folder have which channels and types, and lines for the person."""

    channels: Mapping[int, int]
    dtypes: Mapping[str, int]
    lines: list[str]


class Range(NamedTuple):
    """The raw values that become -1 and 1."""

    low: float
    high: float
    warnings: tuple[str, ...] = ()


def survey(folder: Folder) -> Survey:
    """Counts, sizes, types, values and duplicates of a folder; percentiles come from a sample of its pictures."""
    looks = [e.looks for e in folder.entries]
    sizes = [f"{n} of {h} x {w}" for (h, w), n in Counter((k.height, k.width) for k in looks).most_common()]
    channels, dtypes = Counter(k.channels for k in looks), Counter(k.dtype for k in looks)
    kinds = {"grey": channels[1], "RGB": channels[3], **dtypes, **Counter(k.format for k in looks)}
    values = ", ".join(f"{v:g}" for v in np.percentile(sample(folder.entries), [1, 50, 99]))
    more = f" and {len(sizes) - 5} other sizes" if len(sizes) > 5 else ""
    lines = [
        f"{len(looks)} pictures, {len(folder.bad)} left out",
        f"height x width: {', '.join(sizes[:5])}{more}",
        ", ".join(f"{n} {name}" for name, n in kinds.items() if n),
        f"values {min(k.low for k in looks):g} to {max(k.high for k in looks):g}; percentiles 1, 50, 99: {values}",
    ]
    if folder.classes:
        labels = Counter(e.label for e in folder.entries)
        lines.append("classes: " + ", ".join(f"{name} ({labels[name]})" for name in folder.classes))
    digests = Counter(e.digest for e in folder.entries)
    if again := len(looks) - len(digests):
        first = next(e.path for e in folder.entries if digests[e.digest] > 1)
        lines.append(f"{again} duplicates, the first of {first}")
    if blank := [e.path for e in folder.entries if e.looks.low == e.looks.high]:
        lines.append(f"{len(blank)} of one value throughout, the first {blank[0]}")
    return Survey(channels, dtypes, lines)


def sample(entries: Sequence[Entry]) -> NDArray[np.float32]:
    """(n,) float32: values of at most 200 pictures at equal steps, at most 20,000 of each; the same each time."""
    chosen = entries[:: -(-len(entries) // SAMPLE_PICTURES)]
    values = []
    for entry in chosen:
        flat = entry.picture().pixels.reshape(-1)
        values.append(flat[:: -(-flat.size // SAMPLE_PIXELS)].astype(np.float32))
    return np.concatenate(values)


def choose_range(folder: Folder, spec: str = "type") -> Range:
    """The range of `--range`, with warnings of its unused and clipped shares, from a sample of the values."""
    spec, values = spec.strip(), sample(folder.entries)
    hint = "--range LOW:HIGH (as -1000:2000), or --range p1:p99"
    types = Counter(e.looks.dtype for e in folder.entries)
    # Percentiles join wide types; nothing but stated values joins 8 bits with another one.
    if len(types) > 1 and (spec == "type" or ("uint8" in types and _PERCENTILES.fullmatch(spec))):
        raise _several_types(folder, types)
    if spec == "type":
        if (name := next(iter(types))) not in TYPE_RANGES:
            raise SettingsInvalid(f"{name} has no range of its own", hint=hint)
        low, high = TYPE_RANGES[name]
    elif match := _PERCENTILES.fullmatch(spec):
        shares = [float(p) for p in match.groups()]
        if not 0 <= shares[0] < shares[1] <= 100:
            raise SettingsInvalid(f"the percentiles of {spec} do not rise from 0 to 100", hint=hint)
        low, high = (float(v) for v in np.percentile(values, shares))
    elif match := _VALUES.fullmatch(spec):
        low, high = float(match[1]), float(match[2])
    else:
        raise SettingsInvalid(f"{spec!r} is no range", hint=hint)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise SettingsInvalid(f"the range {spec} is {low:g} to {high:g}, which is empty", hint=hint)
    warnings = []
    first, last = (float(v) for v in np.percentile(values, [0.1, 99.9]))
    used = max(0.0, min(last, high) - max(first, low)) / (high - low)
    if used < MIN_USED:
        warnings.append(
            f"{100 * (1 - used):.0f} % of the range {low:g}:{high:g} is empty: 99.8 % of the values lie between "
            f"{first:g} and {last:g}; --range {first:g}:{last:g} or --range p1:p99 would use it"
        )
    outside = float(np.mean((values < low) | (values > high)))
    if outside > MAX_CLIPPED:
        warnings.append(
            f"{100 * outside:.0f} % of the values lie outside the range {low:g}:{high:g} and will be clipped"
        )
    return Range(low, high, tuple(warnings))


def _several_types(folder: Folder, counts: Counter[str]) -> SettingsInvalid:
    """The error that names the pictures of a rarer type, with the command that brings them to the usual one."""
    usual, many = counts.most_common(1)[0]
    others = [each for each in folder.entries if each.looks.dtype != usual]
    if counts.keys() != {"uint8", "uint16"} or {each.looks.format for each in others} - {"PNG", "TIFF"}:
        ways = "--range LOW:HIGH" if "uint8" in counts else "--range LOW:HIGH or --range p1:p99"
        hint = f"save them as {usual}, or give {ways}, if all have the same units"
    elif max(each.looks.high for each in folder.entries) <= TYPE_RANGES["uint8"][1]:
        hint = "--range 0:255, which all of their values are in"
    else:
        bits, files = 8 * np.dtype(usual).itemsize, shlex.join(str(each.path) for each in others[:MAX_LISTED])
        hint = f"copy them, as it overwrites: mogrify -depth {bits} -define png:bit-depth={bits} {files}"
    head = f"below {folder.root} {many} pictures are of {usual}, and {len(others)} of another type:"
    return SettingsInvalid(_listing(head, [(each.path, each.looks.dtype) for each in others]), hint=hint)


def range_check(spec: str) -> Check | None:
    """A check that refuses pictures outside the units of a range `LOW:HIGH`; None for a range derived from them."""
    match = _VALUES.fullmatch(spec.strip())
    if match is None or not float(match[1]) < float(match[2]):
        return None
    return lambda picture: check_numbers(picture, float(match[1]), float(match[2]), windows=True)


def split(entries: Sequence[Entry], share: float = 0.1) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """(training part, held-out part), by the pixels' digests."""
    if not 0 <= share < 1:
        raise SettingsInvalid(f"a held-out share of {share} is not from 0 to below 1")

    def rank(digest: str) -> int:
        return int(hashlib.sha256(b"held-out" + digest.encode()).hexdigest()[:16], 16)

    ranks = {e.digest: rank(e.digest) for e in entries}
    held = {digest for digest, at in ranks.items() if at < share * 2**64}
    if share > 0 and len(ranks) > 1:
        by_rank = sorted(ranks, key=ranks.__getitem__)
        held = (held | {by_rank[0]}) - {by_rank[-1]}
    training = tuple(e for e in entries if e.digest not in held)
    return training, tuple(e for e in entries if e.digest in held)


def shared(a: Sequence[Entry], b: Sequence[Entry]) -> list[tuple[Path, Path]]:
    there = {e.digest: e.path for e in reversed(b)}
    return [(e.path, there[e.digest]) for e in a if e.digest in there]


def folder_digest(entries: Sequence[Entry]) -> str:
    lines = sorted(f"{e.digest} {e.label or ''}" for e in entries)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def class_numbers(entries: Sequence[Entry], classes: Sequence[str]) -> NDArray[np.int64]:
    """(N,) int64: the number of each entry's class in `classes`."""
    number = {name: i for i, name in enumerate(classes)}
    for entry in entries:
        if entry.label not in number:
            raise SettingsInvalid(
                f"{entry.path} has the class {entry.label!r}, which is not one of {len(number)}"
            )
    return np.array([number[str(e.label)] for e in entries], dtype=np.int64)


def load(
    entries: Sequence[Entry], rule: PictureRule, *, compact: bool = False, progress: Progress | None = None
) -> NDArray[Any]:
    """The arrays of all entries for a model whose range and channels were chosen for this folder."""
    kind = np.dtype(np.float32) if not compact else np.dtype(np.uint8 if rule.bits == 8 else np.uint16)
    out = np.empty((len(entries), rule.channels, rule.height, rule.width), dtype=kind)
    for i, entry in enumerate(entries):
        fitted = (
            read_fitted(entry.path, rule, windows=True, grey=True)
            if entry.read is None
            else fit_picture(entry.read(), rule, windows=True, grey=True)
        )
        x = fitted.samples
        out[i] = np.rint((x + 1) * np.float32(rule.top / 2)) if compact else x
        if progress:
            progress(i + 1, len(entries))
    return out


def expand(numbers: NDArray[Any]) -> NDArray[np.float32]:
    """Float32 in [-1, 1] from the uint8 or uint16 of `load`; float32 is returned as it is."""
    if numbers.dtype.kind == "f":
        return numbers.astype(np.float32, copy=False)
    half = np.float32(np.iinfo(numbers.dtype).max / 2)
    return numbers.astype(np.float32) / half - np.float32(1)
