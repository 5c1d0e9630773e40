"""The pictures that a calibration is made and measured with: a domain's own, and anchors by the same names.

Pictures come from a folder, or from the shipped data of the model's domain; they are in [-1, 1] and of the model's
size. A part of them is held out, by content, for measuring. What a target publishes holds nothing out: which files are
counted follows from their names alone, so that the content of one cannot change the part of another (`count_pictures`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddib_fed.bridge.calibration.aggregates import (
    DEFAULT_COUNTED,
    Cells,
    Counted,
    Numbers,
    Unit,
    check_counted,
    count_array,
    default_cells,
    histogram,
)
from ddib_fed.datasets.shipped import SHIPPED, ShippedPictures, available, load_shipped, shipped_clusters
from ddib_fed.errors import DdibError, ImageUnreadable, InputError, UsageError
from ddib_fed.metrics.pictures import Pictures, picture_rule
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.carried import carried_domain
from ddib_fed.models.manifest import Manifest
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.samples.fitting import PictureRule
from ddib_fed.samples.folders import expand, load, range_check, scan, split
from ddib_fed.samples.images import read_fitted
from ddib_fed.samples.scans import Entry, picture_files
from ddib_fed.training.pictures.sources import own_volumes

MOST_PICTURES = 4_000
"""Of a side, evenly spaced: a histogram of more hardly differs, and they must fit into memory."""
MOST_HELD_OUT = 400
MOST_NAMED = 3
MOST_UNREAD = 0.1
"""Share of the chosen files that may be unusable; of more the operator has named a wrong folder."""


@dataclass(frozen=True, slots=True)
class DomainPictures:
    """Pictures of one domain, (N, C, H, W) float32 in [-1, 1] each."""

    source: str
    train: Pictures = field(repr=False)
    held_out: Pictures = field(repr=False)


@dataclass(frozen=True, slots=True)
class Anchors:
    """Pictures of the same things in two domains; row i of both shows the same."""

    names: tuple[str, ...]
    source: Pictures = field(repr=False)
    target: Pictures = field(repr=False)
    clusters: NDArray[np.int64] | None = field(default=None, repr=False)


def domain_pictures(bundle: Bundle, which: str | None) -> DomainPictures:
    """The pictures of a model's domain."""
    manifest = bundle.manifest
    rule = picture_rule(manifest)
    name = _shipped_name(manifest, which)
    if name is not None:
        return _shipped_pictures(manifest, name)
    folder = Path(str(which))
    if (volumes := own_volumes(manifest, folder)) is not None:
        parts = (volumes.train, MOST_PICTURES), (volumes.held_out, MOST_HELD_OUT)
        return DomainPictures(str(folder), *(expand(part[_evenly(len(part), most)]) for part, most in parts))
    scanned = scan(folder, check=range_check(f"{rule.low!r}:{rule.high!r}"))
    train, held_out = split(scanned.entries)
    if not train or not held_out:
        raise InputError(f"the pictures below {folder} are all the same", hint="add pictures")
    return DomainPictures(
        str(folder),
        load(_spaced_entries(train, MOST_PICTURES), rule),
        load(_spaced_entries(held_out, MOST_HELD_OUT), rule),
    )


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
    name = _shipped_name(manifest, which)
    if name is not None:
        if group_by is not None:
            raise UsageError("--group-by is for a folder of pictures", hint="leave it out, or name a folder")
        train = _load_shipped(manifest, name).train
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
    how = f"evenly spaced by name; ddib calibrate publish --at-most {there} counts all"
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


def folder_anchors(source: Bundle, target: Bundle, folders: tuple[Path, Path]) -> Anchors:
    return anchors_of((picture_rule(source.manifest), picture_rule(target.manifest)), folders)


def anchors_of(rules: tuple[PictureRule, PictureRule], folders: tuple[Path, Path]) -> Anchors:
    """The pictures of two folders that have the same names, each read by its domain's rule."""
    found = []
    for rule, folder in zip(rules, folders, strict=True):
        entries = scan(folder, check=range_check(f"{rule.low!r}:{rule.high!r}")).entries
        found.append(({_name(entry.path, folder): entry for entry in entries}, rule))
    (first, own), (second, other) = found
    for missing, folder, here in (
        (first.keys() - second.keys(), folders[1], folders[0]),
        (second.keys() - first.keys(), folders[0], folders[1]),
    ):
        if missing:
            some = ", ".join(sorted(missing)[:MOST_NAMED])
            raise InputError(
                f"{len(missing)} pictures of {here} have no partner in {folder}: {some}",
                hint="name both pictures of one thing alike, and remove what has no partner",
            )
    names = sorted(first)
    return Anchors(
        tuple(names),
        load([first[name] for name in names], own),
        load([second[name] for name in names], other),
    )


def shipped_truth(source: Bundle, target: Bundle, count: int) -> Anchors | None:
    """Test pictures of two shipped domains that show the same places; None where there are none."""
    here, there = carried_domain(source.manifest), carried_domain(target.manifest)
    if here is None or there is None:
        return None
    names = here, there
    if any(name not in SHIPPED or not available(name) for name in names):
        return None
    if len({SHIPPED[name].package for name in names}) > 1:
        return None
    first, second = (load_shipped(name).test for name in names)
    if len(first) != len(second):
        return None
    rows = _evenly(len(first), count)
    clusters = shipped_clusters(names[0])[rows]
    return Anchors(tuple(f"{row:03}" for row in rows), first[rows], second[rows], clusters)


def spaced(pictures: Pictures, most: int) -> Pictures:
    found: Pictures = pictures[_evenly(len(pictures), most)]
    return found


def _spaced_entries(entries: Sequence[Entry], most: int) -> list[Entry]:
    return [entries[row] for row in _evenly(len(entries), most)]


def _evenly(count: int, most: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


def _name(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder).with_suffix(""))


def _shipped_name(manifest: Manifest, which: str | None) -> str | None:
    """The shipped domain that is meant; None where a folder is."""
    if which is None:
        found = carried_domain(manifest)
        if found is None or found not in SHIPPED:
            raise UsageError(
                f"the pictures that {manifest.name} was trained on do not ship with this package, and none are given",
                hint="name a folder of them with --pictures",
            )
        return found
    if which not in SHIPPED:
        return None
    if Path(which).is_dir():
        raise UsageError(
            f"{which} is a domain that ships, and a folder here", hint=f"--pictures ./{which} is the folder"
        )
    return which


def _shipped_pictures(manifest: Manifest, name: str) -> DomainPictures:
    found = _load_shipped(manifest, name)
    parts = spaced(found.train, MOST_PICTURES), spaced(found.held_out, MOST_HELD_OUT)
    return DomainPictures(f"{name}, as it ships", *parts)


def _load_shipped(manifest: Manifest, name: str) -> ShippedPictures:
    if SHIPPED[name].shape != tuple(manifest.sample_shape):
        raise InputError(
            f"pictures of {name} are {SHIPPED[name].shape}, and {manifest.name} takes {tuple(manifest.sample_shape)}",
            hint="name a folder of the model's own pictures with --pictures",
        )
    return load_shipped(name)
