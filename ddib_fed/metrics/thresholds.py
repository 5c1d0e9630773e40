"""Measures the structure thresholds of a model on a folder of pictures and stores them in its bundle."""

from __future__ import annotations

from pathlib import Path

from ddib_fed.errors import InputError, SettingsInvalid
from ddib_fed.metrics.pictures import picture_rule
from ddib_fed.metrics.structure import CHANCE_PAIRS, calibrate_by_chance
from ddib_fed.models.bundle import Bundle, amend_bundle, load_bundle
from ddib_fed.samples import folders
from ddib_fed.samples.images import check_fit
from ddib_fed.samples.scans import Progress

FEWEST = 8
MOST = 4_000
"""Pictures that are read, spread over the folder: `CHANCE_PAIRS` pairs need no more."""


def put_thresholds(
    model: Path, images: Path, *, skip_bad: bool = False, progress: Progress | None = None
) -> Bundle:
    """Measure the thresholds on pictures of the model's domain, and write them into its manifest."""
    manifest = load_bundle(model).manifest
    if manifest.sample_kind != "picture" or manifest.role != "generator":
        raise SettingsInvalid(
            f"{model} is no model that generates pictures: it has no thresholds of structure",
            hint="name the folder of a model of pictures; `ddib model show MODEL` says what one is",
        )
    rule = picture_rule(manifest)
    entries = folders.scan(
        images,
        skip_bad=skip_bad,
        check=lambda picture: check_fit(picture, rule, windows=True),
        progress=progress,
    ).entries
    if len(entries) < FEWEST:
        raise InputError(
            f"{images} has {len(entries)} pictures; at least {FEWEST} are needed",
            hint="add pictures of the domain",
        )
    entries = entries[:: -(-len(entries) // MOST)]
    pictures = folders.load(entries, rule)
    found = calibrate_by_chance(
        pictures[::2], pictures[1::2], units=manifest.normalisation, pairs=CHANCE_PAIRS
    )
    return amend_bundle(model, structure=found)
