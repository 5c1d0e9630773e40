"""Builds the index of a model's training pictures, by which a target recognises them among its outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddib_fed.datasets.shipped import load_shipped
from ddib_fed.errors import InputError, UsageError
from ddib_fed.metrics.attacks.copies import Distances, Floats, TrainingRows, reduced
from ddib_fed.metrics.attacks.training_index import (
    MAX_PICTURES,
    IndexFacts,
    distances,
    index_file,
    threshold_of,
)
from ddib_fed.metrics.pictures import picture_rule
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.carried import carried_domain
from ddib_fed.models.manifest import Manifest
from ddib_fed.samples import folders
from ddib_fed.samples.images import PictureRule, check_fit
from ddib_fed.samples.scans import Entry

Parts = Iterable[Floats]
AT_ONCE = 1_000
"""Pictures that are in memory at full size."""
MOST_HELD_OUT = 5_000
SEEN, MOST_SEEN = 0.02, 0.1
"""Distance below which a held-out picture counts as a training picture, and the largest share that may be so."""


@dataclass(frozen=True, slots=True)
class IndexRequest:
    """Which pictures are indexed, and how the threshold is set.

    Attributes:
        training: Folder of the pictures that the model was trained on; None for a shipped domain.
        held_out: Folder of pictures that it was not trained on; None for those that training held out of `training`.
        share: The share that training held out, which is then not indexed.
        threshold: A fixed one; None to take it from the held-out pictures.
    """

    training: Path | None = None
    held_out: Path | None = None
    share: float = 0.1
    threshold: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class BuiltIndex:
    """An index, and what set its threshold.

    Attributes:
        facts: The file's header.
        held_out: Distances of the held-out pictures that set the threshold.
        file: The file's content.
    """

    facts: IndexFacts
    held_out: Distances
    file: bytes


def build_index(bundle: Bundle, wanted: IndexRequest) -> BuiltIndex:
    """Build the index of a model's training pictures.

    Args:
        bundle: The model.
        wanted: Which pictures, and how the threshold is set.

    Raises:
        UsageError: It is a model of points, or was trained on no shipped domain and no training pictures are given.
        FileMissing, ImageUnreadable, PictureMisfit: The pictures cannot be used.
        InputError: There are too many; or too few held-out ones, or they are training pictures themselves.
    """
    rule = picture_rule(bundle.manifest)
    training, held_out = _shipped(bundle.manifest) if wanted.training is None else _folders(wanted, rule)
    own = np.concatenate([reduced(part) for part in training])
    rows = TrainingRows(own)
    found = np.zeros(0)
    if wanted.threshold is None:
        found = _never_seen(np.concatenate([found, *(distances(part, rows) for part in held_out)]))
    channels, height, width = bundle.manifest.sample_shape
    facts = IndexFacts(
        model_sha256=bundle.digest,
        sample_shape=(channels, height, width),
        pictures=len(own),
        numbers=own.shape[1],
        threshold=threshold_of(found) if wanted.threshold is None else wanted.threshold,
        held_out=len(found),
    )
    return BuiltIndex(facts, found, index_file(facts, own))


def _never_seen(found: Distances) -> Distances:
    """The distances without those of the few pictures that were trained on: they would lower the threshold.

    Raises:
        InputError: They are many.
    """
    apart: Distances = found[found >= SEEN]
    if (seen := len(found) - len(apart)) > MOST_SEEN * len(found):
        raise InputError(
            f"{seen} of {len(found)} held-out pictures are training pictures, or nearly",
            hint="remove them from --data, or give --threshold 0.1",
        )
    return apart


def _shipped(manifest: Manifest) -> tuple[Parts, Parts]:
    name = carried_domain(manifest)
    if name is None:
        raise UsageError(
            f"{manifest.name}, of the domain {manifest.domain}, was trained on pictures that do not ship",
            hint="--training FOLDER with the pictures that it was trained on",
        )
    there = load_shipped(name)
    return [there.train], [there.held_out]


def _folders(wanted: IndexRequest, rule: PictureRule) -> tuple[Parts, Parts]:
    assert wanted.training is not None  # whoever calls has seen it
    training: Sequence[Entry] = _entries(wanted.training, rule)
    held_out: Sequence[Entry] = ()
    if wanted.held_out is not None:
        held_out = _entries(wanted.held_out, rule)
    elif wanted.threshold is None:
        training, held_out = folders.split(training, wanted.share)
    if len(training) > MAX_PICTURES:
        raise InputError(
            f"{len(training)} pictures are more than an index holds, {MAX_PICTURES}",
            hint="give a part of them; copies of the others are then not recognised",
        )
    return _loaded(training, rule), _loaded(held_out[:: max(1, len(held_out) // MOST_HELD_OUT)], rule)


def _entries(folder: Path, rule: PictureRule) -> Sequence[Entry]:
    return folders.scan(folder, check=lambda picture: check_fit(picture, rule, windows=True)).entries


def _loaded(entries: Sequence[Entry], rule: PictureRule) -> Iterator[Floats]:
    """The pictures, `AT_ONCE` at a time: all of them at full size may not fit into memory."""
    for start in range(0, len(entries), AT_ONCE):
        yield folders.expand(folders.load(entries[start : start + AT_ONCE], rule))
