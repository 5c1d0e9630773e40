"""One directed pair of shipped domains: models, test pictures, and the figures of translations with their intervals.

All tables of calibration use these figures, so that they can be compared with one another.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddib_fed import datasets, metrics
from ddib_fed.datasets import ShippedPictures, cut_head, cut_map, load_shipped
from ddib_fed.engine.local_party import LocalParty, open_party
from ddib_fed.metrics import Matrix, Pictures, compare, psnr, structure, whiteness
from ddib_fed.models.bundle import Bundle, load_bundle, pretrained
from ddib_fed.models.manifest import StructureThresholds

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "benchmarks" / "calibration"
BUILD = ROOT / "build" / "calibration"
CALIBRATED = ROOT / "build" / "calibrated"
"""Source models that were trained with a calibration, SOURCE-TARGET-SEED."""
DIRECTIONS = (
    ("satellite", "relief"),
    ("relief", "satellite"),
    ("satellite", "etopo"),
    ("etopo", "satellite"),
    ("brain-t1", "brain-t2"),
    ("brain-t2", "brain-t1"),
)
NAMED = {"-".join(pair): pair for pair in DIRECTIONS}
COLOURS = [name for name in NAMED if not name.startswith("brain")]
DOMAIN_PICTURES = 500
"""Of the target's training part, for feature distances."""
UNPAIRED_PICTURES = 4_000
"""Of each training part, evenly thinned, for what is fitted without pairs."""


def thinned(pictures: Pictures, most: int) -> Pictures:
    return pictures[:: -(-len(pictures) // most)]


NEIGHBOURS = 4
"""Adjacent test slices of the head, of 1 mm, that count as one in intervals."""


def shipped_clusters(name: str) -> np.ndarray:
    """A number for each test picture, (N,), the same for neighbours.

    Of a map for crops that overlap, also through others; of the head for `NEIGHBOURS` adjacent slices of a slab.
    """
    if datasets.shipped_domain(name).map:
        from scipy.sparse import csgraph

        places = np.array(
            [
                p
                for stripe in datasets.stripes_of("source", "test")
                for p in datasets.coasts_in(stripe, datasets.TEST_STEP)
            ]
        )
        overlapping = (np.abs(places[:, None] - places[None]) < datasets.CROP).all(axis=2)
        return np.asarray(csgraph.connected_components(overlapping)[1], np.int64)
    blocks = [
        (at, n // NEIGHBOURS)
        for at, slab in enumerate(datasets.slabs_of("source", "test"))
        for n in range(len(slab))
    ]
    return np.unique(blocks, axis=0, return_inverse=True)[1].reshape(-1)


@dataclass
class Directed:
    """A source domain and a target domain."""

    source_name: str
    target_name: str
    models: Path | None = None

    @property
    def name(self) -> str:
        return f"{self.source_name}-{self.target_name}"

    @cached_property
    def pictures(self) -> tuple[ShippedPictures, ShippedPictures]:
        return load_shipped(self.source_name), load_shipped(self.target_name)

    @cached_property
    def bundles(self) -> tuple[Bundle, Bundle]:
        """Of both domains."""
        return tuple(  # type: ignore[return-value]
            pretrained(name) if self.models is None else load_bundle(self.models / name)
            for name in (self.source_name, self.target_name)
        )

    @cached_property
    def parties(self) -> tuple[LocalParty, LocalParty]:
        return open_party(self.bundles[0]), open_party(self.bundles[1])

    @property
    def test(self) -> tuple[Pictures, Pictures]:
        return self.pictures[0].test, self.pictures[1].test

    @cached_property
    def clusters(self) -> np.ndarray:
        return shipped_clusters(self.source_name)

    @cached_property
    def drawn(self) -> metrics.Resamples:
        return metrics.resample(len(self.test[0]), self.clusters)

    @cached_property
    def unpaired(self) -> tuple[Pictures, Pictures]:
        return tuple(thinned(part.train, UNPAIRED_PICTURES) for part in self.pictures)  # type: ignore[return-value]

    @cached_property
    def real(self) -> Matrix:
        return metrics.features(thinned(self.pictures[1].train, DOMAIN_PICTURES))

    @cached_property
    def truth_distance(self) -> metrics.Interval:
        return metrics.feature_distance(metrics.features(self.test[1]), self.real, self.drawn)

    @property
    def thresholds(self) -> StructureThresholds | None:
        return self.bundles[0].manifest.structure

    def pairs(self, count: int, seed: int) -> tuple[Pictures, Pictures]:
        """True pairs from the source's training places, none of them a test picture: anchors that both sides hold."""
        rows = np.random.default_rng(seed).choice(len(self.pictures[0].train), count, replace=False)
        return self.pictures[0].train[rows], self._partners[rows].astype(np.float32) / np.float32(
            127.5
        ) - np.float32(1.0)

    @cached_property
    def _partners(self) -> np.ndarray:
        side, target = self.pictures[0].domain.side, self.pictures[1].domain
        if target.map:
            return cut_map(target.map, side, "train", target.detail)
        return cut_head(target.name, side, "train")

    def paired(self, translated: Pictures) -> dict[str, metrics.Interval]:
        """psnr, ssim and partner of translations of all test pictures."""
        truth = self.test[1]
        same = compare(translated, truth)
        return {
            "psnr": self.drawn.mean(same.psnr),
            "ssim": self.drawn.mean(same.ssim),
            "partner": self.drawn.mean(metrics.hits_by_pixels(translated, truth)),
        }

    def figures(
        self, translated: Pictures, *, back: Pictures | None = None, latent: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Figures of translations of all test pictures, each with its interval over clusters of them."""
        x, drawn = self.test[0], self.drawn
        found: dict[str, Any] = {
            **self.paired(translated),
            "edge_correlation": drawn.mean(structure(x, translated).edge_correlation),
            "frechet_early": metrics.feature_distance(metrics.features(translated), self.real, drawn),
        }
        if back is not None:
            found["cycle_psnr"] = drawn.mean(psnr(back, x))
        if latent is not None:
            white = whiteness(torch.from_numpy(latent))
            found["latent_ratio"], found["latent_std"] = white.ratio, white.latent.std
            found["latent"] = asdict(white.latent)
        return found
