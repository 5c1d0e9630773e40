"""Splits a scanned folder into a training part and a held-out part, as arrays for a model.

A picture's part depends on its pixels alone. Scanning is in `scans`, figures and ranges in
`surveys`; both are offered here too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import SettingsInvalid
from ddib_fed.samples.images import ImageLimits, PictureRule, fit_picture, read_fitted
from ddib_fed.samples.scans import Classes, Entry, Folder, Looks, Progress, Sides, describe, scan, two_sides
from ddib_fed.samples.surveys import Range, Survey, choose_range, range_check, survey

__all__ = [
    "Classes",
    "Entry",
    "Folder",
    "Looks",
    "Range",
    "Sides",
    "Survey",
    "choose_range",
    "class_numbers",
    "describe",
    "expand",
    "folder_digest",
    "load",
    "range_check",
    "scan",
    "shared",
    "split",
    "survey",
    "two_sides",
]


def split(entries: Sequence[Entry], share: float = 0.1) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """(training part, held-out part), by the pixels' digests."""
    if not 0 <= share < 1:
        raise SettingsInvalid(f"a held-out share of {share} is not from 0 to below 1")
    ranks = {
        e.digest: int(hashlib.sha256(b"held-out" + e.digest.encode()).hexdigest()[:16], 16) for e in entries
    }
    held = {digest for digest, rank in ranks.items() if rank < share * 2**64}
    if share > 0 and len(ranks) > 1:
        by_rank = sorted(ranks, key=ranks.__getitem__)
        held = (held | {by_rank[0]}) - {by_rank[-1]}
    training = tuple(e for e in entries if e.digest not in held)
    return training, tuple(e for e in entries if e.digest in held)


def shared(a: Sequence[Entry], b: Sequence[Entry]) -> list[tuple[Path, Path]]:
    there = {e.digest: e.path for e in reversed(b)}
    return [(e.path, there[e.digest]) for e in a if e.digest in there]


def folder_digest(entries: Sequence[Entry]) -> str:
    lines = sorted(f"{e.digest} {e.label or ''}" for e in entries)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def class_numbers(entries: Sequence[Entry], classes: Sequence[str]) -> NDArray[np.int64]:
    """(N,) int64: the number of each entry's class in `classes`."""
    number = {name: i for i, name in enumerate(classes)}
    for entry in entries:
        if entry.label not in number:
            raise SettingsInvalid(
                f"{entry.path} has the class {entry.label!r}, which is not one of {len(number)}"
            )
    return np.array([number[str(e.label)] for e in entries], dtype=np.int64)


def load(
    entries: Sequence[Entry],
    rule: PictureRule,
    *,
    limits: ImageLimits | None = None,
    compact: bool = False,
    progress: Progress | None = None,
) -> NDArray[Any]:
    """The arrays of all entries for a model whose range and channels were chosen for this folder."""
    kind = np.dtype(np.float32) if not compact else np.dtype(np.uint8 if rule.bits == 8 else np.uint16)
    out = np.empty((len(entries), rule.channels, rule.height, rule.width), dtype=kind)
    for i, entry in enumerate(entries):
        fitted = (
            read_fitted(entry.path, rule, limits, windows=True, grey=True)
            if entry.read is None
            else fit_picture(entry.read(), rule, windows=True, grey=True)
        )
        x = fitted.samples
        out[i] = np.rint((x + 1) * np.float32(rule.top / 2)) if compact else x
        if progress:
            progress(i + 1, len(entries))
    return out


def expand(numbers: NDArray[Any]) -> NDArray[np.float32]:
    """Float32 in [-1, 1] from the uint8 or uint16 of `load`; float32 is returned as it is."""
    if numbers.dtype.kind == "f":
        return numbers.astype(np.float32, copy=False)
    half = np.float32(np.iinfo(numbers.dtype).max / 2)
    scaled: NDArray[np.float32] = numbers.astype(np.float32) / half - np.float32(1)
    return scaled
