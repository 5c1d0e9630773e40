"""Finds pictures and points: of a shipped domain, below a folder (pictures, or studies by `ddib_fed.formats`), a file.

Held-out pictures are never trained on, nor do they decide the normalisation. Of studies whole patients, or one end of a
map, are held out. Of a header nothing is kept but the name of the rule. No other module of training knows the formats.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data import folder as folders
from ddib_fed.data.fitting import PictureRule
from ddib_fed.data.folder import Entry, Folder, Progress, Survey, expand
from ddib_fed.data.pictures import Picture, decode_image
from ddib_fed.data.shipped import BLOCK_MM, SHIPPED, shipped_bytes, shipped_domain
from ddib_fed.data.synthetic import draw
from ddib_fed.errors import (
    DdibError,
    ExtraMissing,
    ImageUnreadable,
    InputError,
    MemoryExhausted,
    SettingsInvalid,
    UsageError,
)
from ddib_fed.models.manifest import DataNote, Manifest, PictureFormat, carried_domain, data_note
from ddib_fed.models.units import Normalisation
from ddib_fed.names import domain_from
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.points import read_points

if TYPE_CHECKING:
    from ddib_fed.formats.study import Bad, Studies, Study

Pixels = NDArray[np.float32] | NDArray[np.uint8] | NDArray[np.uint16]
Floats = NDArray[np.float32]
Labels = NDArray[np.int64]
Entries = tuple[Entry, ...]
Split = Callable[[float], tuple[Entries, Entries]]
"""(training part, held-out part) of a folder's pictures, by the share that is held out."""
Say = Callable[[str], None]

MIN_PICTURES = 8
_MOMENT_PICTURES, _MOMENT_NUMBERS = 4096, 1 << 26
CROP_ROOM = 8
"""With random windows pictures are kept larger by this part of their size."""
FEW = 200
MEMORY_SHARE = 0.7
SEED = 12_107  # of the points drawn from a synthetic domain, and of the order of other samples
HU_RANGE: Final = "-1000:2000"
"""Hounsfield units that become -1 and 1 where no range is given: from air to dense bone."""


@dataclass(frozen=True, slots=True)
class PictureSource:
    """Pictures or volumes (N, C, *sides) to train on; `quantum` is one step of their numbers in [-1, 1], of 8 bits by
    default. With `size` they are larger than the network takes, and windows of that size are cut from them.
    """

    name: str
    train: Pixels
    held_out: Pixels
    digest: str
    labels: Labels | None = None
    held_out_labels: Labels | None = None
    classes: tuple[str, ...] = ()
    picture: PictureFormat = field(default_factory=PictureFormat)
    note: DataNote | None = None
    size: int | None = None
    quantum: float = 2.0 / 255.0

    @property
    def shape(self) -> tuple[int, ...]:
        channels, *sides = self.train.shape[1:]
        return (channels, *sides) if self.size is None else (channels, *(self.size,) * len(sides))


def array_source(
    name: str,
    train: Pixels,
    held_out: Pixels,
    *,
    labels: Sequence[int] | Labels | None = None,
    held_out_labels: Sequence[int] | Labels | None = None,
    classes: tuple[str, ...] = (),
    **further: Any,
) -> PictureSource:
    """Pictures that are in memory already; `further` are other attributes of `PictureSource`."""
    if len(train) < MIN_PICTURES:
        problem = f"{name} has {len(train)} training pictures; at least {MIN_PICTURES} are needed"
        raise InputError(problem, hint="add pictures")
    own, others = (None if x is None else np.asarray(x, np.int64) for x in (labels, held_out_labels))
    digest = hashlib.sha256()
    for array in (train, held_out, *(() if own is None else (own,))):
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    told = f"pictures:{digest.hexdigest()}"
    return PictureSource(name, train, held_out, told, own, others, classes, **further)


def shipped_source(name: str) -> PictureSource:
    domain, (train, held_out, _) = shipped_domain(name), shipped_bytes(name)
    form = PictureFormat(tiles=bool(domain.map))  # crops of a map are parts of it, sheets of a head are whole
    if len(domain.shape) == 4:
        form = PictureFormat(fit="pad", spacing=(float(BLOCK_MM),) * 3)
    return array_source(name, train, held_out, picture=form, note=data_note(domain))


