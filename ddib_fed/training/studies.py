"""DICOM series, NIfTI volumes and maps below a folder as pictures to train on: the items that `ddib translate` sends.

Each study is read again in every pass over its planes, so that one is in memory at a time. Of a header nothing is kept
but the name of the rule. No other module of training knows `ddib_fed.formats`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ddib_fed.data import folder as folders
from ddib_fed.data.decoding import Picture
from ddib_fed.data.folder import Entry, Folder, Progress, as_folder, describe, label_of, require_one_domain
from ddib_fed.data.pictures import decode_image
from ddib_fed.errors import DdibError, ExtraMissing, ImageUnreadable, InputError, SettingsInvalid, UsageError
from ddib_fed.training.config import TrainConfig

if TYPE_CHECKING:
    from ddib_fed.formats.recognition import Recognised
    from ddib_fed.formats.study import Bad, Studies, Study

HU_RANGE: Final = "-1000:2000"
"""Hounsfield units that become -1 and 1 where no range is given: from air to dense bone."""
_Split = tuple[tuple[Entry, ...], tuple[Entry, ...]]


class _Tile(NamedTuple):
    """A tile of a map, in pixels."""

    top: int
    left: int
    height: int
    width: int


class _Subject(NamedTuple):
    """Of whom or what a study is, from the widest to the narrowest; compared, and never kept or shown."""

    patient: str
    examination: str
    study: str


@dataclass(frozen=True, slots=True)
class Scanned:
    """A folder of studies, every plane looked at once."""

    folder: Folder
    range: str
    rule: str
    slices: str | None
    lines: tuple[str, ...]
    groups: tuple[str, ...]
    tiles: tuple[_Tile, ...]
    of_maps: bool

    def split(self, share: float) -> _Split:
        """(training part, held-out part), neither with a picture of the other."""
        entries = self.folder.entries
        held = self._held_groups(share) if self.groups else self._end(share)
        seen = {entries[at].digest for at in held}
        inner = range(len(entries)) if self.groups else self._apart(held)
        train = tuple(entries[at] for at in inner if at not in held and entries[at].digest not in seen)
        if not train:
            raise InputError(
                f"nothing is left to train on below {self.folder.root}: all is held out, the same, or overlaps it",
                hint="add data, or for a map train with a smaller --size",
            )
        return train, tuple(entries[at] for at in sorted(held))

    def _held_groups(self, share: float) -> set[int]:
        members: dict[str, list[int]] = {}
        for at, group in enumerate(self.groups):
            members.setdefault(group, []).append(at)

        def rank(group: str) -> str:
            digest = folders.folder_digest([self.folder.entries[at] for at in members[group]])
            return hashlib.sha256(b"held-out" + digest.encode()).hexdigest()

        held: set[int] = set()
        ranked = [members[group] for group in sorted(members, key=rank)]
        for planes in ranked:
            if len(held) + len(planes) <= share * len(self.groups):
                held.update(planes)
        smallest = min(ranked, key=len)
        return held or set(smallest)

    def _end(self, share: float) -> set[int]:
        starts, _ = self._along()
        edge = sorted(starts, reverse=True)[max(1, round(share * len(starts))) - 1]
        return {at for at, start in enumerate(starts) if start >= edge}

    def _apart(self, held: set[int]) -> Iterable[int]:
        starts, side = self._along()
        edge = min(starts[at] for at in held)
        return (at for at, start in enumerate(starts) if start + side <= edge)

    def _along(self) -> tuple[list[int], int]:
        """Where tiles begin along the side of the map that has more of them, and their length there."""
        first = self.tiles[0]
        if (
            max(tile.top for tile in self.tiles) * first.width
            > max(tile.left for tile in self.tiles) * first.height
        ):
            return [tile.top for tile in self.tiles], first.height
        return [tile.left for tile in self.tiles], first.width


class _Planes:
    """The planes of studies, decoded; fast where they are asked for in order."""

    def __init__(self, studies: Studies) -> None:
        self._studies = studies
        self._at, self._next = -1, 0
        self._items: Iterator[bytes] = iter(())

    def study(self, at: int) -> Study:
        """A study, while no other is in memory."""
        if at != self._at:
            self._items, self._at, self._next = iter(()), -1, 0  # they hold the study before
            self._items, self._at = self._studies[at].items(), at
        return self._studies[at]

    def read(self, at: int, plane: int) -> Picture:
        """An item of a study."""
        study = self.study(at)
        if plane < self._next:
            self._items, self._next = study.items(), 0
        for content in self._items:
            self._next += 1
            if self._next > plane:
                return decode_image(content)
        raise ImageUnreadable(f"{self._studies.origins[at].called} was changed while it was read")


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is kept of a study."""

    called: str
    kind: str
    rule: str
    warnings: tuple[str, ...]
    subject: _Subject
    entries: tuple[Entry, ...]
    empty: int
    tiles: tuple[_Tile, ...]


