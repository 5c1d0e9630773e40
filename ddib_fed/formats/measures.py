"""Measures what shows that planes were translated one by one: flicker between slices, and energy along seams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Flicker:
    """How much neighbouring slices differ beyond a steady change."""

    source: float
    translation: float
    brightness_source: float
    brightness_translation: float

    @property
    def ratio(self) -> float | None:
        return self.translation / self.source if self.source > 0 else None

    def record(self) -> dict[str, Any]:
        """For the provenance."""
        ratio = self.ratio
        return {
            **{name: round(value, 6) for name, value in asdict(self).items()},
            "ratio": None if ratio is None else round(ratio, 4),
        }

    def say(self) -> str:
        """One line."""
        ratio = "" if self.ratio is None else f" ({self.ratio:.2f} times)"
        here, there = 100 * self.translation, 100 * self.source
        return f"slice flicker {here:.2f} % of the range, {there:.2f} % in the source{ratio}"


@dataclass(frozen=True, slots=True)
class Seams:
    """How much steeper a picture is where tiles begin and end."""

    source: float
    translation: float
    edges: int

    def record(self) -> dict[str, Any]:
        return {name: round(value, 4) for name, value in asdict(self).items()}

    def say(self) -> str:
        """One line."""
        return (
            f"seam energy {self.translation:.3f} at {self.edges} edges of tiles, {self.source:.3f} in the source "
            "(1: no steeper than elsewhere)"
        )


def measure_flicker(source: NDArray[Any], translation: NDArray[Any]) -> Flicker | None:
    """Flicker of both volumes; None for fewer than three slices."""
    if len(source) < 3:
        return None
    (first, first_mean), (second, second_mean) = (_flicker(each) for each in (source, translation))
    return Flicker(first, second, first_mean, second_mean)


def _flicker(volume: NDArray[Any]) -> tuple[float, float]:
    """Flicker of a volume (N, ...) and of its slices' means, as shares of its range."""
    width = float(volume.max()) - float(volume.min())
    if width <= 0:
        return 0.0, 0.0
    total, means = 0.0, []
    for before, here, after in zip(volume[:-2], volume[1:-1], volume[2:], strict=True):
        bend = here.astype(np.float32) - (before.astype(np.float32) + after.astype(np.float32)) / 2
        total += float(np.abs(bend).mean())
        means.append(abs(float(bend.mean())))
    return total / (len(volume) - 2) / width, float(np.mean(means)) / width


def measure_seams(
    source: NDArray[Any], translation: NDArray[Any], rows: Sequence[int], columns: Sequence[int]
) -> Seams | None:
    """Energy along the edges of tiles; None where there is but one tile."""
    if not rows and not columns:
        return None
    return Seams(
        _steepness(source, rows, columns), _steepness(translation, rows, columns), len(rows) + len(columns)
    )


def _steepness(picture: NDArray[Any], rows: Sequence[int], columns: Sequence[int]) -> float:
    """Mean difference across the given lines over that across all others."""
    wide = picture.astype(np.float32)
    at = elsewhere = 0.0
    count = other = 0
    for axis, lines in ((0, rows), (1, columns)):
        steps = np.abs(np.diff(wide, axis=axis)).mean(axis=(1 - axis, 2))
        chosen = np.zeros(len(steps), dtype=bool)
        chosen[[line - 1 for line in lines]] = True
        at, count = at + float(steps[chosen].sum()), count + int(chosen.sum())
        elsewhere, other = elsewhere + float(steps[~chosen].sum()), other + int((~chosen).sum())
    if not count or not other or elsewhere == 0:
        return 1.0
    return (at / count) / (elsewhere / other)
