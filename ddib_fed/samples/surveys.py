"""Describes a scanned folder (sizes, values, oddities) and chooses the range of values for a model.

A range is chosen from the values in the folder, and a warning states its unused share.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import SettingsInvalid
from ddib_fed.samples.images import ImageLimits
from ddib_fed.samples.scans import Check, Entry, Folder
from ddib_fed.samples.units import TYPE_RANGES, check_numbers

SAMPLE_PICTURES = 200
SAMPLE_PIXELS = 20_000
MIN_USED = 0.5
MAX_CLIPPED = 0.05

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_VALUES = re.compile(rf"({_NUMBER}):({_NUMBER})")
_PERCENTILES = re.compile(r"p(\d+(?:\.\d+)?):p(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class Survey:
    """Statistics of a folder."""

    pictures: int
    bad: int
    classes: dict[str, int]
    sizes: dict[tuple[int, int], int]
    channels: dict[int, int]
    dtypes: dict[str, int]
    formats: dict[str, int]
    low: float
    high: float
    percentiles: tuple[float, float, float]
    duplicates: tuple[tuple[Path, ...], ...]
    blank: tuple[Path, ...]

    def lines(self) -> list[str]:
        """The survey as a few lines of text."""
        sizes = [f"{n} of {h} x {w}" for (h, w), n in list(self.sizes.items())[:5]]
        more = f" and {len(self.sizes) - 5} other sizes" if len(self.sizes) > 5 else ""
        modes = {1: "grey", 3: "RGB"}
        one, middle, ninetynine = self.percentiles
        out = [
            f"{self.pictures} pictures, {self.bad} left out",
            f"height x width: {', '.join(sizes)}{more}",
            ", ".join(f"{n} {modes[c]}" for c, n in self.channels.items())
            + "; "
            + ", ".join(f"{n} {d}" for d, n in self.dtypes.items())
            + "; "
            + ", ".join(f"{n} {f}" for f, n in self.formats.items()),
            f"values {self.low:g} to {self.high:g}; percentiles 1, 50, 99: {one:g}, {middle:g}, {ninetynine:g}",
        ]
        if self.classes:
            out.append("classes: " + ", ".join(f"{name} ({n})" for name, n in self.classes.items()))
        if self.duplicates:
            again = sum(len(group) - 1 for group in self.duplicates)
            out.append(f"{again} duplicates, the first of {self.duplicates[0][0]}")
        if self.blank:
            out.append(f"{len(self.blank)} of one value throughout, the first {self.blank[0]}")
        return out


@dataclass(frozen=True, slots=True)
class Range:
    """The raw values that become -1 and 1."""

    low: float
    high: float
    warnings: tuple[str, ...] = ()


def survey(folder: Folder, limits: ImageLimits | None = None) -> Survey:
    """Counts, sizes, types, values and duplicates of a folder; percentiles come from a sample of its pictures."""
    looks = [e.looks for e in folder.entries]
    labels = Counter(e.label for e in folder.entries)
    groups: dict[str, list[Path]] = {}
    for entry in folder.entries:
        groups.setdefault(entry.digest, []).append(entry.path)
    one, middle, ninetynine = (float(v) for v in np.percentile(sample(folder.entries, limits), [1, 50, 99]))
    return Survey(
        pictures=len(folder.entries),
        bad=len(folder.bad),
        classes={name: labels[name] for name in folder.classes},
        sizes=dict(Counter((k.height, k.width) for k in looks).most_common()),
        channels=dict(sorted(Counter(k.channels for k in looks).items())),
        dtypes=dict(Counter(k.dtype for k in looks).most_common()),
        formats=dict(Counter(k.format for k in looks).most_common()),
        low=min(k.low for k in looks),
        high=max(k.high for k in looks),
        percentiles=(one, middle, ninetynine),
        duplicates=tuple(tuple(paths) for paths in groups.values() if len(paths) > 1),
        blank=tuple(e.path for e in folder.entries if e.looks.low == e.looks.high),
    )


def sample(entries: Sequence[Entry], limits: ImageLimits | None = None) -> NDArray[np.float32]:
    """(n,) float32: values of at most 200 pictures at equal steps, at most 20,000 of each; the same each time."""
    chosen = entries[:: -(-len(entries) // SAMPLE_PICTURES)]
    values = []
    for entry in chosen:
        flat = entry.picture(limits).pixels.reshape(-1)
        values.append(flat[:: -(-flat.size // SAMPLE_PIXELS)].astype(np.float32))
    return np.concatenate(values)


def choose_range(folder: Folder, spec: str = "type", limits: ImageLimits | None = None) -> Range:
    """The range of `--range`."""
    values = sample(folder.entries, limits)
    low, high = _limits(folder, spec.strip(), values)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise SettingsInvalid(f"the range {spec} is {low:g} to {high:g}, which is empty")
    return Range(low, high, tuple(_warnings(values, low, high)))


def range_check(spec: str) -> Check | None:
    """A check that refuses pictures outside the units of a range `LOW:HIGH`; None for a range derived from them."""
    found = _VALUES.fullmatch(spec.strip())
    if found is None or not float(found[1]) < float(found[2]):
        return None
    return lambda picture: check_numbers(picture, float(found[1]), float(found[2]), windows=True)


def _limits(folder: Folder, spec: str, values: NDArray[np.float32]) -> tuple[float, float]:
    if spec == "type":
        return _type_range(folder)
    if found := _PERCENTILES.fullmatch(spec):
        shares = [float(p) for p in found.groups()]
        if not 0 <= shares[0] < shares[1] <= 100:
            raise SettingsInvalid(f"the percentiles of {spec} do not rise from 0 to 100")
        low, high = (float(v) for v in np.percentile(values, shares))
        return low, high
    if found := _VALUES.fullmatch(spec):
        return float(found[1]), float(found[2])
    raise SettingsInvalid(f"{spec!r} is no range", hint="--range LOW:HIGH (as -1000:2000), p1:p99, or type")


def _type_range(folder: Folder) -> tuple[float, float]:
    found = sorted({e.looks.dtype for e in folder.entries})
    if len(found) > 1:
        raise SettingsInvalid(
            f"the pictures are of several types ({', '.join(found)}), which have no range in common",
            hint="give --range LOW:HIGH, or convert them to one type",
        )
    if found[0] not in TYPE_RANGES:
        raise SettingsInvalid(
            f"{found[0]} has no range of its own", hint="give --range LOW:HIGH or --range p1:p99"
        )
    return TYPE_RANGES[found[0]]


def _warnings(values: NDArray[np.float32], low: float, high: float) -> list[str]:
    """Unused and clipped shares of a range, from a sample of the values."""
    out = []
    first, last = (float(v) for v in np.percentile(values, [0.1, 99.9]))
    used = max(0.0, min(last, high) - max(first, low)) / (high - low)
    if used < MIN_USED:
        out.append(
            f"{100 * (1 - used):.0f} % of the range {low:g}:{high:g} is empty: 99.8 % of the values lie between "
            f"{first:g} and {last:g}; --range {first:g}:{last:g} or --range p1:p99 would use it"
        )
    outside = float(np.mean((values < low) | (values > high)))
    if outside > MAX_CLIPPED:
        out.append(
            f"{100 * outside:.0f} % of the values lie outside the range {low:g}:{high:g} and will be clipped"
        )
    return out
