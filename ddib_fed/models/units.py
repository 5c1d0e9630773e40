"""Maps of a picture's channels from the units of one model to those of another, pixel by pixel, and their inverses.

rotation    v = R u, R orthogonal: the ODE commutes with it, so a model needs no training to work in the new basis
quadratic   v = W phi(u), phi(u) = (1, u_i, u_i u_j for i <= j): 3 numbers for grey, 30 for colour
curve       grey: v is linear in u between knots; two knots at one u are a jump. No value v is met twice
"""

import itertools
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field, FiniteFloat, model_validator

from ddib_fed.record import Frozen

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]
FARTHEST = 12.0  # no channel of a solution is farther from zero, in deviations
STEPS = 24
CLOSE = 1e-10  # a squared residual at which a solution is left alone
MOST_DAMPING = 1e4
RIDGE = 1e-2  # of the regression's inverse: directions that the regression flattens start at the mean


def solve_quadratic(weights: Doubles, v: Doubles) -> Doubles:
    """U (C, N) with W phi(u) nearest to v (C, N), by descent."""
    parts = constant, linear, square = _split(weights)
    u = _start(constant, linear, square, v)
    residual = _value(*parts, u) - v
    damping = np.full(v.shape[1], 1e-3)
    active = np.arange(v.shape[1])
    for _ in range(STEPS):
        active = active[((residual[:, active] ** 2).sum(0) > CLOSE) & (damping[active] < MOST_DAMPING)]
        if not len(active):
            break
        here, left = u[:, active], residual[:, active]
        there = np.clip(here - _step(linear, square, here, left, damping[active]), -FARTHEST, FARTHEST)
        gap = _value(*parts, there) - v[:, active]
        better = (gap**2).sum(0) < (left**2).sum(0)
        u[:, active[better]], residual[:, active[better]] = there[:, better], gap[:, better]
        damping[active] *= np.where(better, 0.2, 8.0)
    return u


def _step(linear: Doubles, square: Doubles, u: Doubles, left: Doubles, damping: Doubles) -> Doubles:
    """(J^T J + l I)^-1 J^T r of u and r (C, N) and l (N,), J the slopes at u: (C, N)."""
    slopes = linear[:, :, None] + 2 * np.tensordot(square, u, 1)
    gradient = (slopes * left[:, None]).sum(0)
    least = np.maximum(damping, 1e-12)  # no normal matrix is singular
    normal = np.einsum("ijn,ikn->njk", slopes, slopes) + least[:, None, None] * np.eye(len(u))
    solved: Doubles = np.linalg.solve(normal, gradient.T[..., None])[..., 0].T
    return solved


def _split(weights: Doubles) -> tuple[Doubles, Doubles, Doubles]:
    channels = len(weights)
    square = np.zeros((channels, channels, channels))
    rows, columns = np.triu_indices(channels)
    square[:, rows, columns] = weights[:, 1 + channels :]
    return weights[:, 0], weights[:, 1 : 1 + channels], (square + square.swapaxes(1, 2)) / 2


def _start(constant: Doubles, linear: Doubles, square: Doubles, v: Doubles) -> Doubles:
    """B^T (B B^T + ridge)^-1 (v - E[W phi]) for u ~ N(0, I), whose regression of v on u has the slopes B."""
    centred = v - (constant + np.trace(square, axis1=1, axis2=2))[:, None]
    products = linear @ linear.T
    ridge = RIDGE * np.trace(products) / len(linear) + 1e-12
    inverse = linear.T @ np.linalg.inv(products + ridge * np.eye(len(linear)))
    start: Doubles = np.clip(inverse @ centred, -FARTHEST, FARTHEST)
    return start


def _value(constant: Doubles, linear: Doubles, square: Doubles, u: Doubles) -> Doubles:
    values: Doubles = constant[:, None] + linear @ u + (np.tensordot(square, u, 1) * u).sum(1)
    return values


