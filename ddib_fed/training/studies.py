"""Studies to train on: the planes of DICOM, NIfTI and GeoTIFF as `ddib translate` sends them, or blocks of volumes.

Whole patients are held out, or files where none are named; of a map one end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data import folder as folders
from ddib_fed.data.folder import Entry, Folder, Progress
from ddib_fed.data.pictures import Picture, decode_image
from ddib_fed.errors import DdibError, ExtraMissing, ImageUnreadable, InputError, SettingsInvalid, UsageError
from ddib_fed.models.manifest import DataNote, PictureFormat
from ddib_fed.recognition import TAKEN, Bad, files_below, open_recognised, reader_of, readers, recognise
from ddib_fed.training.config import TrainConfig

if TYPE_CHECKING:
    from ddib_fed.data.study import Studies, Study

T = TypeVar("T")
Entries = tuple[Entry, ...]
Floats = NDArray[np.float32]
Say = Callable[[str], None]
Split = Callable[[float], tuple[Entries, Entries]]
"""(training part, held-out part) of a folder's pictures, by the share that is held out."""
CROP_ROOM = 8  # with random windows pictures are kept larger by this part of their size
HU_RANGE: Final = "-1000:2000"
"""Hounsfield units that become -1 and 1 where no range is given: from air to dense bone."""


class Looked(NamedTuple):
    """A folder of which every picture was looked at once; `form` says of studies how they become pictures."""

    folder: Folder
    range: str
    split: Split
    lines: tuple[str, ...] = ()
    form: PictureFormat = PictureFormat()


Read = Callable[[int, int], Picture]  # the picture of a study's plane, by the numbers of both


class _Seen(NamedTuple):
    """What is kept of a study. Its subject is of whom or what it is, from the widest to the narrowest: patient,
    examination, series or file; compared, and never shown. Tiles of a map are (top, left, height, width) in pixels.
    """

    kind: str
    rule: str
    warnings: tuple[str, ...]
    subject: tuple[str, str, str]
    entries: Entries
    empty: int
    tiles: tuple[tuple[int, int, int, int], ...]


def look_at_studies(root: Path, config: TrainConfig, side: int, progress: Progress | None) -> Looked | None:
    """The planes of all studies below a folder, as `ddib translate` sends them; None for a folder of pictures."""
    from ddib_fed.data.study import Options

    folders.require_one_domain(root)
    recognised = recognise([root])
    formats = {each.reader for each in recognised.studies if not each.reader.is_picture}
    for name in ("intensity", "slices"):
        if getattr(config, name) is not None and not any(name in each.uses for each in formats):
            takers = sorted(each.kind for each in readers() if name in each.uses and not each.is_picture)
            problem = f"{name} is for {' and '.join(takers)}, and there is none below {root}"
            raise SettingsInvalid(problem, hint=f"a folder of such files, or leave {name} out")
    if not formats:
        return None
    kinds = {each.kind for each in formats}
    _require_one(root, kinds, hint="give a folder that holds one of them")
    pictures = [each.path for each in recognised.studies if each.reader.is_picture]
    if recognised.plain:
        plain = (path for path in files_below(root, None).files if path.suffix.lower() in TAKEN)
        pictures += [path for path in plain if reader_of(path) is None]
    for path in pictures:
        hint = "move one of them into a folder of its own"
        _require_one(root, {*kinds, f"pictures such as {path.name}"}, hint=hint)
    bad: Bad = []
    kept = replace(recognised, studies=tuple(each for each in recognised.studies if each.reader in formats))
    options = Options(config.intensity or "auto", config.slices or "axial", (side, side))
    studies, seen = open_recognised(kept, options, bad=bad).studies, list[_Seen]()
    read = _reader(studies)
    for at in range(len(studies)):
        origin = studies.origins[at]
        try:
            seen.append(_look_at_study(studies[at], at, read, config))
        except (ExtraMissing, SettingsInvalid, UsageError):
            raise
        except DdibError as error:
            error.detail = error.detail.removeprefix(f"{origin.called}: ")
            bad.append((Path(origin.called), error.kept()))
        except OSError as error:
            why = f"it cannot be read: {error.strerror or error}"
            bad.append((Path(origin.called), ImageUnreadable(why)))
        if progress:
            progress(at + 1, len(studies))
    entries = [entry for each in seen for entry in each.entries]
    folder = folders.as_folder(root, entries, bad, recognised.ignored.total(), skip_bad=config.skip_bad)
    _require_one(root, {each.kind for each in seen}, hint="give a folder that holds one of them")
    _require_one(root, {f"intensity {each.rule}" for each in seen}, hint="one rule for all: --intensity RULE")
    first, spec = seen[0], range_of(seen[0].rule, config.range)
    if len({each.subject for each in seen}) == 1 and not first.tiles:
        raise InputError(
            f"there is one {first.kind} below {root}; whole ones are held out, because neighbouring slices are nearly "
            "the same picture",
            hint="add at least a second one",
        )
    held_out, split = _by_subject(seen) if len(seen) > 1 else _by_place(first)
    counted = (
        f"{len(seen)} x {first.kind}, {len(entries)} planes that show something, {sum(each.empty for each in seen)} "
        f"left out that do not; intensity {first.rule}, range {spec}"
    )
    lines = (*dict.fromkeys(warning for each in seen for warning in each.warnings), counted, held_out)
    slices = config.slices or "axial" if all("slices" in each.uses for each in formats) else None
    made = {"intensity": first.rule, "slices": slices, "tiles": bool(first.tiles)}
    return Looked(folder, spec, split, lines, PictureFormat.model_validate(made))


