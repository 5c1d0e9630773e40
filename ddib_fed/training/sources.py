"""Finds pictures, volumes and points: of a shipped domain, below a folder (pictures, or studies), in a file.

Held-out pictures are never trained on, nor do they decide the normalisation.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data import folder as folders
from ddib_fed.data.fitting import PictureRule
from ddib_fed.data.folder import Progress, Survey, expand
from ddib_fed.data.study import PERCENTILES, IntensityRule
from ddib_fed.datasets import BLOCK_MM, SHIPPED, draw, shipped_bytes, shipped_domain
from ddib_fed.errors import FileMissing, InputError, MemoryExhausted, SettingsInvalid, UsageError
from ddib_fed.models.manifest import DataNote, Manifest, PictureFormat, carried_domain, data_note
from ddib_fed.models.units import Normalisation
from ddib_fed.names import domain_from
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.points import read_points
from ddib_fed.training.studies import CROP_ROOM, Looked, Say, look_at_studies, open_volumes, volume_blocks

Pixels = NDArray[np.float32] | NDArray[np.uint8] | NDArray[np.uint16]
Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

MIN_PICTURES = 8
_MOMENT_PICTURES, _MOMENT_NUMBERS = 4096, 1 << 26
FEW = 200
MEMORY_SHARE = 0.7
SEED = 12_107  # of the points drawn from a synthetic domain, and of the order of other samples


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
    name: str, train: Pixels, held_out: Pixels, *, labels: Labels | None = None, **further: Any
) -> PictureSource:
    """Return the source of pictures in memory; `further` are other attributes of `PictureSource`."""
    if len(train) < MIN_PICTURES:
        problem = f"{name} has {len(train)} training pictures; at least {MIN_PICTURES} are needed"
        raise InputError(problem, hint="add pictures")
    digest = hashlib.sha256()
    for array in (train, held_out, *(() if labels is None else (labels,))):
        digest.update(f"{array.dtype} {array.shape} ".encode())
        digest.update(np.ascontiguousarray(array).data)
    return PictureSource(name, train, held_out, f"pictures:{digest.hexdigest()}", labels, **further)


def shipped_source(name: str) -> PictureSource:
    domain, (train, held_out, _) = shipped_domain(name), shipped_bytes(name)
    form = PictureFormat(tiles=bool(domain.map))  # crops of a map are parts of it, sheets of a head are whole
    if len(domain.shape) == 4:
        form = PictureFormat(fit="pad", spacing=(float(BLOCK_MM),) * 3)
    return array_source(name, train, held_out, picture=form, note=data_note(domain))


def normalisation(config: TrainConfig, source: PictureSource) -> Normalisation:
    """Return mean and deviation of the training pictures of each channel, rounded to what a manifest shows well."""
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
    say = say or (lambda _: None)
    if source is None and config.domain is not None:
        source = shipped_source(config.domain)
    elif source is None and config.slices == "none":
        blocks = volume_blocks(config, say=say, progress=progress)._asdict()
        name = name_of(Path(str(config.images)))
        source = array_source(name, **blocks, size=config.usual_size, quantum=0.0)
    elif source is None:
        source = folder_source(config, say=say, progress=progress)
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


def folder_source(config: TrainConfig, *, say: Say, progress: Progress | None = None) -> PictureSource:
    """Return the pictures of `config.images`, decoded, fitted and split."""
    root, size = Path(str(config.images)), config.usual_size
    side = size + (size // CROP_ROOM if config.crop else 0)
    looked = look_at_studies(root, config, side, progress)
    if looked is None:
        scanned = folders.scan(
            root,
            classes=config.told_classes,
            skip_bad=config.skip_bad,
            check=folders.range_check(config.range),
            progress=progress,
        )
        looked = Looked(scanned, config.range, partial(folders.split, scanned.entries))
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
    """Yield warnings about few pictures, and about pictures with other channels."""
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


class OwnSamples(NamedTuple):
    """Samples of a finished model's domain (N, *sample_shape), pictures in [-1, 1]; held-out ones by content."""

    name: str
    train: Floats
    held_out: Floats
    test: Floats = np.empty(0, np.float32)

    def mixed(self) -> Floats:
        """Return all samples, each part shuffled, the held-out ones first."""
        rng = np.random.default_rng(SEED)
        return np.concatenate([part[rng.permutation(len(part))] for part in (self.held_out, self.train)])


def own_samples(
    manifest: Manifest,
    which: Path | str | None,
    train: int,
    held_out: int,
    *,
    test: int = 0,
    skip_bad: bool = False,
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
        source = open_source(as_trained(manifest, Path(str(which)), skip_bad=skip_bad))
    parts = [spaced(source.train, train), spaced(source.held_out, held_out)]
    if test and name is not None:
        parts.append(spaced(shipped_bytes(name, ["test"])[0], test))
    return OwnSamples(name or str(which), *map(expand, parts))


def own_volumes(manifest: Manifest, root: Path, most: int) -> Iterator[Floats]:
    """Yield at most so many volumes (1, D, H, W) in [-1, 1], on their own grids: of .npy files, then of studies."""
    form = manifest.picture or PictureFormat()
    rule = IntensityRule.parse(form.intensity or PERCENTILES)
    studies = open_volumes(root, "values" if rule.as_it_is else rule.text)
    arrays = sorted([root] if root.is_file() else root.rglob("*.npy"))
    arrays = [path for path in arrays if path.suffix == ".npy"]
    if not (count := len(arrays) + len(studies)):
        hint = "files are .npy and those of formats that hold volumes (docs/formats.md)"
        raise FileMissing(f"no volume below {root}", hint=hint)
    for at in range(0, count, -(-count // most)):
        if at < len(arrays):
            values = np.load(arrays[at], allow_pickle=False)
            numbers = rule.on(values).numbers(values)
        else:
            numbers = np.concatenate(studies[at - len(arrays)].pixels.numbers)[..., 0]
        if numbers.ndim != 3:
            name = arrays[at] if at < len(arrays) else studies[at - len(arrays)].name
            raise InputError(f"{name} is no volume of three axes", hint="one volume a file")
        numbers = numbers.astype(np.float32)[None]
        yield (2 * (numbers - form.low) / (form.high - form.low) - 1).clip(-1, 1).astype(np.float32)


def shipped_name(manifest: Manifest, which: Path | str | None) -> str | None:
    """Return the shipped domain that is meant for a model; None where a folder or a file is."""
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
    """Return the settings by which a model's own pictures were read; `fields` are further settings."""
    channels, *_, width = manifest.sample_shape
    settings: dict[str, Any] = {"images": images, "channels": channels, "size": width, **fields}
    if (made := manifest.picture) is not None:
        settings |= {"fit": made.fit, "range": f"{made.low!r}:{made.high!r}"}
        settings |= {"intensity": made.intensity, "slices": made.slices, "spacing": made.spacing}
    return TrainConfig.model_validate(settings)


def spaced(samples: Pixels, most: int) -> Any:
    """Return at most so many rows, evenly spaced."""
    rows = np.linspace(0, len(samples) - 1, min(most, len(samples)))
    return samples[np.unique(rows.round().astype(np.int64))]