def normalisation(config: TrainConfig, source: PictureSource) -> Normalisation:
    """Mean and deviation of the training pictures of each channel, rounded to what a manifest shows well."""
    every = max(1, len(source.train) // _MOMENT_PICTURES, source.train.size // _MOMENT_NUMBERS)
    raw = Normalisation(colours=config.colours)
    sample = raw.recoloured(expand(source.train[::every]).astype(np.float64))
    axes = (0, *range(2, sample.ndim))
    mean, std = sample.mean(axis=axes), sample.std(axis=axes)
    if not (std > 1e-4).all():
        problem = f"nothing varies in the pictures of {source.name}"
        raise InputError(problem, hint="check the range: `--range` maps raw values to [-1, 1]")
    means, stds = (tuple(float(f"{value:.5g}") for value in part) for part in (mean, std))
    if len(means) == 1:
        return raw.model_copy(update={"mean": means[0], "std": stds[0]})
    return raw.model_copy(update={"mean": means, "std": stds})


def open_source(
    config: TrainConfig,
    source: PictureSource | None = None,
    *,
    say: Say | None = None,
    progress: Progress | None = None,
) -> PictureSource:
    if source is None and config.domain is not None:
        source = shipped_source(config.domain)
    elif source is None:
        source = folder_source(config, say=say or (lambda _: None), progress=progress)
    if config.size is not None and set(source.shape[1:]) != {config.size}:
        raise SettingsInvalid(
            f"the pictures of {source.name} are {source.shape[2]} x {source.shape[1]}, not {config.size}",
            hint="leave size out: it follows from the pictures",
        )
    if config.classes is not None and source.labels is None:
        raise SettingsInvalid(f"the pictures of {source.name} have no classes", hint="leave classes out")
    if config.colours != "rgb" and source.shape[0] != 3:
        raise SettingsInvalid(f"the pictures of {source.name} are grey", hint="leave colours out")
    return source


class _Looked(NamedTuple):
    """A folder of which every picture was looked at once; `form` says of studies how they become pictures."""

    folder: Folder
    range: str
    split: Split
    lines: tuple[str, ...] = ()
    form: PictureFormat = PictureFormat()


def folder_source(config: TrainConfig, *, say: Say, progress: Progress | None = None) -> PictureSource:
    """The pictures of `config.images`, decoded, fitted and split."""
    root, size = Path(str(config.images)), config.usual_size
    side = size + (size // CROP_ROOM if config.crop else 0)
    looked = _look_at_studies(root, config, side, progress)
    if looked is None:
        found = folders.scan(
            root,
            classes=config.told_classes,
            skip_bad=config.skip_bad,
            check=folders.range_check(config.range),
            progress=progress,
        )
        looked = _Looked(found, config.range, partial(folders.split, found.entries))
    folder = looked.folder
    facts = folders.survey(folder)
    chosen = folders.choose_range(folder, looked.range)
    rule = PictureRule(
        channels=config.channels or max(facts.channels, key=facts.channels.__getitem__),
        height=side,
        width=side,
        fit=config.fit or "resize",
        low=chosen.low,
        high=chosen.high,
        bits=8 if set(facts.dtypes) == {"uint8"} else 16,
    )
    bad = (f"{path}: {reason}" for path, reason in folder.bad)
    for line in (*facts.lines, *bad, *looked.lines, *chosen.warnings, *_doubts(facts, rule)):
        say(line)
    train, held_out = looked.split(config.held_out)
    if not held_out or not train:
        raise InputError(f"the pictures below {root} are all the same", hint="add pictures")
    needed = len(folder.entries) * rule.channels * side * side * (rule.bits // 8)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > MEMORY_SHARE * there:
        raise MemoryExhausted(
            f"{len(folder.entries)} pictures of {side} x {side} need {needed / 2**30:.1f} GiB of memory; this machine "
            f"has {there / 2**30:.1f}",
            hint="a smaller --size, or a part of the folder",
        )
    made = {"fit": rule.fit, "low": rule.low, "high": rule.high, "bits": rule.bits}
    labels: list[Labels | None] = [None, None]
    if config.told_classes is not None:
        labels = [folders.class_numbers(part, folder.classes) for part in (train, held_out)]
    return array_source(
        name_of(root),
        folders.load(train, rule, compact=True, progress=progress),
        folders.load(held_out, rule, compact=True),
        labels=labels[0],
        held_out_labels=labels[1],
        classes=folder.classes,
        picture=looked.form.model_copy(update=made),
        note=DataNote(source=f"{len(train)} pictures of a user's folder, {len(held_out)} held out"),
        size=size if config.crop else None,
        quantum=0.0 if "float32" in facts.dtypes else 2.0 / (rule.high - rule.low),
    )


def _doubts(facts: Survey, rule: PictureRule) -> Iterable[str]:
    """What is said of few pictures, and of pictures of another number of channels."""
    if (count := sum(facts.channels.values())) < FEW:
        yield f"{count} pictures are few: expect a model that repeats them; --flip and --set crop=true help"
    others = sum(count for number, count in facts.channels.items() if number != rule.channels)
    if others and rule.channels == 1:
        yield f"{others} RGB pictures are made grey, their colours are dropped; --set channels=3 keeps them"
    elif others:
        yield f"{others} grey pictures become RGB of three equal channels"


def name_of(root: Path) -> str:
    """The folder's name as a domain's: letters, digits, dots, dashes; of trainA the name of the folder around it."""
    path = root.resolve()
    name = f"{path.parent.name}-{path.name[-1].lower()}" if path.name in {"trainA", "trainB"} else path.name
    return domain_from(name) or "pictures"


Read = Callable[[int, int], Picture]
"""The picture of a study's plane, by the numbers of both."""


class _Seen(NamedTuple):
    """What is kept of a study. Its subject is of whom or what it is, from the widest to the narrowest: patient,
    examination, study; compared, and never shown. Tiles of a map are (top, left, height, width) in pixels.
    """

    kind: str
    rule: str
    warnings: tuple[str, ...]
    subject: tuple[str, str, str]
    entries: Entries
    empty: int
    tiles: tuple[tuple[int, int, int, int], ...]


def _look_at_studies(root: Path, config: TrainConfig, side: int, progress: Progress | None) -> _Looked | None:
    """The planes of all studies below a folder, as `ddib translate` sends them; None for a folder of pictures."""
    from ddib_fed.formats.opening import open_recognised
    from ddib_fed.formats.study import Options
    from ddib_fed.recognition import PICTURES, TAKEN, Format, files_below, format_of, recognise

    folders.require_one_domain(root)
    found = recognise([root])
    formats = {each.format for each in found.studies} - {Format.PICTURE}
    for name, takers in (("intensity", formats), ("slices", formats & {Format.NIFTI})):
        if getattr(config, name) is not None and not takers:
            what = "NIfTI" if name == "slices" else "DICOM, NIfTI and GeoTIFF"
            problem = f"{name} is for {what}, and there is none below {root}"
            raise SettingsInvalid(problem, hint=f"a folder of such files, or leave {name} out")
    if not formats:
        return None
    _require_one(root, formats, hint="give a folder that holds one of them")
    if found.plain or len(formats) < len({each.format for each in found.studies}):
        for path in files_below(root, None).files:
            if path.suffix.lower() in {*TAKEN, *PICTURES} and format_of(path) in {None, Format.PICTURE}:
                hint = "move one of them into a folder of its own"
                _require_one(root, {*formats, f"pictures such as {path.name}"}, hint=hint)
    bad: Bad = []
    kept = replace(found, studies=tuple(each for each in found.studies if each.format in formats))
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
    folder = folders.as_folder(root, entries, bad, found.ignored.total(), skip_bad=config.skip_bad)
    _require_one(root, {each.kind for each in seen}, hint="give a folder that holds one of them")
    _require_one(root, {f"intensity {each.rule}" for each in seen}, hint="one rule for all: --intensity RULE")
    first, spec = seen[0], _range_of(seen[0].rule, config.range)
    if len(seen) == 1 and not first.tiles:
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
    slices = config.slices or "axial" if formats == {Format.NIFTI} else None
    made = {"intensity": first.rule, "slices": slices, "tiles": bool(first.tiles)}
    return _Looked(folder, spec, split, lines, PictureFormat.model_validate(made))


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
    from ddib_fed.formats.dicom_writing import DicomStudy
    from ddib_fed.formats.tiles import GeoTiffStudy

    check = folders.range_check(_range_of(study.pixels.rule, config.range))
    label = folders.label_of(study.origin.inputs[0], Path(str(config.images)), config.told_classes)
    entries = []
    for plane in range(len(study.sent)):
        picture = read(at, plane)
        if check is not None:
            check(picture)
        digest, looks = folders.describe(picture)
        looks = replace(looks, format=f"planes of a {study.kind}")
        entries.append(Entry(study.origin.given, label, digest, looks, partial(read, at, plane)))
    subject, tiles = ("", "", str(at)), []
    if isinstance(study, DicomStudy):
        header = study.series.headers[0]
        examination = str(header.get("StudyInstanceUID") or "")
        subject = str(header.get("PatientID") or examination), examination, str(at)
    if isinstance(study, GeoTiffStudy):
        windows, size = study.pixels.grid.windows(), study.pixels.grid.tile
        tiles = [(windows[n][0].start, windows[n][1].start, *size) for n in study.sent]
    empty, kind = study.planes - len(study.sent), study.kind
    return _Seen(kind, study.pixels.rule, study.warnings, subject, tuple(entries), empty, tuple(tiles))


def _by_subject(seen: Sequence[_Seen]) -> tuple[str, Split]:
    """Whole subjects are held out: the widest of patient, examination and study that tells at least two apart. Which
    they are follows from their content, and neither part has a picture of the other.
    """
    level = next(at for at in range(3) if len({each.subject[at] for each in seen}) > 1)
    groups: dict[str, list[Entry]] = {}
    for each in seen:
        groups.setdefault(each.subject[level], []).extend(each.entries)

    def rank(group: list[Entry]) -> str:
        return hashlib.sha256(b"held-out" + folders.folder_digest(group).encode()).hexdigest()

    def split(share: float) -> tuple[Entries, Entries]:
        ranked = sorted(groups.values(), key=rank)
        count = min(max(1, round(share * len(ranked))), len(ranked) - 1)
        rest, held = (
            [entry for group in part for entry in group] for part in (ranked[count:], ranked[:count])
        )
        return _apart(rest, held)

    whole = ("patients", "examinations", "files or series")[level]
    return f"held out are whole {whole}, of {len(groups)}", split


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


def _range_of(rule: str, asked: str) -> str:
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


class OwnSamples(NamedTuple):
    """Samples of a finished model's domain (N, *sample_shape), pictures in [-1, 1]; held-out ones by content."""

    name: str
    train: Floats
    held_out: Floats

    def mixed(self) -> Floats:
        """All of them, in an order of their own each: the held-out ones first."""
        rng = np.random.default_rng(SEED)
        return np.concatenate([part[rng.permutation(len(part))] for part in (self.held_out, self.train)])


def own_samples(
    manifest: Manifest, which: Path | str | None, train: int, held_out: int, *, skip_bad: bool = False
) -> OwnSamples:
    """At most so many samples of a model's domain, evenly spaced: those that ship, a folder's, or those of a file."""
    name = shipped_name(manifest, which)
    if manifest.sample_kind == "point":
        if name is not None:
            drawn = draw(name, train + held_out, SEED)
            return OwnSamples(name, drawn[:train], drawn[train:])
        points = read_points(Path(str(which)), manifest.sample_shape[0])
        points = points[np.random.default_rng(SEED).permutation(len(points))]
        cut = len(points) * held_out // max(train + held_out, 1)
        return OwnSamples(str(which), points[cut:][:train], points[:cut][:held_out])
    if name is not None:
        source = shipped_source(name)
    else:
        source = folder_source(as_trained(manifest, Path(str(which)), skip_bad=skip_bad), say=lambda _: None)
    parts = spaced(source.train, train), spaced(source.held_out, held_out)
    return OwnSamples(name or str(which), *map(expand, parts))


def shipped_name(manifest: Manifest, which: Path | str | None) -> str | None:
    """The shipped domain that is meant for a model; None where a folder or a file is."""
    if which is None:
        which = carried_domain(manifest)
        if which is None:
            raise UsageError(
                f"{manifest.name}, of the domain {manifest.domain}, was trained on data that do not ship with this "
                "package, and none are given",
                hint="name a folder of pictures of the domain, or a .npy file of its points",
            )
    elif manifest.sample_kind == "point" or str(which) not in SHIPPED:
        return None
    elif Path(which).is_dir():
        problem = f"{which} is a domain that ships, and a folder here"
        raise UsageError(problem, hint=f"./{which} is the folder")
    shape = tuple(manifest.sample_shape)
    if manifest.sample_kind != "point" and SHIPPED[str(which)].shape != shape:
        problem = f"pictures of {which} are {SHIPPED[str(which)].shape}, and {manifest.name} takes {shape}"
        raise InputError(problem, hint="name a folder of the model's own pictures")
    return str(which)


def as_trained(manifest: Manifest, images: Path, **fields: Any) -> TrainConfig:
    """How pictures are read for a model: as its manifest says that its own were; `fields` are further settings."""
    channels, height, _ = manifest.sample_shape
    found: dict[str, Any] = {"images": images, "channels": channels, "size": height, **fields}
    if (made := manifest.picture) is not None:
        found |= {"fit": made.fit, "range": f"{made.low!r}:{made.high!r}"}
        found |= {"intensity": made.intensity, "slices": made.slices}
    return TrainConfig.model_validate(found)


def spaced(samples: Pixels, most: int) -> Any:
    """At most so many rows, evenly spaced."""
    rows = np.linspace(0, len(samples) - 1, min(most, len(samples)))
    return samples[np.unique(rows.round().astype(np.int64))]
