"""The samples of a training step on pictures: which picture, how it is changed, its noise and its level.

Sample i of step k is a function of (seed, k, i), whatever process computes it and in whatever company. Pictures come in
epochs: each once, in an order of that epoch's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddib_fed.datasets.synthetic import uniforms
from ddib_fed.errors import ShapeMismatch
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.samples.folders import expand
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.pictures.sources import PictureSource

Floats = NDArray[np.float32]

COLUMNS = 5
FLIP, TOP, LEFT, DROP, LEVEL = range(COLUMNS)
_EPOCH_KEY = 2**63
"""Added to an epoch's number, so that its order and a step's numbers never share a key."""
_HELD_OUT_STEP = 2**62


@dataclass(frozen=True, slots=True)
class Samples:
    """Some samples of a step, clean, with what belongs to each."""

    x0: Tensor
    eps: Tensor
    labels: Tensor | None


class Batches:
    """The samples of a run."""

    def __init__(self, config: TrainConfig, source: PictureSource, normal: Normalisation) -> None:
        self._config, self._source, self._normal = config, source, normal
        self._batch = config.batch
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def levels(self, step: int) -> Tensor:
        u = uniforms(self._config.seed, step, self._batch, COLUMNS)[:, LEVEL]
        return torch.from_numpy((np.arange(self._batch) + u) / self._batch)

    def take(self, step: int, first: int, count: int) -> Samples:
        """Samples `first` to `first + count` of a step."""
        u = uniforms(self._config.seed, step, count, COLUMNS, first=first)
        chosen = self._chosen(step * self._batch + first, count)
        x0, eps = self._noisy(self.changed(chosen, u), self._config.seed, step, first)
        return Samples(x0, eps, self.labels(chosen, u[:, DROP]))

    def held_out(self, most: int) -> Samples:
        """The first `most` held-out pictures, always with the same noise."""
        pixels = self._source.held_out[:most]
        if self._source.size is not None:
            pixels = random_crop(pixels, (self._source.size,) * 2, np.full((len(pixels), 2), 0.5))
        x0, eps = self._noisy(expand(pixels), self._config.seed, _HELD_OUT_STEP, 0)
        labels = self._source.held_out_labels
        given = self._config.classes is not None and labels is not None
        return Samples(x0, eps, torch.from_numpy(labels[:most]) if given and labels is not None else None)

    def changed(self, chosen: NDArray[np.int64], u: NDArray[np.float64]) -> Floats:
        """Training pictures in [-1, 1], flipped and cut as the run has it."""
        pixels = self._source.train[chosen]
        if self._source.size is not None:
            pixels = random_crop(pixels, (self._source.size,) * 2, u[:, [TOP, LEFT]])
        if self._config.flip:
            pixels = random_flip(pixels, u[:, FLIP])
        return expand(pixels)

    def _chosen(self, first: int, count: int) -> NDArray[np.int64]:
        """Indices of the pictures at places `first` to `first + count` of the endless sequence of epochs."""
        places = np.arange(first, first + count)
        total = len(self._source.train)
        found = np.empty(count, np.int64)
        for epoch in np.unique(places // total).tolist():
            if epoch != self._epoch:
                bits = np.random.Philox(key=np.array([self._config.seed, _EPOCH_KEY + epoch], np.uint64))
                self._epoch, self._order = epoch, np.random.Generator(bits).permutation(total)
            here = places // total == epoch
            found[here] = self._order[places[here] % total]
        return found

    def _noisy(self, x: Floats, seed: int, step: int, first: int) -> tuple[Tensor, Tensor]:
        """Normalised pictures, their quantisation steps filled with noise, and the noise of the diffusion."""
        eps = np.empty(x.shape, np.float32)
        filled = np.empty(x.shape, np.float32) if self._config.dequantise else None
        for row in range(len(x)):
            generator = _generator(seed, step, first + row)
            generator.standard_normal(dtype=np.float32, out=eps[row])
            if filled is not None:
                generator.random(dtype=np.float32, out=filled[row])
        if filled is not None:
            x = x + (filled - np.float32(0.5)) * np.float32(self._source.quantum)
        return torch.from_numpy(self._normal.apply(x)), torch.from_numpy(eps)

    def labels(self, chosen: NDArray[np.int64], u: NDArray[np.float64]) -> Tensor | None:
        if self._config.classes is None or self._source.labels is None:
            return None
        withheld = u < self._config.label_dropout
        return torch.from_numpy(np.where(withheld, len(self._source.classes), self._source.labels[chosen]))


def _generator(seed: int, step: int, sample: int) -> np.random.Generator:
    key = np.array([seed, step], np.uint64)
    counter = np.array([0, 0, 0, sample + 1], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def random_flip(pictures: NDArray[Any], uniforms: NDArray[np.floating]) -> NDArray[Any]:
    """Mirrored left to right where the uniform is below a half."""
    _check_uniforms(pictures, uniforms, (len(pictures),))
    mirrored = (uniforms < 0.5)[:, None, None, None]
    return np.where(mirrored, pictures[..., ::-1], pictures)


def random_crop(
    pictures: NDArray[Any], size: tuple[int, int], uniforms: NDArray[np.floating]
) -> NDArray[Any]:
    """A window of each picture, its corner by two uniforms; every place is equally likely."""
    _check_uniforms(pictures, uniforms, (len(pictures), 2))
    free = np.array(pictures.shape[2:]) - np.array(size)
    if (free < 0).any() or min(size) < 1:
        raise ShapeMismatch(f"a window of {size} in pictures of {pictures.shape[2:]}")
    # The minimum is for uniforms that were rounded up to 1 in a narrower type.
    corners = np.minimum(np.floor(uniforms * (free + 1)).astype(np.int64), free)
    rows = corners[:, 0, None] + np.arange(size[0])
    columns = corners[:, 1, None] + np.arange(size[1])
    each = np.arange(len(pictures))[:, None, None]
    cut: NDArray[Any] = pictures.transpose(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]].transpose(
        0, 3, 1, 2
    )
    return cut


def _check_uniforms(pictures: NDArray[Any], uniforms: NDArray[np.floating], shape: tuple[int, ...]) -> None:
    if pictures.ndim != 4 or uniforms.shape != shape:
        raise ShapeMismatch(
            f"uniforms of {uniforms.shape} for pictures of {pictures.shape}: {shape} are needed"
        )