@dataclass(frozen=True, slots=True)
class ToneCurve:
    knots: Doubles

    def check(self) -> None:
        """Raise unless the curve can be undone."""
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

    def apply(self, u: Doubles) -> Doubles:
        """V of u, any shape; beyond the outermost knots the curve goes on in a straight line."""
        branches = self._branches()
        values = _line(u, *branches[0], open_ends=(True, len(branches) == 1))
        for place, (us, vs) in enumerate(branches[1:], 2):
            there = u >= us[0]
            values[there] = _line(u[there], us, vs, open_ends=(False, place == len(branches)))
        return values

    def undo(self, v: Doubles) -> Doubles:
        """U of v, any shape: of a value between the branches' ranges, that of the nearest branch's end."""
        branches = self._branches()
        away = np.stack([np.maximum(min(b[0], b[-1]) - v, v - max(b[0], b[-1])) for _, b in branches])
        nearest = away.clip(0.0).argmin(0)
        values = np.empty_like(v)
        lows = [min(vs[0], vs[-1]) for _, vs in branches]
        for place, (us, vs) in enumerate(branches):
            mine = nearest == place
            rising = slice(None) if vs[-1] > vs[0] else slice(None, None, -1)
            # A branch goes on beyond its range only where no other branch lies, and at an end of the whole curve.
            first, last = place == 0, place == len(branches) - 1
            outer = (first, last) if vs[-1] > vs[0] else (last, first)
            ends = (outer[0] and lows[place] == min(lows), outer[1] and lows[place] == max(lows))
            values[mine] = _line(v[mine], vs[rising], us[rising], open_ends=ends)
        return values

    def _branches(self) -> list[tuple[Doubles, Doubles]]:
        u, v = self.knots.T
        cuts = np.flatnonzero(np.diff(u) == 0) + 1
        return list(zip(np.split(u, cuts), np.split(v, cuts), strict=True))


def _line(x: Doubles, xs: Doubles, ys: Doubles, *, open_ends: tuple[bool, bool]) -> Doubles:
    """Linear between (xs, ys), xs rising; beyond an open end straight on, beyond another constant."""
    values = np.interp(x, xs, ys)
    if open_ends[0]:
        values += np.minimum(x - xs[0], 0.0) * (ys[1] - ys[0]) / (xs[1] - xs[0])
    if open_ends[1]:
        values += np.maximum(x - xs[-1], 0.0) * (ys[-1] - ys[-2]) / (xs[-1] - xs[-2])
    return values


Row = tuple[FiniteFloat, ...]
ORTHOGONAL_WITHIN = 1e-5  # largest deviation of R R^T from the identity
LARGEST_COEFFICIENT = 100.0
MOST_KNOTS = 32
MOST_CHANNELS = 16  # of a rotation, which latents have too; other maps are of pictures


class ChannelMap(Frozen):
    rotation: tuple[Row, ...] | None = Field(default=None, max_length=MOST_CHANNELS)
    quadratic: tuple[Row, ...] | None = Field(default=None, max_length=3)
    curve: tuple[Row, ...] | None = Field(default=None, max_length=MOST_KNOTS)

    @property
    def channels(self) -> int:
        return 1 if self.curve is not None else len(self.rotation or self.quadratic or ())

    @property
    def numbers(self) -> int:
        return int(self.matrix.size)

    @property
    def matrix(self) -> npt.NDArray[np.float64]:
        return np.array(self.rotation or self.quadratic or self.curve, dtype=np.float64)

    def apply(self, u: Floats) -> Floats:
        """V (N, C, ...) of u (N, C, ...), float64."""
        values = u.astype(np.float64)
        if self.curve is not None:
            return ToneCurve(self.matrix).apply(values)
        mapped: Floats = np.einsum(
            "ij,nj...->ni...", self.matrix, values if self.rotation else monomials(values)
        )
        return mapped

    def undo(self, v: Floats) -> Floats:
        """U (N, C, ...) of v (N, C, ...), float64: where the map has no such value, the u whose value is nearest."""
        values = v.astype(np.float64)
        if self.curve is not None:
            return ToneCurve(self.matrix).undo(values)
        if self.rotation is not None:
            mapped: Floats = np.einsum("ji,nj...->ni...", self.matrix, values)
            return mapped
        first = np.moveaxis(values, 1, 0)
        solved = solve_quadratic(self.matrix, first.reshape(self.channels, -1))
        return np.moveaxis(solved.reshape(first.shape), 0, 1)

    @model_validator(mode="after")
    def _one_kind(self) -> "ChannelMap":
        kinds = (self.rotation, self.quadratic, self.curve)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("a channel map is exactly one of a rotation, quadratic coefficients and a curve")
        if self.curve is not None:
            if any(len(knot) != 2 for knot in self.curve):
                raise ValueError("each knot of a curve has 2 numbers")
            ToneCurve(self.matrix).check()
        else:
            self._check_matrix()
        if np.abs(self.matrix).max() > LARGEST_COEFFICIENT:
            raise ValueError(f"a coefficient is above {LARGEST_COEFFICIENT:g}")
        return self

    def _check_matrix(self) -> None:
        channels = self.channels
        if channels not in {1, 3} and not self.rotation:
            raise ValueError(f"a channel map is for 1 or 3 channels, not {channels}")
        width = channels if self.rotation else 1 + channels + channels * (channels + 1) // 2
        if any(len(row) != width for row in self.rotation or self.quadratic or ()):
            raise ValueError(f"each row of a map of {channels} channels has {width} numbers")
        matrix = self.matrix
        if self.rotation and np.abs(matrix @ matrix.T - np.eye(channels)).max() > ORTHOGONAL_WITHIN:
            raise ValueError("the rotation is not orthogonal")