def _reader(studies: Studies) -> Read:
    """Decodes planes; the items of one study are in memory at a time."""
    kept: dict[int, list[bytes]] = {}

    def read(at: int, plane: int) -> Picture:
        if at not in kept:
            kept.clear()
            kept[at] = list(studies[at].items())
        if plane >= len(kept[at]):
            raise ImageUnreadable(f"{studies.origins[at].called} was changed while it was read")
        return decode_image(kept[at][plane])

    return read


def _look_at_study(study: Study, at: int, read: Read, config: TrainConfig) -> _Seen:
    from ddib_fed.data.tiles import Tiles

    check = folders.range_check(range_of(study.pixels.rule, config.range))
    label = folders.label_of(study.origin.inputs[0], Path(str(config.images)), config.told_classes)
    entries = []
    for plane in range(len(study.sent)):
        picture = read(at, plane)
        if check is not None:
            check(picture)
        digest, looks = folders.describe(picture)
        looks = replace(looks, format=f"planes of a {study.kind}")
        entries.append(Entry(study.origin.given, label, digest, looks, partial(read, at, plane)))
    subject, tiles = subject_of(study, at), []
    if isinstance(study.pixels, Tiles):
        windows, size = study.pixels.grid.windows(), study.pixels.grid.tile
        tiles = [(windows[n][0].start, windows[n][1].start, *size) for n in study.sent]
    empty, kind = study.planes - len(study.sent), study.kind
    return _Seen(kind, study.pixels.rule, study.warnings, subject, tuple(entries), empty, tuple(tiles))


def subject_of(study: Study, at: int) -> tuple[str, str, str]:
    """As of `_Seen`."""
    return *study.subject, study.origin.series_sha256 or str(at)


SUBJECTS = ("patients", "examinations", "files or series")


def level_of(subjects: Iterable[tuple[str, str, str]]) -> int:
    """The widest of patient, examination and study that tells at least two apart."""
    names = list(subjects)
    return next(at for at in range(3) if len({each[at] for each in names}) > 1)


def _by_subject(seen: Sequence[_Seen]) -> tuple[str, Split]:
    """Whole subjects are held out: the widest of patient, examination and study that tells at least two apart. Which
    they are follows from their content, and neither part has a picture of the other.
    """
    level = level_of(each.subject for each in seen)
    groups: dict[str, list[Entry]] = {}
    for each in seen:
        groups.setdefault(each.subject[level], []).extend(each.entries)

    def split(share: float) -> tuple[Entries, Entries]:
        return _apart(*_split(groups.values(), folders.folder_digest, share))

    return f"held out are whole {SUBJECTS[level]}, of {len(groups)}", split


