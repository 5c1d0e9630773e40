"""Pictures to train on: of a shipped domain, a user's folder, or arrays; all in memory.

Held-out pictures are never trained on, and neither decide the normalisation.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddib_fed.datasets.shipped import load_shipped
from ddib_fed.errors import InputError, MemoryExhausted, NotFinite, SettingsInvalid, ShapeMismatch
from ddib_fed.models.carried import data_note
from ddib_fed.models.manifest import DataNote, Manifest, PictureFormat
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.names import domain_from
from ddib_fed.samples import folders
from ddib_fed.samples.folders import expand
from ddib_fed.samples.images import PictureRule
from ddib_fed.samples.scans import Progress
from ddib_fed.samples.surveys import Survey
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.pictures.studies import scan_studies

Pixels = NDArray[np.float32] | NDArray[np.uint8] | NDArray[np.uint16]
Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

MIN_PICTURES = 8
QUANTUM = 2.0 / 255.0
"""One step of 8 bits."""
_MOMENT_PICTURES = 4096
CROP_ROOM = 8
"""With random windows pictures are kept larger by this part of their size."""
FEW = 200
MEMORY_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class PictureSource:
    """Pictures to train on."""

    name: str
    train: Pixels
    held_out: Pixels
    digest: str
    labels: Labels | None = None
    held_out_labels: Labels | None = None
    classes: tuple[str, ...] = ()
    picture: PictureFormat | None = None
    note: DataNote | None = None
    size: int | None = None
    quantum: float = QUANTUM

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.shape[1:]
        return (channels, self.size, self.size) if self.size is not None else (channels, height, width)


def array_source(
    name: str,
    train: Pixels,
    held_out: Pixels,
    *,
    labels: Sequence[int] | Labels | None = None,
    held_out_labels: Sequence[int] | Labels | None = None,
    classes: tuple[str, ...] = (),
    picture: PictureFormat | None = None,
    note: DataNote | None = None,
    size: int | None = None,
    quantum: float = QUANTUM,
) -> PictureSource:
    """Pictures that are in memory already; the arguments are the attributes of `PictureSource`."""
    for part, pixels in (("training", train), ("held-out", held_out)):
        _check_pixels(name, part, pixels, train.shape[1:])
    if len(train) < MIN_PICTURES:
        raise InputError(
            f"{name} has {len(train)} training pictures; at least {MIN_PICTURES} are needed",
            hint="add pictures",
        )
    given = _labels(name, labels, len(train), len(classes))
    return PictureSource(
        name=name,
        train=train,
        held_out=held_out,
        digest=_digest(train, held_out, given),
        labels=given,
        held_out_labels=_labels(name, held_out_labels, len(held_out), len(classes)),
        classes=classes,
        picture=picture or PictureFormat(low=0.0, high=255.0, bits=8),
        note=note,
        size=size,
        quantum=quantum,
    )


def shipped_source(name: str) -> PictureSource:
    """The pictures of a shipped domain."""
    pictures = load_shipped(name)
    domain = pictures.domain
    form = PictureFormat(tiles=bool(domain.map))  # crops of a map are parts of it, sheets of a head are whole
    return array_source(name, pictures.train, pictures.held_out, picture=form, note=data_note(domain))


def normalisation(config: TrainConfig, source: PictureSource) -> Normalisation:
    """Mean and deviation of the training pictures as the config wants them, rounded to what a manifest shows well."""
    if config.normalise == "none":
        return Normalisation(colours=config.colours)
    every = max(1, len(source.train) // _MOMENT_PICTURES)
    raw = Normalisation(colours=config.colours)
    sample = raw.recoloured(expand(source.train[::every]).astype(np.float64))
    axes = (0, 2, 3) if config.normalise == "channel" and sample.shape[1] > 1 else (0, 1, 2, 3)
    mean, std = np.atleast_1d(sample.mean(axis=axes)), np.atleast_1d(sample.std(axis=axes))
    if not (std > 1e-4).all():
        raise InputError(
            f"nothing varies in the pictures of {source.name}",
            hint="check the range: `--range` maps raw values to [-1, 1]",
        )
    means, stds = (tuple(float(f"{value:.5g}") for value in part) for part in (mean, std))
    if len(means) == 1:
        return raw.model_copy(update={"mean": means[0], "std": stds[0]})
    return raw.model_copy(update={"mean": means, "std": stds})


def open_source(
    config: TrainConfig,
    source: PictureSource | None = None,
    *,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> PictureSource:
    """The pictures that `config` names, or those given, checked against it."""
    named = config.domain is not None or config.images is not None
    if named == (source is not None):
        raise SettingsInvalid(
            "give either a domain or a folder in the settings, or the pictures themselves",
            hint="one of the three",
        )
    if source is None:
        source = _named(config, say or (lambda _: None), progress)
    if config.size is not None and source.shape[1:] != (config.size, config.size):
        raise SettingsInvalid(
            f"the pictures of {source.name} are {source.shape[2]} x {source.shape[1]}, not {config.size}",
            hint="leave size out: it follows from the pictures",
        )
    if config.classes is not None and source.labels is None:
        raise SettingsInvalid(f"the pictures of {source.name} have no classes", hint="leave classes out")
    if config.colours != "rgb" and source.shape[0] != 3:
        raise SettingsInvalid(f"the pictures of {source.name} are grey", hint="leave colours out")
    return source


def folder_source(
    config: TrainConfig, *, say: Callable[[str], None], progress: Progress | None = None
) -> PictureSource:
    """The pictures of `config.images`, decoded, fitted and split."""
    root = Path(str(config.images))
    classes = config.classes if config.classes in {"folders", "prefix"} else None
    studies = scan_studies(root, config, _side(config), progress=progress)
    if studies is None:
        folder, spec = _scan_pictures(root, config, classes, progress), config.range
    else:
        folder, spec = studies.folder, studies.range
    facts = folders.survey(folder)
    chosen = folders.choose_range(folder, spec)
    found = () if studies is None else studies.lines
    bad = (f"{path}: {reason}" for path, reason in folder.bad)
    for line in (*facts.lines(), *bad, *found, *chosen.warnings):
        say(line)
    if len(folder.entries) < FEW:
        say(
            f"{len(folder.entries)} pictures are few: expect a model that repeats them; --flip and --crop help"
        )
    rule = _rule_of(config, facts, chosen.low, chosen.high)
    for line in _conversions(facts, rule.channels):
        say(line)
    apart = partial(folders.split, folder.entries) if studies is None else studies.split
    train, held_out = apart(config.held_out)
    if not held_out or not train:
        raise InputError(f"the pictures below {root} are all the same", hint="add pictures")
    _refuse_too_many(len(folder.entries), rule)
    whole_numbers = "float32" not in facts.dtypes
    return array_source(
        name_of(root),
        folders.load(train, rule, compact=True, progress=progress),
        folders.load(held_out, rule, compact=True),
        labels=folders.class_numbers(train, folder.classes) if classes else None,
        held_out_labels=folders.class_numbers(held_out, folder.classes) if classes else None,
        classes=folder.classes,
        picture=PictureFormat(
            fit=rule.fit,
            low=rule.low,
            high=rule.high,
            bits=8 if rule.bits == 8 else 16,
            intensity=None if studies is None else studies.rule,
            slices=None if studies is None else studies.slices,
            tiles=studies is not None and studies.of_maps,
        ),
        note=DataNote(source=f"{len(train)} pictures of a user's folder, {len(held_out)} held out"),
        size=config.usual_size if config.crop else None,
        quantum=2.0 / (rule.high - rule.low) if whole_numbers else 0.0,
    )


def as_trained(manifest: Manifest, images: Path, **fields: Any) -> TrainConfig:
    """How pictures are read for a model: as its manifest says that its own were; `fields` are further settings."""
    channels, height, _ = manifest.sample_shape
    found: dict[str, Any] = {"images": images, "channels": channels, "size": height, **fields}
    if (made := manifest.picture) is not None:
        found |= {"fit": made.fit, "range": f"{made.low!r}:{made.high!r}"}
        found |= {"intensity": made.intensity, "slices": made.slices}
    return TrainConfig.model_validate(found)


def own_volumes(manifest: Manifest, folder: Path) -> PictureSource | None:
    """The volumes or maps below a folder, read as those that a model was trained on; None for a model of pictures."""
    if manifest.picture is None or manifest.picture.intensity is None:
        return None
    return folder_source(as_trained(manifest, folder), say=lambda _: None)


def _scan_pictures(
    root: Path, config: TrainConfig, classes: folders.Classes, progress: Progress | None
) -> folders.Folder:
    check = folders.range_check(config.range)
    return folders.scan(root, classes=classes, skip_bad=config.skip_bad, check=check, progress=progress)


def _side(config: TrainConfig) -> int:
    size = config.usual_size
    return size + (size // CROP_ROOM if config.crop else 0)


def _rule_of(config: TrainConfig, facts: Survey, low: float, high: float) -> PictureRule:
    """How each picture is fitted: of the run's size, and as much larger as crops are moved."""
    side = _side(config)
    return PictureRule(
        channels=config.channels or max(facts.channels, key=facts.channels.__getitem__),
        height=side,
        width=side,
        fit=config.fit or "resize",
        low=low,
        high=high,
        bits=8 if set(facts.dtypes) == {"uint8"} else 16,
    )