def monomials(u: Floats) -> Floats:
    upper = [u[:, i] * u[:, j] for i in range(u.shape[1]) for j in range(i, u.shape[1])]
    return np.stack([np.ones_like(u[:, 0]), *np.moveaxis(u, 1, 0), *upper], axis=1)


Positive = Annotated[FiniteFloat, Field(gt=0.0)]
Colours = Literal["rgb", "opponent"]
BLACK = 0.02  # added to red, green and blue in [0, 1], so that black has a hue, which is grey


class Normalisation(Frozen):
    """Data are (raw - mean) / std of pictures in [-1, 1] and `colours`; with `autoencoder` of its latents."""

    mean: FiniteFloat | tuple[FiniteFloat, ...] = 0.0
    std: Positive | tuple[Positive, ...] = 1.0
    colours: Colours = "rgb"
    calibrated: ChannelMap | None = None
    autoencoder: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @property
    def plain(self) -> "Normalisation":
        return self.model_copy(update={"calibrated": None})

    @property
    def channels(self) -> set[int]:
        """The numbers of channels that it supports; empty if one number serves all."""
        counts = {len(part) for part in (self.mean, self.std) if isinstance(part, tuple)}
        counts |= {3} if self.colours != "rgb" else set()
        return counts | (set() if self.calibrated is None else {self.calibrated.channels})

    def apply(self, raw: Floats) -> Floats:
        """From raw data (N, D) or (N, C, H, W), any float dtype, to the network's units: float32."""
        mean, std = self._numbers(raw.ndim)
        data = (self.recoloured(raw) - mean) / std
        return (data if self.calibrated is None else self.calibrated.apply(data)).astype(np.float32)

    def undo(self, data: Floats) -> Floats:
        """The inverse of `apply`, float32."""
        mean, std = self._numbers(data.ndim)
        raw = (data if self.calibrated is None else self.calibrated.undo(data)) * std + mean
        raw = raw if self.colours == "rgb" else np.stack(opponent_to_rgb(*np.moveaxis(raw, 1, 0)), axis=1)
        return raw.astype(np.float32)

    def mapped(self, raw: Floats) -> Floats:
        return raw.astype(np.float32) if self.calibrated is None else self.plain.undo(self.apply(raw))

    def recoloured(self, raw: Floats) -> Floats:
        return raw if self.colours == "rgb" else opponent(raw)

    def _numbers(self, ndim: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        parts = (np.asarray(part, dtype=np.float64) for part in (self.mean, self.std))
        mean, std = (part.reshape(-1, *(1,) * (ndim - 2)) if part.ndim else part for part in parts)
        return mean, std

    @model_validator(mode="after")
    def _agrees(self) -> "Normalisation":
        if 0 in self.channels or len(self.channels) > 1:
            raise ValueError("mean, std, colours and calibrated are for different numbers of channels")
        return self


@dataclass(frozen=True, slots=True)
class PictureMap:
    """From pictures (N, C, H, W) of one model's domain in [-1, 1] to those of another's, by a map alone."""

    source: Normalisation
    map: ChannelMap
    target: Normalisation
    sha256: str = ""
    forced: bool = False

    def __call__(self, pictures: Floats) -> npt.NDArray[np.float32]:
        return (
            self.target.undo(self.map.apply(self.source.apply(pictures))).clip(-1.0, 1.0).astype(np.float32)
        )


def opponent(rgb: Floats) -> Floats:
    """Lightness and two opponent chromaticities of pictures (N, 3, ...) in [-1, 1]."""
    red, green, blue = (np.maximum(rgb[:, i], -1.0) / 2 + (0.5 + BLACK) for i in range(3))
    total = red + green + blue
    return np.stack(
        [np.sqrt(total / 3), (blue - red) / total, (2 * green - red - blue) / (2 * total)], axis=1
    )


def opponent_to_rgb(lightness: Any, blue_red: Any, green: Any) -> tuple[Any, Any, Any]:
    """Invert `opponent`, for arrays or tensors of one shape; lightness below 0 counts as 0."""
    total = 3 * ((lightness + abs(lightness)) / 2) ** 2
    green = total * (1 + 2 * green) / 3
    both, difference = total - green, total * blue_red
    offset = 1 + 2 * BLACK
    return both - difference - offset, 2 * green - offset, both + difference - offset
