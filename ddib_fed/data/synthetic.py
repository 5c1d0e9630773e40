"""The six 2-D point sets of the DDIB paper (arXiv 2203.08382, section 4.1).

A domain is one fixed distribution. Its normalisation (one scalar mean and one scalar standard deviation
over all coordinates) is that of the population, in closed form, so it does not depend on the number of points.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import DomainNotFound

Array = NDArray[np.float64]

MOONS_NOISE = 0.05
WIDTH = 0.5
UNIFORMS_PER_POINT = 4  # of `from_uniforms`


@dataclass(frozen=True, slots=True)
class PointDomain:
    """One distribution in the plane. `transform` makes points of uniforms (N, 4): the first chooses one of `parts`, or
    runs across the only one; the second runs along a part.
    """

    name: str
    mean: float
    std: float
    parts: int
    transform: Callable[[Array], Array]

    def normalise(self, raw: Array) -> NDArray[np.float32]:
        return ((raw - self.mean) / self.std).astype(np.float32)


def _moons(u: Array) -> Array:
    inner, t = u[:, 0] < 0.5, math.pi * u[:, 1]
    x = np.where(inner, 1 - np.cos(t), np.cos(t))
    y = np.where(inner, 0.5 - np.sin(t), np.sin(t))
    return np.stack([x, y], axis=1) + MOONS_NOISE * normals(u[:, 2:4])


def _checkerboards(u: Array) -> Array:
    x, lower = 4 * u[:, 0] - 2, np.floor(2 * u[:, 1])
    return np.stack([x, u[:, 2] - 2 * lower + np.floor(x) % 2], axis=1)


def _shapes(
    name: str,
    radii: Sequence[float],
    centres: Sequence[float],
    outline: Callable[[Array], Array],
    moment: float,
) -> PointDomain:
    """Return bands of a width around outlines of these radii and centres.

    `outline` turns a place in [0, 1) into a point at radius 1, and has this second moment.
    """
    sizes, places = np.array(radii), np.array(centres)

    def transform(u: Array) -> Array:
        which = (u[:, 0] * len(sizes)).astype(np.int64)
        points = outline(u[:, 1]) * (sizes[which] + (u[:, 2] - 0.5) * WIDTH)[:, None]
        points[:, 0] += places[which]
        return points

    radial = float(np.mean(np.square(sizes))) + WIDTH**2 / 12
    variance = moment * radial + float(np.mean(np.square(places))) / 2
    return PointDomain(name, 0.0, math.sqrt(variance), len(sizes), transform)


def _circle(along: Array) -> Array:
    theta = 2 * math.pi * (1 - along)
    return np.stack([np.cos(theta), np.sin(theta)], axis=1)


def _square(along: Array) -> Array:
    """Go clockwise from the upper left corner: upper edge, right, lower, left."""
    edge = np.minimum((4 * along).astype(np.int64), 3)
    forth = 2 * (4 * along - edge) - 1
    one = np.ones_like(along)
    x = np.choose(edge, [forth, one, -forth, -one])
    y = np.choose(edge, [one, -forth, -one, forth])
    return np.stack([x, y], axis=1)


def normals(u: Array) -> Array:
    """Make standard normal pairs (N, 2) from uniform pairs (N, 2) in [0, 1), by Box and Muller."""
    radius = np.sqrt(-2 * np.log1p(-u[:, 0]))
    angle = 2 * math.pi * u[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


_MOONS_MEAN = 0.375  # of cos t, sin t, 1 - cos t, 0.5 - sin t over t in [0, pi]
_MOONS_SECOND = (0.5 + 0.5 + 1.5 + 0.75 - 2 / math.pi) / 4
_MOONS_STD = math.sqrt(_MOONS_SECOND - _MOONS_MEAN**2 + MOONS_NOISE**2)
_GROWING, _EQUAL, _CENTRED = (1.0, 2.0, 3.0), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0)
_BY_NAME = {
    domain.name: domain
    for domain in (
        PointDomain("moons", _MOONS_MEAN, _MOONS_STD, 2, _moons),
        PointDomain("checkerboards", 0.0, math.sqrt(4 / 3), 1, _checkerboards),
        _shapes("concentric-rings", _GROWING, _CENTRED, _circle, 1 / 2),
        _shapes("concentric-squares", _GROWING, _CENTRED, _square, 2 / 3),
        _shapes("parallel-rings", _EQUAL, (-2.8, 0.0, 2.8), _circle, 1 / 2),
        _shapes("parallel-squares", _EQUAL, (-3.0, 0.0, 3.0), _square, 2 / 3),
    )
}
DOMAINS: tuple[str, ...] = tuple(_BY_NAME)  # by the paper's index


def domain_name(name_or_index: str | int) -> str:
    """Return the name of a domain given by name or by the paper's index (0 to 5, as a number or as text)."""
    text = str(name_or_index).strip()
    if text in _BY_NAME:
        return text
    if text.isascii() and text.isdigit() and int(text) < len(DOMAINS):
        return DOMAINS[int(text)]
    listed = ", ".join(f"{i} {name}" for i, name in enumerate(DOMAINS))
    raise DomainNotFound(f"there is no 2-D domain {text!r}", hint=f"the domains are: {listed}")


def domain(name_or_index: str | int) -> PointDomain:
    return _BY_NAME[domain_name(name_or_index)]


def sample(name_or_index: str | int, n: int, seed: int) -> NDArray[np.float32]:
    """Return points (n, 2), float32, along the shape; of zero mean and unit deviation as a population."""
    chosen, u = domain(name_or_index), np.random.default_rng(seed).random((n, UNIFORMS_PER_POINT))
    u[:, 0] = (np.arange(n) + 0.5) / n
    if chosen.parts > 1:
        part = np.floor(u[:, 0] * chosen.parts)
        u[:, 1] = u[np.lexsort((u[:, 1], part)), 1]
    return chosen.normalise(chosen.transform(u))


def uniforms(seed: int, step: int, n: int, columns: int, *, first: int = 0) -> Array:
    """Draw uniform numbers (n, columns) in [0, 1); row i is a function of (seed, step, first + i, columns)."""
    bits = np.random.Philox(key=np.array([seed, step], np.uint64))
    bits.advance(first * columns // 4)
    if left := first * columns % 4:
        bits.random_raw(left)
    return np.random.Generator(bits).random((n, columns))


def generator_of(seed: int, step: int, row: int, *, stream: int = 0) -> np.random.Generator:
    """Make a generator that is a function of the arguments alone: stream 0 is a sample's noise, 1 its augmentation."""
    key, counter = np.array([seed, step], np.uint64), np.array([0, 0, stream, row + 1], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def from_uniforms(name_or_index: str | int, u: Array) -> NDArray[np.float32]:
    chosen = domain(name_or_index)
    return chosen.normalise(chosen.transform(u))


def draw(name_or_index: str | int, n: int, seed: int, *, step: int = 0) -> NDArray[np.float32]:
    """Draw independent points (n, 2), float32; a function of domain, seed and step."""
    return from_uniforms(name_or_index, uniforms(seed, step, n, UNIFORMS_PER_POINT))