def name_of(root: Path) -> str:
    """The folder's name as a domain's: letters, digits, dots, dashes; of trainA the name of the folder around it."""
    path = root.resolve()
    name = f"{path.parent.name}-{path.name[-1].lower()}" if path.name in {"trainA", "trainB"} else path.name
    return domain_from(name) or "pictures"


def _named(config: TrainConfig, say: Callable[[str], None], progress: Progress | None) -> PictureSource:
    if config.domain is not None:
        return shipped_source(config.domain)
    return folder_source(config, say=say, progress=progress)


def _conversions(facts: folders.Survey, channels: int) -> list[str]:
    """What is done to pictures of another number of channels."""
    others = sum(count for number, count in facts.channels.items() if number != channels)
    if not others:
        return []
    if channels == 1:
        return [f"{others} RGB pictures are made grey, their colours are dropped; --channels 3 keeps them"]
    return [f"{others} grey pictures become RGB of three equal channels"]


def _refuse_too_many(count: int, rule: PictureRule) -> None:
    needed = count * rule.channels * rule.height * rule.width * (rule.bits // 8)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > MEMORY_SHARE * there:
        raise MemoryExhausted(
            f"{count} pictures of {rule.height} x {rule.width} need {needed / 2**30:.1f} GiB of memory; this machine "
            f"has {there / 2**30:.1f}",
            hint="a smaller --size, or a part of the folder",
        )


def _check_pixels(name: str, part: str, pixels: Pixels, shape: tuple[int, ...]) -> None:
    if pixels.ndim != 4 or pixels.shape[1:] != shape or shape[0] not in (1, 3) or len(pixels) == 0:
        raise ShapeMismatch(
            f"the {part} pictures of {name} are {pixels.shape}, not (N, C, H, W) of one size with 1 or 3 channels",
            hint="one array of pictures, at least one of them",
        )
    if pixels.dtype not in (np.float32, np.uint8, np.uint16):
        raise InputError(f"the {part} pictures of {name} are {pixels.dtype}, not float32, uint8 or uint16")
    if pixels.dtype == np.float32:
        low, high = float(pixels.min()), float(pixels.max())
        if not np.isfinite([low, high]).all():
            raise NotFinite(f"the {part} pictures of {name} hold NaN or infinity", hint="clean them")
        if low < -1.001 or high > 1.001:
            raise InputError(
                f"the {part} pictures of {name} reach from {low:g} to {high:g}", hint="bring them to [-1, 1]"
            )


def _labels(name: str, labels: Sequence[int] | Labels | None, count: int, classes: int) -> Labels | None:
    if labels is None:
        return None
    found = np.asarray(labels, dtype=np.int64)
    if found.shape != (count,) or not classes or found.min() < 0 or found.max() >= classes:
        raise InputError(f"the labels of {name} are not {count} numbers from 0 to {classes - 1}")
    return found


def _digest(train: Pixels, held_out: Pixels, labels: Labels | None) -> str:
    digest = hashlib.sha256()
    for part in (train, held_out, *(() if labels is None else (labels,))):
        digest.update(f"{part.dtype} {part.shape} ".encode())
        digest.update(np.ascontiguousarray(part).data)
    return f"pictures:{digest.hexdigest()}"
