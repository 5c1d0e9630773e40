"""A solver of one step an interval, and one that takes fewer than it is given."""

from __future__ import annotations

from itertools import pairwise


def euler(levels, order):
    return [(1.0, [following.phi - level.phi]) for level, following in pairwise(levels)]


def lazy(levels, order):
    return [(1.0, [levels[-1].phi - levels[0].phi])]
