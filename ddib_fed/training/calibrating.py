"""Makes a calibration from the pictures of two domains, or from anchors by the same names.

Which files a target counts follows from their names alone, so that the content of one cannot change another's part.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ddib_fed.calibration.aggregate import (
    DEFAULT_COUNTED,
    DELTA,
    Aggregate,
    Cells,
    Counted,
    Numbers,
    Unit,
    check_counted,
    count_array,
    default_cells,
    histogram,
    thinned,
)
from ddib_fed.calibration.fit import MOST_PICTURES, Proposal, check_kind, fit, propose
from ddib_fed.calibration.record import CalibratedSide, Calibration, Contrast, Making, Place, units_digest
from ddib_fed.data.fitting import PictureRule, read_fitted
from ddib_fed.data.folder import expand, load, picture_files, range_check, scan
from ddib_fed.datasets import shipped_bytes
from ddib_fed.engine.model import DomainModel
from ddib_fed.errors import (
    CalibrationUnits,
    DdibError,
    ImageUnreadable,
    InputError,
    ShapeMismatch,
    UsageError,
)
from ddib_fed.metrics import Pictures, picture_rule
from ddib_fed.models.bundle import Bundle, open_bundle
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.units import Normalisation
from ddib_fed.networks.placement import torch_threads
from ddib_fed.protocol.contract import CalibrationKind
from ddib_fed.training.sources import own_samples, shipped_name

ModelSource = Any
"""A `ddib_fed.Model`, which stands above this module; the name of one that ships, or its folder; or a bundle."""
OnNote = Callable[..., object]  # called with lines of text for the operator

MOST_COUNTED = 4_000
"""Pictures of the source, evenly spaced: more hardly differ, and they must fit into memory."""
MOST_NAMED = 3
LATENTS_TOGETHER = 16
MOST_UNREAD = 0.1
"""Share of the chosen files that may be unusable; of more the operator has named a wrong folder."""


@dataclass(frozen=True, slots=True)
class Anchors:
    """Pictures of the same things in two domains; row i of both shows the same."""

    names: tuple[str, ...]
    source: Pictures = field(repr=False)
    target: Pictures = field(repr=False)


def count_pictures(
    bundle: Bundle,
    which: str | Path | None,
    *,
    epsilon: float,
    at_most: int = DEFAULT_COUNTED,
    group_by: str | None = None,
    latents: bool = False,
) -> Counted:
    """Count a domain's pictures or their latents, of units chosen before any of them is read."""
    manifest = bundle.manifest
    rule, normalisation = picture_rule(manifest), units_for(manifest, latents=latents)
    name = shipped_name(manifest, which)
    if name is not None:
        if group_by is not None:
            raise UsageError("--group-by is for a folder of pictures", hint="leave it out, or name a folder")
        whole = shipped_bytes(name)[0]
        train = encoder(bundle)(thinned(whole, at_most)) if latents else whole
        counted = count_array(train, normalisation, manifest.domain, epsilon=epsilon, at_most=at_most)
        return replace(counted, notes=tuple(_left(counted.units, len(whole), "picture")))
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
    channels = manifest.latent_shape[0] if latents else rule.channels
    cells = default_cells(channels, count * epsilon)
    chosen = [units[row * len(units) // count] for row in range(count)]

    encode: Callable[[Pictures], Pictures] = encoder(bundle) if latents else lambda pictures: pictures

    def in_units(pictures: Pictures) -> Pictures:
        return normalisation.apply(encode(pictures))

    shares, unread = _mean_histogram(chosen, rule, in_units, cells)
    notes = _left(count, len(units), unit)
    if others:
        notes.append(f"left out     {others} files whose names do not end as a picture's")
    if unread:
        notes.append(f"not usable   {len(unread)} files, which count with no colour: {unread[0]}")
    return Counted(manifest.domain, normalisation, cells, shares, count, unit, tuple(notes))


def _left(count: int, there: int, unit: Unit) -> list[str]:
    if count == there:
        return []
    return [f"counted      {count} of {there} {unit}s, evenly spaced by name"]


def _groups(files: Sequence[Path], folder: Path, group_by: str) -> list[tuple[Path, ...]]:
    """Group files by their names alone."""
    try:
        pattern = re.compile("^([^/]+)/" if group_by == "folder" else group_by)
    except re.error as error:
        raise UsageError(
            f"--group-by {group_by!a} is no regular expression: {error}", hint="ddib calibrate publish --help"
        ) from error
    groups: dict[str, list[Path]] = {}
    for file in files:
        match = pattern.search(name := file.relative_to(folder).as_posix())
        if match is None or not (group := match[min(pattern.groups, 1)]):
            raise InputError(
                f"{name} lies in no group by --group-by {group_by}",
                hint="the pattern must be found in each path below the folder; ddib calibrate publish --help",
            )
        groups.setdefault(group, []).append(file)
    return [tuple(each) for each in groups.values()]


def _mean_histogram(
    units: Sequence[tuple[Path, ...]],
    rule: PictureRule,
    in_units: Callable[[Pictures], Pictures],
    cells: Cells,
) -> tuple[Numbers, list[str]]:
    """Return the mean over units of the mean over their files, and a line for each file that cannot be used."""
    total, unread = np.zeros(cells.shape), []
    for files in units:
        for file in files:
            try:
                x = read_fitted(file, rule, windows=True, grey=True).samples
            except DdibError as error:
                unread.append(f"{file}: {error.detail}")
            else:
                total += histogram(in_units(x[None]), cells) / len(files)
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
    """Read the pictures of two folders that have the same names, each by its domain's rule."""
    entries = [
        {
            str(entry.path.relative_to(folder).with_suffix("")): entry
            for entry in scan(folder, check=range_check(f"{rule.low!r}:{rule.high!r}")).entries
        }
        for rule, folder in zip(rules, places, strict=True)
    ]
    for here, there in ((0, 1), (1, 0)):
        if missing := entries[here].keys() - entries[there].keys():
            some = ", ".join(sorted(missing)[:MOST_NAMED])
            raise InputError(
                f"{len(missing)} pictures of {places[here]} have no partner in {places[there]}: {some}",
                hint="name both pictures of one thing alike, and remove what has no partner",
            )
    names = tuple(sorted(entries[0]))
    first, second = (
        load([each[name] for name in names], rule) for each, rule in zip(entries, rules, strict=True)
    )
    return Anchors(names, first, second)


def open_source(model: ModelSource) -> Bundle:
    """Return the bundle of a `Model`, of a model that ships by its name, or of a folder."""
    if isinstance(model, Bundle):
        return model
    bundle: Bundle = model.party.model.bundle if hasattr(model, "party") else open_bundle(str(model))
    return bundle


def ignore(*lines: str) -> None:
    """Ignore notes."""


class CalibrationTarget(Protocol):
    """The other side: a peer's node, or a model in this process."""

    def aggregate(self) -> Aggregate: ...
    def units(self, *, latents: bool = False) -> Normalisation: ...
    def picture_rule(self, shape: tuple[int, ...]) -> PictureRule: ...


@dataclass(frozen=True, slots=True)
class LocalTarget:
    """A target's model in this process. Nothing leaves: noise that the seed repeats shows what would."""

    bundle: Bundle
    request: CalibrationRequest
    on_note: OnNote
    latents: bool = False

    def aggregate(self) -> Aggregate:
        epsilon, pictures = self.request.epsilon, self.request.target_pictures
        counted = count_pictures(self.bundle, pictures, epsilon=epsilon, latents=self.latents)
        self.on_note(*counted.notes)
        # Another stream than the search's.
        return counted.noised(epsilon, DELTA, np.random.default_rng((self.request.seed, 1)))

    def units(self, *, latents: bool = False) -> Normalisation:
        return units_for(self.bundle.manifest, latents=latents)

    def picture_rule(self, shape: tuple[int, ...]) -> PictureRule:  # noqa: ARG002 - a protocol's signature
        return picture_rule(self.bundle.manifest)


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRequest:
    """Materials and kind of a calibration.

    Parameters
    ----------
    kind
        "rotation" is used as it is. "tone" (a curve of grey) and "colour-map" need the source's model trained again.
    pictures, target_pictures
        Unpaired pictures of both domains: a folder, or the name of a domain that ships; by default node.toml's [train],
        else the shipped domain of the model's name. Between nodes the peer publishes an aggregate instead.
    anchors
        Instead two folders with pictures of the same things in both domains, by the same file names.
    existing
        Instead the map of this calibration, with its figures; only towards a peer.
    contrast
        Of a tone without anchors: light is light in both ("same"), or dark in the target ("inverted").
    epsilon
        Of the aggregate's noise in one process; a node publishes with its own.
    days, seed
        Days until it expires; seed of the search, and in one process of the aggregate's noise.
    force
        Whether a calibration with refused figures is made all the same.
    """

    kind: CalibrationKind = "rotation"
    pictures: str | Path | None = None
    target_pictures: str | Path | None = None
    anchors: tuple[Path, Path] | None = None
    existing: Calibration | None = None
    contrast: Contrast = ""
    epsilon: float = 1.0
    days: int = 180
    seed: int = 0
    force: bool = False

    def command(self, ends: str) -> str:
        """Return the command that makes this again, of the words that name both ends; it names no file or folder."""
        command = f"ddib calibrate {ends} --kind {self.kind} --seed {self.seed}"
        command += "" if self.anchors is None else " --anchors"
        return command + (f" --contrast {self.contrast}" if self.contrast else "")


class Ends(NamedTuple):
    """Both ends of a calibration, and the command that makes it again, without names of files."""

    source: CalibratedSide
    target: Place
    command: str


def calibrate(
    source: ModelSource,
    target: ModelSource,
    request: CalibrationRequest = CalibrationRequest(),
    *,
    threads: int = 1,
    on_note: OnNote = ignore,
) -> Calibration:
    """Make a calibration of two models in this process; between nodes `Node.calibrations.propose` makes one.

    The result is unsigned, and names the models' domains, no institution and no file. `measure_dial` then measures how
    much structure its latents should keep.

    Parameters
    ----------
    source, target
        A model, its name if it ships, or its folder; both of one size and number of channels.
    on_note
        Called with lines for the operator: pictures that are counted and left out, and what would leave a node.

    Raises
    ------
    ShapeMismatch
        The models differ in size or channels.
    CalibrationIneffective
        It is no better than none, or hardly better than another one; `request.force` makes it all the same.
    InputError
        There are too few pictures, or an anchor has no partner.

    Examples
    --------
    Four anchors, whose red and blue are exchanged in the target's domain:

    >>> import tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from ddib_fed import CalibrationRequest, calibrate
    >>> folders = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
    >>> for number, (red, green, blue) in enumerate([(200, 60, 20), (30, 90, 160), (90, 200, 40), (10, 20, 30)]):
    ...     Image.new("RGB", (64, 64), (red, green, blue)).save(folders[0] / f"{number}.png")
    ...     Image.new("RGB", (64, 64), (blue, green, red)).save(folders[1] / f"{number}.png")
    >>> request = CalibrationRequest(anchors=folders, force=True)
    >>> calibration = calibrate("satellite", "relief", request)
    >>> print(calibration.source, calibration.target, calibration.made.anchors)
    satellite relief 4
    """
    bundle, other = open_source(source), open_source(target)
    first, second = bundle.manifest, other.manifest
    if first.sample_shape != second.sample_shape or first.latent_shape != second.latent_shape:
        raise ShapeMismatch(
            f"{first.name} is of {first.sample_shape}, {second.name} of {second.sample_shape}",
            hint="a calibration is for two models of one size and number of channels",
        )
    latents = of_latents(request.kind, first)
    noise = "" if request.anchors is not None else f" --epsilon {request.epsilon:g}"
    words = f"--local {shlex.join((first.domain, second.domain))}{noise}"
    ends = Ends(side(first, latents=latents), ("", second.domain), request.command(words))
    opposite = LocalTarget(other, request, on_note, latents)
    with torch_threads(threads):
        return make_calibration(request, ends, bundle, opposite, on_note=on_note)


def side(manifest: Manifest, institution: str = "", *, latents: bool = False) -> CalibratedSide:
    """Return one side of a calibration, from its model's manifest."""
    units = units_for(manifest, latents=latents)
    return CalibratedSide(institution=institution, domain=manifest.domain, units=units)


def units_for(manifest: Manifest, *, latents: bool) -> Normalisation:
    """Return the units of a model's pictures, or of its latents."""
    units = manifest.calibrated_units
    if latents and len(units) == 1:
        raise UsageError(f"{manifest.name} has no autoencoder", hint="leave --latents out")
    return units[latents]


def of_latents(kind: CalibrationKind, manifest: Manifest) -> bool:
    """Return whether a calibration is of latents: the ODE commutes with a rotation of its own space alone."""
    return kind == "rotation" and manifest.latents is not None


def encoder(bundle: Bundle) -> Callable[[Pictures], Pictures]:
    """Return what encodes pictures in [-1, 1] by the autoencoder, in its own units."""
    model, latents = DomainModel(bundle), bundle.manifest.latents
    assert latents is not None
    units = latents.normalisation

    def encoded(pictures: Pictures) -> Pictures:
        parts = np.array_split(pictures, -(-len(pictures) // LATENTS_TOGETHER))
        return np.concatenate([units.undo(model.into_units(expand(part)).numpy()) for part in parts])

    return encoded


def make_calibration(
    request: CalibrationRequest,
    ends: Ends,
    bundle: Bundle,
    target: CalibrationTarget,
    *,
    on_note: OnNote = ignore,
) -> Calibration:
    """Make a calibration from anchors in two folders, or from own pictures and the target's aggregate."""
    manifest, latents = bundle.manifest, of_latents(request.kind, bundle.manifest)
    rule, units = picture_rule(manifest), units_for(manifest, latents=latents)
    channels = 3 if latents else manifest.sample_shape[0]
    check_kind(request.kind, channels, anchored=request.anchors is not None, contrast=request.contrast)
    if request.anchors is not None:
        if latents:
            raise UsageError(
                f"a rotation of {manifest.name} is of latents, and anchors are pictures",
                hint="--kind colour-map with --anchors; or a rotation from aggregates of latents, without them",
            )
        theirs = target.units()
        anchors = anchors_of((rule, target.picture_rule(manifest.sample_shape)), request.anchors)
        pair = anchors.source, anchors.target
        proposal = fit(*pair, (units, theirs), request.kind, seed=request.seed, force=request.force)
        return _recorded(proposal, request, ends, theirs, method="anchors", anchors=len(anchors.names))
    aggregate = target.aggregate()
    on_note(*aggregate.describe().split("\n"))
    most = MOST_PICTURES if latents else MOST_COUNTED
    pictures = own_samples(manifest, request.pictures, most, 0).train
    pictures = encoder(bundle)(pictures) if latents else pictures
    return from_aggregate(pictures, (units, target.units(latents=latents)), aggregate, request, ends)


def from_aggregate(
    pictures: Pictures,
    units: tuple[Normalisation, Normalisation],
    aggregate: Aggregate,
    request: CalibrationRequest,
    ends: Ends,
) -> Calibration:
    """Make a calibration from the source's pictures and what the target published; `units` are those of both."""
    if aggregate.units_sha256 != units_digest(units[1]):
        raise CalibrationUnits(
            f"the aggregate of {aggregate.domain} is in other units than the model there has now",
            hint="ask its operator to publish again: ddib calibrate publish --force",
            facts={"side": "target"},
        )
    contrast, seed, force = request.contrast, request.seed, request.force
    proposal = propose(pictures, units[0], aggregate, request.kind, contrast=contrast, seed=seed, force=force)
    return _recorded(
        proposal,
        request,
        ends,
        units[1],
        method="aggregates",
        contrast=contrast,
        source_pictures=min(len(pictures), MOST_PICTURES),
        **aggregate.making,
    )


def _recorded(
    proposal: Proposal, request: CalibrationRequest, ends: Ends, units: Normalisation, **making: Any
) -> Calibration:
    now = datetime.now(UTC).replace(microsecond=0)
    institution, domain = ends.target
    return Calibration(
        kind=request.kind,
        source=ends.source,
        target=CalibratedSide(institution=institution, domain=domain, units=units),
        map=proposal.map,
        made=Making(command=ends.command, created=now, **making),
        effect=proposal.effect,
        expires=now + timedelta(days=request.days),
    )
