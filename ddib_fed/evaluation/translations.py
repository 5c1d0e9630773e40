"""Loads a folder of translations, with sources and truths, as stacks of pictures of one size and scale.

A folder written by `ddib translate` has a record beside each picture (NAME.json), which names the
files; in any other folder every picture is a translation. Sources and truths are found by name: the same path
below their folder, whatever the suffix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data.decoding import Picture
from ddib_fed.data.fitting import OWN_RANGES, PictureRule, fit_picture, name_misfit, to_array
from ddib_fed.data.folder import SUFFIXES
from ddib_fed.data.pictures import read_image
from ddib_fed.engine.record import Part, PictureFigures, Translation
from ddib_fed.errors import FileMissing, InputError, PictureMisfit, UsageError
from ddib_fed.evaluation.metrics import Pictures, to_channels

OnRead = Callable[[int, int], None]
SHEETS = frozenset({"sheet.png"})
_RAW = (1.0, 0.0)
"""Slope and intercept of a file whose numbers are raw values."""


@dataclass(frozen=True, slots=True)
class Item:
    name: str
    translated: Path
    record: Translation = field(default_factory=Translation)
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def picture(self) -> PictureFigures:
        return self.record.picture or PictureFigures()


@dataclass(frozen=True, slots=True)
class Scale:
    """The conversion of files to one size and to [-1, 1]."""

    height: int
    width: int
    span: tuple[float, float] | None = None

    def stack(
        self, paths: Sequence[Path], scales: Sequence[tuple[float, float]], tell: Callable[[Path, bool], None]
    ) -> Pictures:
        """The pictures in files, (N, C, H, W) in [-1, 1]; raw values outside of the span lie beyond."""
        arrays: list[NDArray[np.float32]] = []
        for number, path in enumerate(paths):
            picture = read_picture(path)
            scale = scales[number] if scales else _RAW
            low, high = self.numbers(picture, path, scale)
            rule = PictureRule(picture.pixels.shape[2], self.height, self.width, "resize", low, high, 8)
            arrays.append(_original(picture, path, rule) if scale == _RAW else to_array(picture, rule)[0])
            tell(path, picture.pixels.shape[:2] == (self.height, self.width))
        channels = max(len(array) for array in arrays)
        return np.concatenate([to_channels(array[None], channels) for array in arrays])

    def numbers(self, picture: Picture, path: Path, output_scale: tuple[float, float]) -> tuple[float, float]:
        """Numbers in the file that become -1 and 1."""
        if self.span is not None:
            slope, intercept = output_scale
            return (self.span[0] - intercept) / slope, (self.span[1] - intercept) / slope
        if picture.pixels.dtype.kind != "u":
            raise UsageError(
                f"{path} holds {picture.pixels.dtype}, which has no range of its own",
                hint="name the raw values that are black and white: --range LOW:HIGH",
            )
        return 0.0, float(np.iinfo(picture.pixels.dtype).max)


@dataclass(frozen=True, slots=True)
class Translations:
    """Stacks of corresponding pictures, each (N, C, H, W) in [-1, 1]."""

    names: tuple[str, ...]
    records: tuple[Translation, ...] = field(repr=False)
    translated: Pictures = field(repr=False)
    source: Pictures | None = field(repr=False)
    truth: Pictures | None = field(repr=False)
    back: Pictures | None = field(repr=False)
    latents: NDArray[np.float32] | None = field(repr=False)
    scale: Scale
    source_scale: Scale
    notes: tuple[str, ...]


def find_items(folder: Path) -> list[Item]:
    if not folder.is_dir():
        raise FileMissing(f"no such folder: {folder}")
    paths = [path for path in sorted(folder.rglob("*.json")) if not _hidden(path, folder)]
    found = [item for path in paths if (item := read_item(path, folder)) is not None]
    if not found:
        plain = by_name(folder)
        found = [Item(name, path) for name, path in plain.items() if path.name not in SHEETS]
    if not found:
        raise FileMissing(f"{folder} holds no picture", hint="name the folder that holds the translations")
    return found


def read_item(path: Path, folder: Path) -> Item | None:
    """The translation of a record file; None if it is not a record, or its translation is missing."""
    record = Translation.read(path)
    if record is None:
        return None
    files = {
        kind: found
        for kind, written in record.files.items()
        if (found := _file(path.parent, written.file)) is not None
    }
    translated = files.pop(Part.TRANSLATION, None)
    return None if translated is None else Item(_name(translated, folder), translated, record, files)


def by_name(folder: Path) -> dict[str, Path]:
    """Every picture below a folder by its path without suffix; of two with one name the first."""
    if not folder.is_dir():
        raise FileMissing(f"no such folder: {folder}")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and not _hidden(path, folder):
            found.setdefault(_name(path, folder), path)
    return found


def read_translations(
    folder: Path,
    *,
    source: Path | None = None,
    truth: Path | None = None,
    size: int | None = None,
    span: tuple[float, float] | None = None,
    on_read: OnRead | None = None,
) -> Translations:
    """Read a folder of translations with sources, truths and latents."""
    items = find_items(folder)
    height, width = read_picture(items[0].translated).pixels.shape[:2]
    scale = Scale(size or height, size or width, span)
    notes: list[str] = []
    paths = {
        "translated": [item.translated for item in items],
        "source": _recorded(items, Part.SOURCE, "source", notes)
        if source is None
        else _beside(items, source),
        "truth": [] if truth is None else _beside(items, truth),
        "back": _recorded(items, Part.RETURNED, "back", notes),
    }
    # Translations and returned pictures are files of numbers; sources and truths are raw.
    pictures = [item.picture for item in items]
    own, theirs = (
        replace(scale, span=span or _agreed([getattr(picture, side) for picture in pictures]))
        for side in ("source_range", "target_range")
    )
    # A range that is a type's whole range need not be the type of truths: 8 bits may represent the same picture.
    others = replace(theirs, span=span) if theirs.span in OWN_RANGES else theirs
    places = {"translated": theirs, "source": own, "truth": others, "back": own}
    scales = _recorded_scales(pictures, copied=source is None)
    needed = own.span is not None or theirs.span not in {None, *OWN_RANGES}
    if paths["back"] and "back" not in scales and needed:
        paths["back"] = []
        notes.append(
            "back: the records do not say what its numbers mean, so its error is that of the records"
        )
    tell = _Reading(sum(map(len, paths.values())), on_read)
    stacks = {
        kind: places[kind].stack(chosen, scales.get(kind, ()), tell) if chosen else None
        for kind, chosen in paths.items()
    }
    translated = stacks["translated"]
    assert translated is not None
    if tell.resized:
        size_said = f"{scale.height} x {scale.width}"
        notes.append(f"{tell.resized} of {tell.done} files had another size and were brought to {size_said}")
    return Translations(
        names=tuple(item.name for item in items),
        records=tuple(item.record for item in items),
        translated=translated,
        source=stacks["source"],
        truth=_with_channels(stacks["truth"], translated.shape[1]),
        back=_with_channels(stacks["back"], 0 if stacks["source"] is None else stacks["source"].shape[1]),
        latents=_latents(items, notes),
        scale=others,
        source_scale=own,
        notes=tuple(notes),
    )


def _recorded_scales(
    pictures: Sequence[PictureFigures], *, copied: bool
) -> dict[str, list[tuple[float, float]]]:
    """What the numbers of each kind's files mean, by the records; of returned pictures where all records say it."""
    scales = {"translated": [picture.output_scale for picture in pictures]}
    backs = [picture.back_scale for picture in pictures if picture.back_scale is not None]
    if len(backs) == len(pictures):
        scales["back"] = backs
        if copied:  # a copy written beside it has the same numbers
            scales["source"] = backs
    return scales