def _split(
    groups: Collection[list[T]], content: Callable[[list[T]], str], share: float
) -> tuple[list[T], list[T]]:
    """Return the rest, and all of a share of groups, at least one and not all, by a digest of their content."""
    ranked = sorted(groups, key=lambda group: hashlib.sha256(f"held-out{content(group)}".encode()).digest())
    count = min(max(1, round(share * len(ranked))), len(ranked) - 1)
    rest, held = ([each for group in part for each in group] for part in (ranked[count:], ranked[:count]))
    return rest, held


def _by_place(seen: _Seen) -> tuple[str, Split]:
    """Held out is the end of a map along the side with more tiles; tiles that overlap it are left out."""
    _, _, height, width = seen.tiles[0]
    down = max(tile[0] for tile in seen.tiles) * width > max(tile[1] for tile in seen.tiles) * height
    starts = [tile[0] if down else tile[1] for tile in seen.tiles]
    length = height if down else width

    def split(share: float) -> tuple[Entries, Entries]:
        edge = sorted(starts, reverse=True)[max(1, round(share * len(starts))) - 1]
        placed = list(zip(seen.entries, starts, strict=True))
        rest = [entry for entry, start in placed if start + length <= edge]
        return _apart(rest, [entry for entry, start in placed if start >= edge])

    return "one end of the map is held out, and tiles that overlap it are left out", split


def _apart(rest: list[Entry], held: list[Entry]) -> tuple[Entries, Entries]:
    seen = {entry.digest for entry in held}
    train = tuple(entry for entry in rest if entry.digest not in seen)
    if not train:
        problem = "nothing is left to train on: all is held out, the same, or overlaps what is held out"
        raise InputError(problem, hint="add data, or for a map train with a smaller --size")
    return train, tuple(held)


def range_of(rule: str, asked: str) -> str:
    """The range of a model whose pictures are made by a rule."""
    form, _, own = rule.partition("@")
    if asked == "type":
        return HU_RANGE if rule == "hu" else own or asked
    if not own:
        return asked
    with suppress(ValueError):
        if [float(end) for end in asked.split(":")] == [float(end) for end in own.split(":")]:
            return own
    problem = f"the range is {asked}, and intensity {rule} makes numbers from {own.replace(':', ' to ')}"
    raise SettingsInvalid(problem, hint=f"leave range out; for other numbers say --intensity {form}@LOW:HIGH")


def _require_one(root: Path, found: Iterable[str], *, hint: str) -> None:
    kinds = sorted(set(found))
    if len(kinds) > 1:
        raise InputError(
            f"what lies below {root} is not of one kind, as the pictures of a model are: {'; '.join(kinds)}",
            hint=hint,
        )


ANY_GRID = (4096,) * 3  # larger than any volume: what is read is not cut
FEWEST = 2
LEAST_CONTENT = 0.1  # of a block that is learned


class Blocks(NamedTuple):
    """Blocks (N, C, D, H, W) in [-1, 1]; those of training are larger, so that windows are cut from them."""

    train: Floats
    held_out: Floats
    picture: PictureFormat
    note: DataNote


class _Found(NamedTuple):
    subject: tuple[str, str, str]
    spacing: tuple[float, ...]
    rule: str


