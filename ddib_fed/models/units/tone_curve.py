"""A curve of grey that is linear between knots, with jumps, and has an exact inverse because it meets no value twice.

One contrast of a head, say, rises from the background's black and then falls over the tissues. A continuous curve
of that shape meets each value twice and cannot be undone. With a jump between the two branches, and their values
kept apart, it can: background and tissue then never share a value.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ToneCurve:
    """One curve."""

    knots: Floats

    def check(self) -> None:
        """Return if the curve can be undone."""
        if len(self.knots) < 2 or not (np.diff(self.knots[:, 0]) >= 0).all():
            raise ValueError("the knots of a curve are two or more, with u rising")
        ranges = []
        for u, v in self._branches():
            if len(u) < 2 or not ((np.diff(v) > 0).all() or (np.diff(v) < 0).all()):
                raise ValueError("each branch of a curve has two knots or more and rises or falls strictly")
            ranges.append((min(v[0], v[-1]), max(v[0], v[-1])))
        ranges.sort()
        if any(upper >= low for (_, upper), (low, _) in itertools.pairwise(ranges)):
            raise ValueError("two branches of a curve share values, so that it could not be undone")

    def apply(self, u: Floats) -> Floats:
        """V of u, any shape; beyond the outermost knots the curve goes on in a straight line."""
        branches = self._branches()
        found = _line(u, *branches[0], open_ends=(True, len(branches) == 1))
        for place, (us, vs) in enumerate(branches[1:], 2):
            there = u >= us[0]
            found[there] = _line(u[there], us, vs, open_ends=(False, place == len(branches)))
        return found

    def undo(self, v: Floats) -> Floats:
        """U of v, any shape: of a value between the branches' ranges, that of the nearest branch's end."""
        branches = self._branches()
        away = np.stack([np.maximum(min(b[0], b[-1]) - v, v - max(b[0], b[-1])) for _, b in branches])
        nearest = away.clip(0.0).argmin(0)
        found = np.empty_like(v)
        lows = [min(vs[0], vs[-1]) for _, vs in branches]
        for place, (us, vs) in enumerate(branches):
            mine = nearest == place
            rising = slice(None) if vs[-1] > vs[0] else slice(None, None, -1)
            # A branch goes on beyond its range only where no other branch lies, and at an end of the whole curve.
            first, last = place == 0, place == len(branches) - 1
            outer = (first, last) if vs[-1] > vs[0] else (last, first)
            ends = (outer[0] and lows[place] == min(lows), outer[1] and lows[place] == max(lows))
            found[mine] = _line(v[mine], vs[rising], us[rising], open_ends=ends)
        return found

    def _branches(self) -> list[tuple[Floats, Floats]]:
        u, v = self.knots.T
        cuts = np.flatnonzero(np.diff(u) == 0) + 1
        return list(zip(np.split(u, cuts), np.split(v, cuts), strict=True))


def _line(x: Floats, xs: Floats, ys: Floats, *, open_ends: tuple[bool, bool]) -> Floats:
    """Linear between (xs, ys), xs rising; beyond an open end straight on, beyond another constant."""
    found = np.interp(x, xs, ys)
    if open_ends[0]:
        found += np.minimum(x - xs[0], 0.0) * (ys[1] - ys[0]) / (xs[1] - xs[0])
    if open_ends[1]:
        found += np.maximum(x - xs[-1], 0.0) * (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
    return found
