"""One directed pair of shipped domains: its models, test pictures, translations of them, and figures with intervals.

All tables of calibration use these figures, so that they can be compared with one another. Intervals are over clusters
of overlapping test pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import ddib_fed
from benchmarks import command
from ddib_fed import Model, Request, Translated, datasets, metrics
from ddib_fed.metrics import Interval, Matrix, Pictures, Resamples

ROOT = command.ROOT
DIRECTIONS = (
    ("satellite", "relief"),
    ("relief", "satellite"),
    ("satellite", "etopo"),
    ("etopo", "satellite"),
)
NAMED = {"-".join(pair): pair for pair in DIRECTIONS}
DOMAIN_PICTURES = 500
"""Of the target's training part, for feature distances."""
UNPAIRED_PICTURES = 4_000
"""Of each training part, evenly thinned, for what is fitted without pairs."""
Bytes = NDArray[np.uint8]


def thinned(pictures: NDArray[Any], most: int) -> NDArray[Any]:
    """Return at most so many pictures, evenly spaced."""
    return pictures[:: -(-len(pictures) // most)]


def from_bytes(pictures: Bytes) -> Pictures:
    """Return pictures of bytes in [-1, 1]."""
    return np.asarray(pictures / np.float32(127.5) - np.float32(1.0), np.float32)


def to_files(pictures: Pictures) -> list[Bytes]:
    """Return each picture (C, H, W) in [-1, 1] as the array (H, W, C) of bytes that a user has of it."""
    return [*np.rint((pictures + 1.0) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)]


def save(pictures: Bytes, folder: Path) -> None:
    """Write pictures (N, C, H, W) as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.fromarray(picture.transpose(1, 2, 0).squeeze()).save(folder / f"{number:05}.png")


def from_results(results: Sequence[Translated]) -> Pictures:
    """Return the translations (N, C, H, W) in [-1, 1]."""
    return from_bytes(np.stack([result.array for result in results]).transpose(0, 3, 1, 2))


@dataclass
class Directed:
    """A source domain and a target domain; with a `count` only so many of their test pictures, evenly spaced."""

    source_name: str
    target_name: str
    count: int = 0

    @property
    def name(self) -> str:
        return f"{self.source_name}-{self.target_name}"

    @cached_property
    def models(self) -> tuple[Model, Model]:
        return Model.open(self.source_name, threads=1), Model.open(self.target_name, threads=1)

    @property
    def thresholds(self) -> Any:
        """What marks wrong translations, of the source's model."""
        return self.models[0].manifest.structure

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """Return the test pictures that are used."""
        total = len(datasets.clusters_of(self.source_name))
        return np.linspace(0, total - 1, self.count or total).round().astype(np.int64)

    @cached_property
    def test(self) -> tuple[Pictures, Pictures]:
        """Test pictures of both domains; those of one row show the same."""
        source, target = (from_bytes(pictures[self.rows]) for pictures in self.whole("test"))
        return source, target

    @cached_property
    def train(self) -> tuple[Bytes, Bytes]:
        """Training pictures of both domains, which show different places; with a `count` all test pictures, which are
        cut already.
        """
        return self.whole("test" if self.count else "train")

    def whole(self, part: str) -> tuple[Bytes, Bytes]:
        """Return a part of both domains."""
        names = self.source_name, self.target_name
        source, target = (datasets.shipped_bytes(name, [part])[0] for name in names)
        return source, target

    @cached_property
    def clusters(self) -> NDArray[np.int64]:
        return datasets.clusters_of(self.source_name)[self.rows]

    @cached_property
    def drawn(self) -> Resamples:
        return metrics.resample(len(self.rows), self.clusters)

    @cached_property
    def real(self) -> Matrix:
        """Return features of the target's pictures."""
        return metrics.features(from_bytes(thinned(self.train[1], 2 * self.count or DOMAIN_PICTURES)))

    def write_anchors(self, folder: Path, count: int, seed: int) -> tuple[Path, Path]:
        """Write pictures of the same places in both domains, from the source's training part, as two folders."""
        target = datasets.shipped_domain(self.target_name)
        side, part = datasets.shipped_domain(self.source_name).side, "held_out" if self.count else "train"
        (sources,) = datasets.shipped_bytes(self.source_name, [part])
        partners = datasets.cut_map(target.map, side, part, target.detail)
        rows = np.random.default_rng(seed).choice(len(sources), count, replace=False)
        folders = folder / self.source_name, folder / self.target_name
        for place, pictures in zip(folders, (sources, partners), strict=True):
            save(pictures[rows], place)
        return folders

    def histogram_matched(self) -> Pictures:
        """Return the sources with the target's distribution of each channel, which needs neither a model nor pairs."""
        most = 10 * self.count or UNPAIRED_PICTURES
        domains = (from_bytes(thinned(part, most)) for part in self.train)
        return metrics.histogram_match(self.test[0], *domains)

    def translate(self, request: Request, source: Model | None = None) -> list[Translated]:
        """Translate all test pictures, by the source's shipped model or by another one of its domain."""
        models = source or self.models[0], self.models[1]
        return [*ddib_fed.translate(to_files(self.test[0]), *models, request)]

    def figures(self, translated: Pictures, results: Sequence[Translated] = ()) -> dict[str, Interval]:
        """Return figures of translations of all test pictures, and of their records if there are any."""
        truth, drawn = self.test[1], self.drawn
        same = metrics.compare(translated, truth)
        figures = {
            "psnr": drawn.mean(same.psnr),
            "ssim": drawn.mean(same.ssim),
            "partner": drawn.mean(metrics.hits_by_pixels(translated, truth)),
            "frechet_early": metrics.feature_distance(metrics.features(translated), self.real, drawn),
        }
        returned = [picture.cycle_psnr for result in results if (picture := result.record.picture)]
        if returned and None not in returned:
            figures["cycle_psnr"] = drawn.mean(np.array(returned, np.float64))
        return figures
