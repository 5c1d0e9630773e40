"""Measures a folder of translations against sources and truths, as stacks of pictures or volumes of one size and scale.

Records beside pictures (NAME.json) name the files; in a folder without any every picture is a translation. Sources and
truths have the same path below their folder, whatever the suffix. What the files do not show is read from records.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data.fitting import OWN_RANGES, Fit, PictureRule, file_range, fit_picture, to_array
from ddib_fed.data.folder import SUFFIXES
from ddib_fed.data.pictures import Picture, decode_volume, holds_volume, read_image
from ddib_fed.data.points import name_file
from ddib_fed.errors import FileMissing, PictureMisfit, ShapeMismatch, UsageError
from ddib_fed.metrics import Pictures, to_channels
from ddib_fed.models.units import PictureMap
from ddib_fed.record import Part, PictureFigures, Record

OnRead = Callable[[int, int], None]
Span = tuple[float, float]
SHEETS = frozenset({"sheet.png"})
DOMAIN_PICTURES = 1000
_RAW = (1.0, 0.0)  # slope and intercept of raw values


@dataclass(frozen=True, slots=True)
class FoundPicture:
    """A translation in a folder, with the files that its record names."""

    name: str
    translated: Path
    record: Record = field(default_factory=Record)
    files: Mapping[Part, Path] = field(default_factory=dict)

    @property
    def picture(self) -> PictureFigures:
        return self.record.picture or PictureFigures()


def find_pictures(folder: Path) -> list[FoundPicture]:
    """Return the translations in a folder: those with a record, or else every picture."""
    plain = by_name(folder)
    pictures = []
    for path in sorted(folder.rglob("*.json")):
        record = None if _hidden(path, folder) else Record.read(path)
        if record is None:
            continue
        files = {
            part: path.parent / written.file
            for part in Part
            if (written := record.files.get(part))
            and _is_beside(written.file)
            and (path.parent / written.file).is_file()
        }
        if (translated := files.pop(Part.TRANSLATION, None)) is not None:
            pictures.append(FoundPicture(_name(translated, folder), translated, record, files))
    pictures = pictures or [
        FoundPicture(name, path) for name, path in plain.items() if path.name not in SHEETS
    ]
    if not pictures:
        raise FileMissing(f"{folder} holds no picture", hint="name the folder that holds the translations")
    return pictures


def by_name(folder: Path) -> dict[str, Path]:
    """Return every picture below a folder by its path without suffix; of two with one name the first."""
    if not folder.is_dir():
        raise FileMissing(f"no such folder: {folder}")
    paths: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not _hidden(path, folder):
            paths.setdefault(_name(path, folder), path)
    return paths


class _Reader:
    """Brings files to one size and to [-1, 1]; counts those that had another size, which volumes may not."""

    def __init__(self, size: tuple[int, ...], total: int, on_read: OnRead | None, fit: Fit) -> None:
        self.size, self._total, self._on_read, self._fit = size, total, on_read, fit
        self.done = self.resized = 0

    def stack(self, paths: Sequence[Path], span: Span | None, scales: Sequence[Span] = ()) -> Pictures:
        """Return the samples in files, (N, C, *size); raw values outside of the span lie beyond [-1, 1]."""
        arrays: list[NDArray[np.float32]] = []
        for path, scale in zip(paths, scales or [_RAW] * len(paths), strict=True):
            picture, size = _read(path)
            if len(self.size) == 3 and size != self.size:
                raise ShapeMismatch(
                    f"{path} is of {size}, and the translations are volumes of {self.size}",
                    hint="bring all to the size of the translations",
                )
            own_range = file_range(picture.pixels, span, scale)
            if own_range is None:
                raise UsageError(
                    f"{path} holds {picture.pixels.dtype}, which has no range of its own",
                    hint="name the raw values that are black and white: --range LOW:HIGH",
                )
            rows, width = math.prod(self.size[:-1]), self.size[-1]
            rule = PictureRule(picture.pixels.shape[2], rows, width, self._fit, *own_range, 8)
            array = _original(picture, path, rule) if scale == _RAW else to_array(picture, rule)[0]
            arrays.append(array.reshape(-1, *self.size))
            self.done += 1
            self.resized += size != self.size
            if self._on_read is not None:
                self._on_read(self.done, self._total)
        channels = max(len(array) for array in arrays)
        return np.concatenate([to_channels(array[None], channels) for array in arrays])


def _read(path: Path) -> tuple[Picture, tuple[int, ...]]:
    """Read the picture in a file and its size; the slices of a volume lie one under the other."""
    content = path.read_bytes() if path.suffix.lower() == ".npy" else b""
    if not holds_volume(content):
        picture = read_image(path)
        return picture, picture.pixels.shape[:2]
    voxels = decode_volume(content)
    return Picture(voxels.reshape(-1, *voxels.shape[2:]), "NPY"), voxels.shape[:3]


def _original(picture: Picture, path: Path, rule: PictureRule) -> NDArray[np.float32]:
    """Return raw values; raise PictureMisfit unless they are in the rule's units."""
    try:
        return fit_picture(picture, rule).original
    except PictureMisfit as error:
        error.facts["model"] = f"--range {rule.low:g}:{rule.high:g}"
        named = name_file(error, str(path))
        named.hint = f"--range {error.facts['fits']}, or bring the file to the units of the others"
        raise named from error