def volume_blocks(config: TrainConfig, *, say: Say, progress: Progress | None = None) -> Blocks:
    """The blocks of all volumes below `config.images`, those of held-out subjects apart."""
    from ddib_fed.data.volumes import Volumes

    bad: Bad = []
    root, side = Path(str(config.images)), config.usual_size
    studies = open_volumes(root, config.intensity or "auto", bad=bad)
    seen: dict[int, _Found] = {}
    for at in range(len(studies)):
        try:
            pixels = studies[at].pixels
            assert isinstance(pixels, Volumes)
            seen[at] = _Found(subject_of(studies[at], at), pixels.spacing, pixels.rule)
        except DdibError as error:
            bad.append((studies.origins[at].given, error.kept()))
        if progress is not None:
            progress(at + 1, len(studies))
    if bad and not config.skip_bad:
        raise InputError(
            "\n".join(f"{path}: {error.detail}" for path, error in bad), hint="--skip-bad leaves them out"
        )
    rules = sorted({each.rule for each in seen.values()})
    if len(rules) != 1:
        raise SettingsInvalid(
            f"the volumes below {root} follow different rules of intensity: {', '.join(rules) or 'none'}",
            hint="one rule for all: --intensity RULE",
        )
    if len({each.subject for each in seen.values()}) < FEWEST:
        raise InputError(
            f"the volumes below {root}, {len(seen)}, are of fewer than {FEWEST} subjects, and whole ones are held out",
            hint="add NIfTI files or DICOM series of others",
        )
    level = level_of(each.subject for each in seen.values())
    groups: dict[str, list[int]] = {}
    for at, each in seen.items():
        groups.setdefault(each.subject[level], []).append(at)
    origins = studies.origins
    _, held_out = _split(
        groups.values(), lambda group: "".join(sorted(origins[at].sha256() for at in group)), config.held_out
    )
    spacing = config.spacing or tuple(
        float(f"{v:.3g}") for v in np.median([s.spacing for s in seen.values()], axis=0)
    )
    span = range_of(rules[0], config.range)
    low, high = (0.0, 255.0) if span == "type" else (float(end) for end in span.split(":"))
    parts: dict[bool, list[Floats]] = {True: [], False: []}
    for at in seen:
        pixels = studies[at].pixels
        assert isinstance(pixels, Volumes)
        for volume in pixels.resampled(spacing):
            scaled: Floats = (volume.astype(np.float32) - np.float32(low)) / np.float32(high - low)
            taken = side if at in held_out else side + side // CROP_ROOM
            parts[at in held_out] += list(blocks_of(np.moveaxis(scaled.clip(0.0, 1.0) * 2 - 1, -1, 0), taken))
    if not parts[True] or not parts[False]:
        raise InputError(f"no volume below {root} shows enough to fill a block", hint="a smaller --size")
    mm = " x ".join(f"{value:g}" for value in spacing)
    say(
        f"{len(seen)} volumes, {len(parts[False])} blocks of {side} voxels at {mm} mm, {len(parts[True])} held out; "
        f"held out are whole {SUBJECTS[level]}; intensity {rules[0]}, range {low:g}:{high:g}"
    )
    form = PictureFormat(fit="pad", low=low, high=high, bits=8 if high <= 255 and low >= 0 else 16,
                         intensity=rules[0], slices="none", spacing=spacing)  # fmt: skip
    held = np.stack([block[:, :side, :side, :side] for block in parts[True]])
    note = DataNote(source=f"blocks of {len(seen) - len(held_out)} volumes, {len(held_out)} more held out")
    return Blocks(np.stack(parts[False]), held, form, note)


def open_volumes(root: Path, intensity: str, *, bad: Bad | None = None) -> Studies:
    """Open the volumes below a folder, whole, each on its own grid; files that cannot be read go to `bad`."""
    from ddib_fed.data.study import Grid, Options

    recognised = recognise([root])
    volumes = tuple(each for each in recognised.studies if "volume" in each.reader.uses)
    options = Options(intensity, volume=Grid(ANY_GRID))
    return open_recognised(replace(recognised, studies=volumes), options, bad=bad).studies


def blocks_of(volume: Floats, side: int) -> Iterator[Floats]:
    """Blocks of a volume (C, D, H, W) in [-1, 1] that overlap by half and show something; filled up where it ends."""
    room = [max(0, side - have) for have in volume.shape[1:]]
    volume = np.pad(volume, [(0, 0), *((each // 2, each - each // 2) for each in room)], constant_values=-1.0)
    starts = [sorted({*range(0, have - side, max(1, side // 2)), have - side}) for have in volume.shape[1:]]
    for d in starts[0]:
        for h in starts[1]:
            for w in starts[2]:
                block = volume[:, d : d + side, h : h + side, w : w + side]
                if (block > -0.95).mean() >= LEAST_CONTENT:
                    yield np.ascontiguousarray(block)
