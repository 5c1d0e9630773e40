"""A calibration from the pictures of two domains, or from anchors by the same names, and what is measured of it.

A part of a domain's pictures is held out, by content, for measuring. What a target publishes holds nothing out: which
files are counted follows from their names alone, so that the content of one cannot change the part of another.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from ddib_fed.calibration import fit as anchored
from ddib_fed.calibration.aggregate import (
    DEFAULT_COUNTED,
    Aggregate,
    Cells,
    Counted,
    Numbers,
    Unit,
    check_counted,
    count_array,
    default_cells,
    histogram,
)
from ddib_fed.calibration.fit import MOST_PICTURES, Proposal, propose
from ddib_fed.calibration.fit import colour_distance as sliced_distance
from ddib_fed.calibration.record import CalibratedSide, Calibration, Kind, Making, units_digest
from ddib_fed.data.fitting import PictureRule, read_fitted
from ddib_fed.data.folder import load, picture_files, range_check, scan
from ddib_fed.data.shipped import SHIPPED, available, load_shipped, shipped_clusters
from ddib_fed.engine.arrays import PLAIN, ArraySettings, Stages, translate_array
from ddib_fed.engine.local_party import LocalParty
from ddib_fed.errors import DdibError, ImageUnreadable, InputError, ShapeMismatch, UsageError
from ddib_fed.evaluation.judgement import Resamples, resample
from ddib_fed.evaluation.metrics import NEAREST, Pictures, hits_by_pixels, picture_rule, psnr, ssim, whiteness
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.manifest import Manifest, carried_domain
from ddib_fed.models.sidecars import Figure
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.training.sources import OwnSamples, evenly, own_samples, shipped_name, spaced

MOST_COUNTED = 4_000
"""Of a side, evenly spaced: a histogram of more hardly differs, and they must fit into memory."""
MOST_HELD_OUT = 400
MOST_NAMED = 3
MOST_UNREAD = 0.1
"""Share of the chosen files that may be unusable; of more the operator has named a wrong folder."""


@dataclass(frozen=True, slots=True)
class Anchors:
    """Pictures of the same things in two domains; row i of both shows the same."""

    names: tuple[str, ...]
    source: Pictures = field(repr=False)
    target: Pictures = field(repr=False)
    clusters: NDArray[np.int64] | None = field(default=None, repr=False)


def domain_pictures(bundle: Bundle, which: str | None) -> OwnSamples:
    """The pictures of a model's domain."""
    picture_rule(bundle.manifest)
    return own_samples(bundle.manifest, which, MOST_COUNTED, MOST_HELD_OUT)