def scan_studies(root: Path, config: TrainConfig, side: int, *, progress: Progress | None) -> Scanned | None:
    """The planes of all studies below a folder; None for a folder of pictures."""
    from ddib_fed.formats.recognition import Format, recognise

    require_one_domain(root)
    found = recognise([root])
    formats = {each.format for each in found.studies} - {Format.PICTURE}
    for name in ("intensity", "slices"):
        of = {Format.NIFTI} if name == "slices" else set(Format)
        if getattr(config, name) is not None and not formats & of:
            what = "NIfTI" if name == "slices" else "DICOM, NIfTI and GeoTIFF"
            raise SettingsInvalid(
                f"{name} is for {what}, and there is none below {root}",
                hint=f"a folder of such files, or leave {name} out",
            )
    if not formats:
        return None
    _require_one(root, formats, hint="give a folder that holds one of them")
    _require_no_pictures(root, found)
    from ddib_fed.formats.opening import open_recognised
    from ddib_fed.formats.study import Options

    bad: Bad = []
    kept = replace(found, studies=tuple(each for each in found.studies if each.format in formats))
    options = Options(config.intensity or "auto", config.slices or "axial", (side, side))
    studies = open_recognised(kept, options, bad=bad).studies
    planes, seen = _Planes(studies), []
    for at in range(len(studies)):
        if each := _look(at, studies, planes, config, bad):
            seen.append(each)
        if progress:
            progress(at + 1, len(studies))
    entries = [entry for each in seen for entry in each.entries]
    folder = as_folder(root, entries, bad, found.ignored.total(), skip_bad=config.skip_bad)
    _require_one(root, {each.kind for each in seen}, hint="give a folder that holds one of them")
    _require_one(root, {f"intensity {each.rule}" for each in seen}, hint="one rule for all: --intensity RULE")
    return _scanned(folder, config, seen, options.slices if formats == {Format.NIFTI} else None)


def _look(at: int, studies: Studies, planes: _Planes, config: TrainConfig, bad: Bad) -> _Seen | None:
    """What is seen of a study; None for one that cannot be used, which is bad."""
    origin, classes = studies.origins[at], None if config.classes == "given" else config.classes
    try:
        study = planes.study(at)
        check = folders.range_check(range_of(study.rule, config.range))
        label = label_of(origin.inputs[0], Path(str(config.images)), classes)
        entries = []
        for plane in range(len(study.sent)):
            picture = planes.read(at, plane)
            if check is not None:
                check(picture)
            digest, looks = describe(picture)
            read: Callable[[], Picture] = partial(planes.read, at, plane)
            entries.append(
                Entry(origin.given, label, digest, replace(looks, format=f"planes of a {study.kind}"), read)
            )
    except (ExtraMissing, SettingsInvalid, UsageError):
        raise
    except DdibError as error:
        error.detail = error.detail.removeprefix(f"{origin.called}: ")
        bad.append((Path(origin.called), error.kept()))
        return None
    except OSError as error:
        bad.append((Path(origin.called), ImageUnreadable(f"it cannot be read: {error.strerror or error}")))
        return None
    return _Seen(
        origin.called,
        study.kind.removeprefix("cloud-optimised "),
        study.rule,
        study.warnings,
        _subject(study, at),
        tuple(entries),
        study.planes - len(study.sent),
        _tiles(study),
    )