def _agreed(ranges: Sequence[tuple[float, float] | None]) -> tuple[float, float] | None:
    return ranges[0] if len(set(ranges)) == 1 else None


def read_domain(folder: Path, scale: Scale, *, most: int, on_read: OnRead | None = None) -> Pictures:
    """Pictures of a folder at a scale, evenly thinned to at most `most`, (N, C, H, W) in [-1, 1]."""
    paths = list(by_name(folder).values())
    if not paths:
        raise FileMissing(f"{folder} holds no picture")
    chosen = [paths[i] for i in np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int)]
    return scale.stack(chosen, (), _Reading(len(chosen), on_read))


def read_picture(path: Path) -> Picture:
    """The picture in a file; errors as `read_image`, with the file's name."""
    try:
        return read_image(path)
    except InputError as error:
        if str(path) not in error.detail:
            error.detail = f"{path}: {error.detail}"
            error.args = (error.detail,)
        raise


def _original(picture: Picture, path: Path, rule: PictureRule) -> NDArray[np.float32]:
    """Raw values, after a check that they are in the rule's units."""
    try:
        return fit_picture(picture, rule).original
    except PictureMisfit as error:
        error.facts["model"] = f"--range {rule.low:g}:{rule.high:g}"
        found = name_misfit(error, str(path))
        found.hint = f"--range {error.facts['fits']}, or bring the file to the units of the others"
        raise found from error


class _Reading:
    def __init__(self, total: int, on_read: OnRead | None) -> None:
        self.done = self.resized = 0
        self._total, self._on_read = total, on_read

    def __call__(self, path: Path, fits: bool) -> None:
        del path
        self.done += 1
        self.resized += not fits
        if self._on_read is not None:
            self._on_read(self.done, self._total)


def _beside(items: Sequence[Item], folder: Path) -> list[Path]:
    """The picture of each item's name in another folder."""
    there = by_name(folder)
    missing = [item.name for item in items if item.name not in there]
    if missing:
        raise FileMissing(
            f"{folder} has no picture for {len(missing)} of {len(items)} translations, first {missing[0]}",
            hint="pictures are paired by their path below the folder, without suffix",
        )
    return [there[item.name] for item in items]


def _recorded(items: Sequence[Item], kind: str, called: str, notes: list[str]) -> list[Path]:
    found = [item.files[kind] for item in items if kind in item.files]
    if found and len(found) < len(items):
        notes.append(f"{called}: only {len(found)} of {len(items)} pictures have it, so it was left out")
    return found if len(found) == len(items) else []


def _latents(items: Sequence[Item], notes: list[str]) -> NDArray[np.float32] | None:
    paths = _recorded(items, Part.LATENT, "latent", notes)
    latents = [np.load(path, allow_pickle=False) for path in paths]
    # A node's latent has a batch dimension of one.
    latents = [latent[0] if latent.ndim == 4 and len(latent) == 1 else latent for latent in latents]
    if not latents:
        return None
    if len({latent.shape for latent in latents}) != 1 or latents[0].ndim != 3:
        notes.append("latents: they have several shapes, so they were left out")
        return None
    return np.stack(latents).astype(np.float32)


def _with_channels(pictures: Pictures | None, channels: int) -> Pictures | None:
    return pictures if pictures is None or channels == 0 else to_channels(pictures, channels)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _file(folder: Path, name: str) -> Path | None:
    if not name or Path(name).is_absolute() or ".." in Path(name).parts:
        return None
    path = folder / name
    return path if path.is_file() else None


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
