"""Where training points come from: a synthetic domain without end, or a file of points of one's own.

The rule: the points of a step are a function of (seed, step, sample); points of one's own are normalised by one
scalar mean and one scalar standard deviation, and a tenth of them is never trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddib_fed.datasets import synthetic
from ddib_fed.errors import FileMissing, InputError
from ddib_fed.samples.kinds import name_file, refuse_picture
from ddib_fed.samples.points import parse_npy
from ddib_fed.training.config import PointTrainConfig

Floats = NDArray[np.float32]

MIN_POINTS = 100
HELD_OUT_SHARE = 0.1
MAX_BYTES = 4 << 30
MAX_POINTS = 100_000_000
DATA_COLUMNS = synthetic.UNIFORMS_PER_POINT
_HELD_OUT_SEED = 2**63
_SPLIT_SEED = 7_130_211


@dataclass(frozen=True, slots=True)
class Source:
    """Normalised points to train on.

    Attributes:
        dim: D.
        mean: What was subtracted from raw points; 0 for synthetic domains, whose points are normalised already.
        std: What raw points were divided by; 1 for synthetic domains.
        digest: Names the points: the domain, or the file's SHA-256.
        take: Turns uniforms (N, 4) into N training points (N, D).
        held_out: Points (N, D) that `take` never gives.
    """

    dim: int
    mean: float
    std: float
    digest: str
    take: Callable[[NDArray[np.float64]], Floats]
    held_out: Floats


def open_source(config: PointTrainConfig) -> Source:
    """The points that `config` names.

    Raises:
        DomainNotFound: There is no such domain.
        FileMissing: There is no such file.
        KindMismatch: The file holds a picture.
        PointsUnreadable: The file is no array of numbers.
        ShapeMismatch: The array is not (N, D).
        NotFinite: There is a NaN or an infinity.
        InputError: There are too few points, or a column is constant.
    """
    if config.domain is not None:
        return _domain(synthetic.domain_name(config.domain), config)
    return points_source(Path(str(config.data)), config.batch)


def _domain(name: str, config: PointTrainConfig) -> Source:
    held_out = synthetic.draw(name, config.batch, _HELD_OUT_SEED, step=config.seed)
    return Source(2, 0.0, 1.0, f"domain:{name}", lambda u: synthetic.from_uniforms(name, u), held_out)


def points_source(path: Path, held_out_points: int) -> Source:
    """Points of one's own.

    Args:
        path: A .npy file of an array (N, D).
        held_out_points: At most so many of the held-out tenth are used.

    Raises:
        FileMissing: There is no such file.
        PointsUnreadable: The file is no array of numbers.
        ShapeMismatch: The array is not (N, D).
        NotFinite: There is a NaN or an infinity.
        InputError: There are too few points, or a column is constant.
    """
    raw = read_points(path)
    _check(raw, path)
    wide = raw.astype(np.float64)
    mean, std = float(wide.mean()), float(wide.std())
    points = ((wide - mean) / std).astype(np.float32)
    points = points[np.random.default_rng(_SPLIT_SEED).permutation(len(points))]
    cut = int(len(points) * HELD_OUT_SHARE)
    kept, held_out = points[cut:], points[:cut]
    digest = hashlib.sha256(np.ascontiguousarray(raw).tobytes()).hexdigest()

    def take(u: NDArray[np.float64]) -> Floats:
        return kept[(u[:, 0] * len(kept)).astype(np.int64)]

    return Source(points.shape[1], mean, std, f"points:{digest}", take, held_out[:held_out_points])


def read_points(path: Path) -> Floats:
    """The array (N, D) of a .npy file.

    Raises:
        FileMissing: There is no such file.
        PointsUnreadable: The file is no array of numbers.
        ShapeMismatch: The array is not (N, D).
        NotFinite: There is a NaN or an infinity.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise FileMissing(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    try:
        refuse_picture(content)
        return parse_npy(content, max_bytes=MAX_BYTES, max_points=MAX_POINTS)
    except InputError as error:
        raise name_file(error, str(path)) from error


def _check(raw: NDArray[np.floating], path: Path) -> None:
    """Refuse what cannot be learned: too few points, or a column in which nothing varies."""
    if len(raw) < MIN_POINTS:
        raise InputError(
            f"{path} holds {len(raw)} points; training needs at least {MIN_POINTS}", hint="add points"
        )
    spread = raw.astype(np.float64).std(axis=0)
    constant = np.flatnonzero(spread <= 1e-6 * max(float(spread.max()), float(np.abs(raw).max()) * 1e-6))
    if len(constant):
        columns = ", ".join(map(str, constant[:10].tolist()))
        raise InputError(
            f"column {columns} of {path} is constant (counting from 0)",
            hint="leave constant columns out: there is nothing in them to translate",
        )