def _scanned(folder: Folder, config: TrainConfig, seen: list[_Seen], slices: str | None) -> Scanned:
    first = seen[0]
    lines = list(dict.fromkeys(warning for each in seen for warning in each.warnings))
    settled, empty = range_of(first.rule, config.range), sum(each.empty for each in seen)
    lines.append(
        f"{len(seen)} x {first.kind}, {len(folder.entries)} planes that show something, {empty} left out that do not; "
        f"intensity {first.rule}, range {settled}"
    )
    if len(seen) == 1 and first.tiles:
        lines.append("one end of the map is held out, and tiles that overlap it are left out")
        return Scanned(folder, settled, first.rule, slices, tuple(lines), (), first.tiles, True)
    if len(seen) == 1:
        raise InputError(
            f"there is one {first.kind} below {folder.root}; whole ones are held out, because neighbouring slices are "
            "nearly the same picture",
            hint="add at least a second one",
        )
    # The widest of patient, examination and study that tells at least two apart.
    level = next(at for at in range(3) if len({each.subject[at] for each in seen}) > 1)
    names = {name: str(at) for at, name in enumerate(dict.fromkeys(each.subject[level] for each in seen))}
    lines.append(
        f"held out are whole {('patients', 'examinations', 'files or series')[level]}, of {len(names)}"
    )
    groups = tuple(names[each.subject[level]] for each in seen for _ in each.entries)
    return Scanned(folder, settled, first.rule, slices, tuple(lines), groups, (), bool(first.tiles))


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
    raise SettingsInvalid(
        f"the range is {asked}, and intensity {rule} makes numbers from {own.replace(':', ' to ')}",
        hint=f"leave range out; for other numbers say --intensity {form}@LOW:HIGH",
    )


def _require_one(root: Path, found: Iterable[str], *, hint: str) -> None:
    """Return if there is one."""
    kinds = sorted(set(found))
    if len(kinds) > 1:
        raise InputError(
            f"what lies below {root} is not of one kind, as the pictures of a model are: {'; '.join(kinds)}",
            hint=hint,
        )


def _require_no_pictures(root: Path, found: Recognised) -> None:
    """Return if no pictures lie among studies: it would not be clear which are meant."""
    from ddib_fed.formats.recognition import PICTURES, TAKEN, Format, files_below, format_of

    if not (found.plain or found.beside or any(each.format is Format.PICTURE for each in found.studies)):
        return
    stray = (path for path in files_below(root, None).files if format_of(path) in {None, Format.PICTURE})
    kinds = Counter(path.suffix.lower() for path in stray)
    listed = ", ".join(f"{kinds[each]:,} {each}" for each in sorted(TAKEN | PICTURES.keys()) if kinds[each])
    if listed:
        studies = ", ".join(sorted({each.format for each in found.studies} - {Format.PICTURE}))
        raise InputError(
            f"below {root} lie both pictures ({listed}) and another kind ({studies}), and a model is of one",
            hint="move one of them into a folder of its own",
        )


def _subject(study: Study, at: int) -> _Subject:
    from ddib_fed.formats.dicom_writing import DicomStudy

    if not isinstance(study, DicomStudy):
        return _Subject("", "", str(at))
    header = study.series.headers[0]
    examination = str(header.get("StudyInstanceUID") or "")
    return _Subject(str(header.get("PatientID") or examination), examination, str(at))


def _tiles(study: Study) -> tuple[_Tile, ...]:
    """Where the tiles of a map lie; empty for all else."""
    from ddib_fed.formats.geotiff import GeoTiffStudy

    if not isinstance(study, GeoTiffStudy):
        return ()
    grid = study.pixels.grid
    windows = list(grid.windows())
    return tuple(_Tile(windows[at][0].start, windows[at][1].start, *grid.tile) for at in study.sent)