@dataclass(frozen=True, slots=True)
class Translations:
    """Stacks of corresponding pictures, each (N, C, H, W) in [-1, 1], or volumes, (N, C, D, H, W)."""

    names: tuple[str, ...]
    records: tuple[Record, ...] = field(repr=False)
    translated: Pictures = field(repr=False)
    source: Pictures | None = field(repr=False)
    truth: Pictures | None = field(repr=False)
    back: Pictures | None = field(repr=False)
    domain: Pictures | None = field(repr=False)
    notes: tuple[str, ...]
    mapping: PictureMap | None = field(default=None, repr=False)  # of the calibration of all

    @property
    def mapped(self) -> Pictures | None:
        return None if self.mapping is None or self.source is None else self.mapping(self.source)

    def of(self, places: Sequence[int]) -> Translations:
        """Return the pictures at these places in `names`."""
        some: dict[str, Any] = {
            kind: None if (stack := getattr(self, kind)) is None else stack[places]
            for kind in ("translated", "source", "truth", "back")
        }
        some |= {kind: tuple(getattr(self, kind)[at] for at in places) for kind in ("names", "records")}
        return replace(self, **some)


def read_translations(
    folder: Path,
    *,
    source: Path | None = None,
    truth: Path | None = None,
    domain: Path | Pictures | None = None,
    size: int | None = None,
    fit: Fit = "resize",
    span: Span | None = None,
    mapping: PictureMap | None = None,
    on_read: OnRead | None = None,
) -> Translations:
    """Read a folder of translations with sources, truths, and other pictures of the target domain.

    The mapping counts only if every record names its calibration.
    """
    located = find_pictures(folder)
    pictures = [each.picture for each in located]
    notes: list[str] = []
    paths = {
        "translated": [each.translated for each in located],
        "source": _matched(located, source) if source else _recorded(located, Part.SOURCE, "source", notes),
        "truth": _matched(located, truth) if truth else [],
        "back": _recorded(located, Part.RETURNED, "back", notes),
        "domain": _thinned(domain) if isinstance(domain, Path) else [],
    }
    own, theirs = (
        span or (ranges[0] if len(set(ranges)) == 1 else None)
        for ranges in ([p.source_range for p in pictures], [p.target_range for p in pictures])
    )
    # A range that is a type's whole range need not be the type of truths: 8 bits may represent the same picture.
    others = span if theirs in OWN_RANGES else theirs
    spans = {"translated": theirs, "source": own, "truth": others, "back": own, "domain": others}
    # Translations and returned pictures are files of numbers, whose meaning the records say; the others are raw.
    scales = {"translated": [picture.output_scale for picture in pictures]}
    backs = [picture.back_scale for picture in pictures if picture.back_scale is not None]
    if len(backs) == len(pictures):
        scales["back"] = backs
        if source is None:  # a copy written beside it has the same numbers
            scales["source"] = backs
    elif paths["back"] and (own is not None or theirs not in {None, *OWN_RANGES}):
        paths["back"] = []
        notes.append("back: the records do not say what its numbers mean; its error is that of the records")
    used = {each.record.calibration_sha256 for each in located}
    if mapping is not None and used != {mapping.sha256}:
        mapping = None
        notes.append(
            "the map alone is left out: not all results are of the calibration that is kept beside them"
        )
    sides = (size, size) if size else _read(located[0].translated)[1]
    reader = _Reader(sides, sum(map(len, paths.values())), on_read, fit)
    chosen = {kind: files for kind, files in paths.items() if files}
    stacks = {kind: reader.stack(files, spans[kind], scales.get(kind, ())) for kind, files in chosen.items()}
    if isinstance(domain, np.ndarray):
        stacks["domain"] = domain
    if reader.resized:
        notes.append(
            f"{reader.resized} of {reader.done} files had another size and were brought to {sides[0]} x {sides[1]}"
        )
    if mapping is not None and "source" in stacks:
        stacks["source"] = to_channels(stacks["source"], mapping.map.channels)
    for kind, like in (("truth", "translated"), ("domain", "translated"), ("back", "source")):
        if kind in stacks and like in stacks:
            stacks[kind] = to_channels(stacks[kind], stacks[like].shape[1])
    return Translations(
        names=tuple(each.name for each in located),
        records=tuple(each.record for each in located),
        translated=stacks["translated"],
        **{kind: stacks.get(kind) for kind in ("source", "truth", "back", "domain")},
        notes=tuple(notes),
        mapping=mapping,
    )


def _matched(found: Sequence[FoundPicture], folder: Path) -> list[Path]:
    others = by_name(folder)
    for each in found:  # of `scan.jpg` and `scan.png` the one that was translated
        if _is_beside(each.record.input) and (given := folder / each.record.input).is_file():
            others[each.name] = given
    missing = [each.name for each in found if each.name not in others]
    if missing:
        raise FileMissing(
            f"{folder} has no picture for {len(missing)} of {len(found)} translations, first {missing[0]}",
            hint="pictures are paired by their path below the folder, without suffix",
        )
    return [others[each.name] for each in found]


def _recorded(found: Sequence[FoundPicture], kind: Part, called: str, notes: list[str]) -> list[Path]:
    paths = [each.files[kind] for each in found if kind in each.files]
    if paths and len(paths) < len(found):
        notes.append(f"{called}: only {len(paths)} of {len(found)} pictures have it, so it was left out")
    return paths if len(paths) == len(found) else []


def _thinned(folder: Path) -> list[Path]:
    paths = list(by_name(folder).values())
    if not paths:
        raise FileMissing(f"{folder} holds no picture")
    return [paths[i] for i in np.linspace(0, len(paths) - 1, min(DOMAIN_PICTURES, len(paths))).astype(int)]


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _is_beside(name: str) -> bool:
    return bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
