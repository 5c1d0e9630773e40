"""Samples of a model's own domain to tune it on: of a shipped domain, a folder of pictures, or a file of points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddib_fed.data import folder as folders
from ddib_fed.data.fitting import check_fit
from ddib_fed.data.points import parse_npy
from ddib_fed.data.shipped import load_shipped
from ddib_fed.data.synthetic import draw
from ddib_fed.engine.gate import Samples, Told, measure_allowances, unmeasurable
from ddib_fed.engine.model import DomainModel
from ddib_fed.errors import InputError, UsageError
from ddib_fed.evaluation.metrics import picture_rule
from ddib_fed.models.bundle import load_bundle, put_beside
from ddib_fed.models.manifest import Manifest, carried_domain
from ddib_fed.models.sidecars import Allowances
from ddib_fed.training.sources import evenly, own_volumes

Array = NDArray[np.float32]
MAX_POINTS_BYTES = 1 << 28
SEED = 12_107
"""Of the points drawn from a shipped domain."""


@dataclass(frozen=True, slots=True)
class Counts:
    """How many samples each set has; see `TuningLeg`."""

    fit: int
    choose: int
    held_out: int

    @property
    def total(self) -> int:
        return self.fit + self.choose + self.held_out


def own_samples(manifest: Manifest, data: Path | None, counts: Counts) -> tuple[Array, Array, Array]:
    """Samples (N, *sample_shape) of the three sets, in the units of the data, none in two of them."""
    if data is None:
        return _shipped(manifest, counts)
    found = (
        _pictures(manifest, data, counts) if manifest.sample_kind == "picture" else _points(manifest, data)
    )
    order = np.random.default_rng(SEED).permutation(len(found))
    return _parted(found[order], counts, str(data))


def _shipped(manifest: Manifest, counts: Counts) -> tuple[Array, Array, Array]:
    name = carried_domain(manifest)
    if name is None:
        raise UsageError(
            f"{manifest.name}, of the domain {manifest.domain}, was trained on data that do not ship",
            hint="--data FOLDER with pictures of the domain, or --data FILE.npy with points",
        )
    if manifest.sample_kind == "point":
        return _parted(draw(name, counts.total, SEED), counts, name)
    there = load_shipped(name)
    aside = _spread(there.held_out, counts.choose + counts.held_out)
    # Heads are held out by the handful: the rest are training pictures that no step is learned from.
    more = _spread(there.train, counts.total - len(aside))
    aside = np.concatenate([aside, more[counts.fit :]])
    return more[: counts.fit], aside[-counts.choose :], aside[: -counts.choose]


def _pictures(manifest: Manifest, folder: Path, counts: Counts) -> Array:
    if (volumes := own_volumes(manifest, folder)) is not None:
        every = np.concatenate([volumes.train, volumes.held_out])
        return folders.expand(every[:: max(1, len(every) // counts.total)][: counts.total])
    rule = picture_rule(manifest)
    entries = folders.scan(folder, check=lambda picture: check_fit(picture, rule, windows=True)).entries
    step = max(1, len(entries) // counts.total)
    return folders.expand(folders.load(entries[::step][: counts.total], rule))


def _points(manifest: Manifest, file: Path) -> Array:
    if not file.is_file():
        raise InputError(f"there is no file {file}", hint="--data FILE.npy, of shape (N, dimension)")
    with file.open("rb") as opened:
        content = opened.read(MAX_POINTS_BYTES + 1)
    return parse_npy(content, max_bytes=MAX_POINTS_BYTES, max_points=10_000_000, dim=manifest.sample_shape[0])


def _parted(found: Array, counts: Counts, name: str) -> tuple[Array, Array, Array]:
    share = min(1.0, len(found) / counts.total)
    fit, choose = (max(2, int(share * count)) for count in (counts.fit, counts.choose))
    held_out = min(max(2, int(share * counts.held_out)), len(found) - fit - choose)
    if len(found) < 12 or held_out < 2:
        raise InputError(f"{name} has {len(found)} samples; at least 12 are needed", hint="give more")
    return found[:fit], found[fit : fit + choose], found[fit + choose : fit + choose + held_out]


def _spread(pictures: Array, count: int) -> Array:
    chosen: Array = pictures[np.random.default_rng(SEED).permutation(evenly(len(pictures), count))]
    return chosen


PICTURES = 300
"""Pictures that are encoded, where there are so many."""
SHARE = 0.05
"""Of a run's CPU seconds, that its allowances may take; the fewest that are needed are encoded anyway."""


def put_allowances(
    folder: Path,
    data: Path | None = None,
    *,
    command: str = "",
    device: str = "cpu",
    seed: int = 0,
    tell: Told | None = None,
) -> Allowances:
    """Measure what the latents of the bundle in `folder` look like, and write it beside its weights."""
    bundle = load_bundle(folder, without=[Allowances.file])
    model = DomainModel(bundle, device=device)
    _require(model, PICTURES)
    _, _, held_out = own_samples(bundle.manifest, data, Counts(fit=2, choose=2, held_out=PICTURES))
    _require(model, len(held_out))
    found = measure_allowances(model, held_out, command=command, seed=seed, tell=tell)
    put_beside(folder, found)
    return found


def _require(model: DomainModel, count: int) -> None:
    if why := unmeasurable(model, count):
        raise InputError(
            f"the usual latents of {model.manifest.name} cannot be measured: {why}",
            hint=f"ddib model show {model.manifest.name} says what the model is; --data names a folder of pictures",
        )


def after_training(folder: Path, samples: Samples, *, command: str, spent_s: float) -> str:
    """The same at the end of a run, within a small share of what the run took; why not, where it cannot be."""
    model = DomainModel(load_bundle(folder))
    if why := unmeasurable(model, len(samples)):
        return why
    found = measure_allowances(model, samples[:PICTURES], command=command, within_s=SHARE * spent_s)
    put_beside(folder, found)
    return ""
