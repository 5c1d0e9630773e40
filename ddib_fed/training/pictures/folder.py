"""Turns a folder of pictures of one's own into a `PictureSource`.

The rule: the folder is looked at as a whole, and what is odd about it is said, before anything is trained on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ddib_fed.errors import InputError, MemoryExhausted
from ddib_fed.models.manifest import DataNote, PictureFormat
from ddib_fed.names import domain_from
from ddib_fed.samples import folders
from ddib_fed.samples.images import PictureRule
from ddib_fed.samples.scans import Progress
from ddib_fed.training.config import PictureTrainConfig
from ddib_fed.training.pictures.sources import PictureSource, array_source

CROP_ROOM = 8
"""With random windows pictures are kept larger by this part of their size."""
FEW = 200
MEMORY_SHARE = 0.7


def folder_source(
    config: PictureTrainConfig, *, say: Callable[[str], None], progress: Progress | None = None
) -> PictureSource:
    """The pictures of `config.images`, decoded, fitted and split.

    Args:
        config: The run.
        say: Told what the folder is like and what is odd about it, a sentence each.
        progress: Called with (pictures looked at, in all), once while checking and once while loading.

    Raises:
        FileMissing: There is no such folder, or no picture in it.
        ImageUnreadable: There are bad files, and `skip_bad` is not set.
        PictureMisfit: The same, and they are not in the units of the range.
        InputError: There are too few pictures, or all are the same.
        MemoryExhausted: They do not fit into memory.
        SettingsInvalid: The range cannot be.
        UsageError: The folder holds two domains.
    """
    root = Path(str(config.images))
    classes = config.classes if config.classes in {"folders", "prefix"} else None
    folder = folders.scan(
        root,
        classes=classes,
        skip_bad=config.skip_bad,
        check=folders.range_check(config.range),
        progress=progress,
    )
    facts = folders.survey(folder)
    chosen = folders.choose_range(folder, config.range)
    for line in (*facts.lines(), *(f"{path}: {reason}" for path, reason in folder.bad), *chosen.warnings):
        say(line)
    if len(folder.entries) < FEW:
        say(
            f"{len(folder.entries)} pictures are few: expect a model that repeats them; --flip and --crop help"
        )
    size = config.size or config.defaults.size
    rule = PictureRule(
        channels=config.channels or max(facts.channels, key=facts.channels.__getitem__),
        height=size + (size // CROP_ROOM if config.crop else 0),
        width=size + (size // CROP_ROOM if config.crop else 0),
        fit=config.fit or "resize",
        low=chosen.low,
        high=chosen.high,
        bits=8 if set(facts.dtypes) == {"uint8"} else 16,
    )
    for line in _conversions(facts, rule.channels):
        say(line)
    train, held_out = folders.split(folder.entries, config.held_out)
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
        picture=PictureFormat(fit=rule.fit, low=rule.low, high=rule.high, bits=8 if rule.bits == 8 else 16),
        note=DataNote(source=f"{len(train)} pictures of one's own, {len(held_out)} held out"),
        size=size if config.crop else None,
        quantum=2.0 / (rule.high - rule.low) if whole_numbers else 0.0,
    )


def _conversions(facts: folders.Survey, channels: int) -> list[str]:
    """What is done to pictures of another number of channels."""
    others = sum(count for number, count in facts.channels.items() if number != channels)
    if not others:
        return []
    if channels == 1:
        return [f"{others} RGB pictures are made grey, their colours are dropped; --channels 3 keeps them"]
    return [f"{others} grey pictures become RGB of three equal channels"]


def name_of(root: Path) -> str:
    """The folder's name as a domain's: letters, digits, dots, dashes; of trainA the name of the folder around it."""
    path = root.resolve()
    name = f"{path.parent.name}-{path.name[-1].lower()}" if path.name in {"trainA", "trainB"} else path.name
    return domain_from(name) or "pictures"


def _refuse_too_many(count: int, rule: PictureRule) -> None:
    needed = count * rule.channels * rule.height * rule.width * (rule.bits // 8)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > MEMORY_SHARE * there:
        raise MemoryExhausted(
            f"{count} pictures of {rule.height} x {rule.width} need {needed / 2**30:.1f} GiB of memory; this machine "
            f"has {there / 2**30:.1f}",
            hint="a smaller --size, or a part of the folder",
        )