def count_pictures(
    bundle: Bundle,
    which: str | None,
    *,
    epsilon: float,
    at_most: int = DEFAULT_COUNTED,
    group_by: str | None = None,
) -> Counted:
    """The histogram of a domain's pictures, of units that are chosen before any of them is read."""
    manifest = bundle.manifest
    rule, normalisation = picture_rule(manifest), manifest.normalisation
    name = shipped_name(manifest, which)
    if name is not None:
        if group_by is not None:
            raise UsageError("--group-by is for a folder of pictures", hint="leave it out, or name a folder")
        train = load_shipped(name).train
        found = count_array(train, normalisation, manifest.domain, epsilon=epsilon, at_most=at_most)
        return replace(found, notes=tuple(_left(found.units, len(train), "picture")))
    folder = Path(str(which))
    if manifest.picture is not None and manifest.picture.intensity is not None:
        raise UsageError(
            f"{manifest.name} was trained on volumes or maps, and an aggregate counts files of single pictures",
            hint="calibrate from anchors, docs/calibration.md",
        )
    files, others = picture_files(folder)
    units = [(file,) for file in files] if group_by is None else _groups(files, folder, group_by)
    unit: Unit = "picture" if group_by is None else "group"
    count = min(len(units), at_most)
    check_counted(count, unit)
    cells = default_cells(rule.channels, count * epsilon)
    chosen = [units[row * len(units) // count] for row in range(count)]
    shares, unread = _mean_histogram(chosen, rule, normalisation.plain, cells)
    notes = _left(count, len(units), unit)
    if others:
        notes.append(f"left out     {others} files whose names do not end as a picture's")
    if unread:
        notes.append(f"not usable   {len(unread)} files, which count with no colour: {unread[0]}")
    return Counted(manifest.domain, normalisation, cells, shares, count, unit, tuple(notes))


def _left(count: int, there: int, unit: Unit) -> list[str]:
    if count == there:
        return []
    how = f"evenly spaced by name; ddib calibrate publish --limit {there} counts all"
    return [f"counted      {count} of {there} {unit}s, {how}"]


def _groups(files: Sequence[Path], folder: Path, group_by: str) -> list[tuple[Path, ...]]:
    """Files by the group that each lies in, by their names alone."""
    try:
        pattern = re.compile("^([^/]+)/" if group_by == "folder" else group_by)
    except re.error as error:
        raise UsageError(
            f"--group-by {group_by!a} is no regular expression: {error}", hint="ddib calibrate publish --help"
        ) from error
    found: dict[str, list[Path]] = {}
    for file in files:
        match = pattern.search(name := file.relative_to(folder).as_posix())
        if match is None or not (group := match[min(pattern.groups, 1)]):
            raise InputError(
                f"{name} lies in no group by --group-by {group_by}",
                hint="the pattern must be found in each path below the folder; ddib calibrate publish --help",
            )
        found.setdefault(group, []).append(file)
    return [tuple(each) for each in found.values()]


def _mean_histogram(
    units: Sequence[tuple[Path, ...]], rule: PictureRule, normalisation: Normalisation, cells: Cells
) -> tuple[Numbers, list[str]]:
    """The mean over units of the mean over their files; and a line for each file that cannot be used."""
    total, unread = np.zeros(cells.shape), []
    for files in units:
        for file in files:
            try:
                x = read_fitted(file, rule, windows=True, grey=True).samples
            except DdibError as error:
                unread.append(f"{file}: {error.detail}")
            else:
                total += histogram(normalisation.apply(x[None]), cells) / len(files)
    count = sum(map(len, units))
    if len(unread) > MOST_UNREAD * count:
        some = "".join(f"\n  {each}" for each in unread[:MOST_NAMED])
        raise ImageUnreadable(
            f"{len(unread)} of {count} pictures cannot be used:{some}",
            hint="name the folder of the pictures that the model was trained on with --pictures; ddib model show MODEL",
            facts={"bad": len(unread)},
        )
    return total / len(units), unread


def anchors_of(rules: tuple[PictureRule, PictureRule], places: tuple[Path, Path]) -> Anchors:
    """The pictures of two folders that have the same names, each read by its domain's rule."""
    found = [
        {
            str(entry.path.relative_to(folder).with_suffix("")): entry
            for entry in scan(folder, check=range_check(f"{rule.low!r}:{rule.high!r}")).entries
        }
        for rule, folder in zip(rules, places, strict=True)
    ]
    for here, there in ((0, 1), (1, 0)):
        if missing := found[here].keys() - found[there].keys():
            some = ", ".join(sorted(missing)[:MOST_NAMED])
            raise InputError(
                f"{len(missing)} pictures of {places[here]} have no partner in {places[there]}: {some}",
                hint="name both pictures of one thing alike, and remove what has no partner",
            )
    names = tuple(sorted(found[0]))
    first, second = (
        load([each[name] for name in names], rule) for each, rule in zip(found, rules, strict=True)
    )
    return Anchors(names, first, second)


def shipped_truth(source: Bundle, target: Bundle, count: int) -> Anchors | None:
    """Test pictures of two shipped domains that show the same places; None where there are none."""
    names = carried_domain(source.manifest), carried_domain(target.manifest)
    if not all(name in SHIPPED and available(str(name)) for name in names):
        return None
    if len({SHIPPED[str(name)].package for name in names}) > 1:
        return None
    first, second = (load_shipped(str(name)).test for name in names)
    if len(first) != len(second):
        return None
    rows = evenly(len(first), count)
    clusters = shipped_clusters(str(names[0]))[rows]
    return Anchors(tuple(f"{row:03}" for row in rows), first[rows], second[rows], clusters)


@dataclass(frozen=True, slots=True)
class CalibrationRequest:
    """What is asked of a calibration."""

    kind: Kind
    source: CalibratedSide
    target: CalibratedSide
    days: int
    command: str
    seed: int = 0
    force: bool = False


def side(manifest: Manifest, institution: str = "") -> CalibratedSide:
    """One side of a calibration, from its model's manifest."""
    return CalibratedSide(
        institution=institution, domain=manifest.domain, units_sha256=units_digest(manifest.normalisation)
    )


def check_models(source: Manifest, target: Manifest, kind: Kind, *, anchored: bool) -> None:
    """Return if a calibration of this kind can be made for two models, before any picture is read."""
    for manifest in (source, target):
        picture_rule(manifest)
    if source.sample_shape != target.sample_shape:
        raise ShapeMismatch(
            f"{source.name} is of {source.sample_shape}, {target.name} of {target.sample_shape}",
            hint="a calibration is for two models of one size and number of channels",
        )
    channels = source.sample_shape[0]
    if channels != (1 if kind == "tone" else 3):
        raise UsageError(
            f"a {kind} is not for pictures of {channels} channel{'s' * (channels > 1)}, as {source.name} has them",
            hint="--kind rotation or colour-map" if channels > 1 else "--kind tone --anchors A_DIR B_DIR",
        )
    if kind == "tone" and not anchored:
        raise UsageError(
            "a tone is fitted to anchors: nothing in a histogram of grey tells a contrast from its negative",
            hint="--kind tone --anchors A_DIR B_DIR; docs/calibration.md",
        )


def from_aggregate(
    pictures: Pictures, normalisation: Normalisation, aggregate: Aggregate, request: CalibrationRequest
) -> Calibration:
    """A calibration from the source's pictures and what the target published."""
    found = propose(pictures, normalisation, aggregate, request.kind, seed=request.seed, force=request.force)
    return _recorded(
        found,
        request,
        method="aggregates",
        source_pictures=min(len(pictures), MOST_PICTURES),
        target_pictures=aggregate.counted,
        target_unit=aggregate.unit,
        aggregate_sha256=aggregate.sha256.hex(),
        crossed_bytes=len(aggregate.canonical),
        epsilon=aggregate.epsilon,
        delta=aggregate.delta,
    )


def from_anchors(
    anchors: Anchors, units: tuple[Normalisation, Normalisation], request: CalibrationRequest
) -> Calibration:
    """A calibration from pictures of the same things in both domains; nothing crosses for it."""
    pair = anchors.source, anchors.target
    found = anchored.fit(*pair, units, request.kind, seed=request.seed, force=request.force)
    return _recorded(found, request, method="anchors", anchors=len(anchors.names))


def _recorded(found: Proposal, request: CalibrationRequest, **making: Any) -> Calibration:
    now = datetime.now(UTC).replace(microsecond=0)
    return Calibration(
        kind=request.kind,
        source=request.source,
        target=request.target,
        map=found.map,
        made=Making(command=request.command, created=now, **making),
        effect=found.effect,
        expires=now + timedelta(days=request.days),
    )


PIXELS = 16
"""Taken from each picture: neighbouring pixels say the same."""
COLOURED = 1_000
"""Pictures of a side whose colours are compared."""
DISTANCE_DRAWS = 40
SEED = 0

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure with the calibration, and beside it without."""

    name: str
    calibrated: Figure
    without: Figure | None = None
    gain: Figure | None = None
    alone: Figure | None = None
    rising: bool = True
    judges: bool = False

    @property
    def verdict(self) -> str:
        """What the interval of the gain says: better, worse, or no difference; empty where there is none."""
        if self.gain is None:
            return ""
        if self.gain.low <= 0 <= self.gain.high:
            return "no difference"
        return "better" if (self.gain.low > 0) == self.rising else "worse"


@dataclass(frozen=True, slots=True)
class Ways:
    """The parties of a comparison."""

    target: LocalParty
    calibrated: LocalParty
    rotation: ChannelMap | None
    without: LocalParty | None


def colour_distance(
    source: Pictures, target: Pictures, channel_map: ChannelMap, units: tuple[Normalisation, Normalisation]
) -> Compared:
    """How far the source's colours are from the target's, in the target's units."""
    parts = zip(units, (source, target), strict=True)
    own, other = (_pixels(side.apply(spaced(x, COLOURED))) for side, x in parts)
    reference = other.reshape(-1, other.shape[2])
    rng = np.random.default_rng(SEED)
    draws = [rng.integers(len(own), size=len(own)) for _ in range(DISTANCE_DRAWS)]

    mapped = np.moveaxis(channel_map.apply(np.moveaxis(own, 2, 1)), 1, 2)
    whole = [_distance(colours, reference) for colours in (mapped, own)]
    draws_of = np.array(
        [[_distance(colours[rows], reference) for colours in (mapped, own)] for rows in draws]
    )
    return Compared(
        "distance of colours",
        _around(whole[0], draws_of[:, 0]),
        _around(whole[1], draws_of[:, 1]),
        gain=_around(whole[0] - whole[1], draws_of[:, 0] - draws_of[:, 1]),
        rising=False,
    )


def there_and_back(
    pictures: Pictures, ways: Ways, asked: ArraySettings = PLAIN, *, on_progress: OnProgress | None = None
) -> tuple[Stages, Stages | None]:
    """Pictures there and back: with the calibration, and without."""
    parties = [(ways.calibrated, ways.rotation)] + ([] if ways.without is None else [(ways.without, None)])
    found = []
    for number, (party, rotation) in enumerate(parties):

        def tell(done: int, total: int, number: int = number) -> None:
            if on_progress is not None:
                on_progress(number * total + done, len(parties) * total)

        leg = replace(asked, cycle=True, calibration=rotation)
        found.append(translate_array(pictures, party, ways.target, leg, on_progress=tell))
    return found[0], found[1] if len(found) > 1 else None


def unpaired(pictures: Pictures, stages: tuple[Stages, Stages | None]) -> list[Compared]:
    """Whiteness and round trip of translations with and without the calibration."""
    ratios, backs = [], []
    for each in filter(None, stages):
        assert each.back is not None  # `there_and_back` asks for it
        ratio = whiteness(torch.from_numpy(each.latent)).ratio
        ratios.append(Figure(value=ratio, low=ratio, high=ratio))
        backs.append(psnr(each.back, pictures))
    return [
        Compared(
            "latents: patch correlation / noise's",
            ratios[0],
            ratios[1] if len(ratios) > 1 else None,
            rising=False,
        ),
        compared("round trip, dB", backs, resample(len(pictures))),
    ]


def paired(stages: tuple[Stages, Stages | None], mapped: Pictures, anchors: Anchors) -> list[Compared]:
    """PSNR, SSIM and retrieval of translations whose truth is known."""
    drawn, truth = resample(len(anchors.target), anchors.clusters), anchors.target
    sets = [each.translated for each in filter(None, stages)]
    figures: dict[str, Callable[[Pictures, Pictures], ArrayLike]] = {
        "PSNR, dB": psnr,
        "SSIM": ssim,
        f"true partner among the {NEAREST} nearest": hits_by_pixels,
    }
    return [
        compared(
            name,
            [of(x, truth) for x in sets],
            drawn,
            alone=of(mapped, truth),
            judges=of is not hits_by_pixels,
        )
        for name, of in figures.items()
    ]


def map_alone(
    pictures: Pictures, channel_map: ChannelMap, units: tuple[Normalisation, Normalisation]
) -> Pictures:
    """Pictures (N, C, H, W) in [-1, 1] of the source's domain with their channels mapped, without any network."""
    own, other = units
    found: Pictures = np.clip(other.undo(channel_map.apply(own.apply(pictures))), -1.0, 1.0)
    return found


def compared(
    name: str,
    values: Sequence[ArrayLike],
    drawn: Resamples,
    *,
    alone: ArrayLike | None = None,
    judges: bool = False,
) -> Compared:
    """Figures of each picture, with the calibration and without if there are two, as means with intervals."""
    each = [np.asarray(value, np.float64) for value in values]
    means = [Figure(**drawn.mean(value)) for value in each]
    gain = Figure(**drawn.mean(each[0] - each[1])) if len(each) > 1 else None
    beside = None if alone is None else Figure(**drawn.mean(alone))
    without = means[1] if len(means) > 1 else None
    return Compared(name, means[0], without, gain=gain, alone=beside, judges=judges)


def _pixels(units: NDArray[np.floating]) -> NDArray[np.float64]:
    flat = units.reshape(*units.shape[:2], -1)
    places = np.linspace(0, flat.shape[2] - 1, PIXELS).round().astype(int)
    return np.moveaxis(flat[:, :, places], 1, 2).astype(np.float64)


def _around(value: float, draws: NDArray[np.float64]) -> Figure:
    low, high = np.quantile(draws, [0.025, 0.975]) - (draws.mean() - value)
    return Figure(value=value, low=float(low), high=float(high))


def _distance(colours: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    return sliced_distance(colours.reshape(-1, colours.shape[2]), reference)
