"""Writes the demo's test pictures as files, and reads the results back.

A sent picture contains only its pixels, and the true picture of the same place in the target's
domain is never written: it is kept here for comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ddib_fed.bridge.records.translation_record import Part
from ddib_fed.cli.client.delivery import Delivered
from ddib_fed.datasets.shipped import ShippedPictures
from ddib_fed.metrics.pictures import Pictures
from ddib_fed.reports.sheets import to_pixels
from ddib_fed.samples.images import encode_png, read_image


@dataclass(frozen=True, slots=True)
class Chosen:
    """Test pictures of a pair; row i of each shows the same place."""

    rows: tuple[int, ...]
    source: Pictures = field(repr=False)
    truth: Pictures = field(repr=False)

    @classmethod
    def evenly(cls, source: ShippedPictures, target: ShippedPictures, count: int) -> Chosen:
        rows = np.linspace(0, len(source.test) - 1, count).round().astype(int)
        return cls(tuple(rows.tolist()), source.test[rows], target.test[rows])

    def write(self, folder: Path) -> list[Path]:
        """The sources as PNGs, named by their rows."""
        folder.mkdir(parents=True)
        paths = [folder / f"{row:03}.png" for row in self.rows]
        for path, pixels in zip(paths, to_pixels(self.source), strict=True):
            path.write_bytes(encode_png(pixels))
        return paths


@dataclass(frozen=True, slots=True)
class Album:
    """The chosen pictures at each stage, from the client's files."""

    chosen: Chosen = field(repr=False)
    sent: tuple[Path, ...]
    delivered: tuple[Delivered, ...] = field(repr=False)
    latent: Pictures = field(repr=False)
    translated: Pictures = field(repr=False)
    returned: Pictures = field(repr=False)

    @classmethod
    def load(cls, chosen: Chosen, sent: Sequence[Path], delivered: Sequence[Delivered]) -> Album:
        """Read the client's results: one for each file, in their order."""
        latents = [np.load(result.files[Part.LATENT], allow_pickle=False) for result in delivered]
        return cls(
            chosen,
            tuple(sent),
            tuple(delivered),
            np.concatenate(latents).astype(np.float32),
            np.stack([read_unit(result.files[Part.TRANSLATION]) for result in delivered]),
            np.stack([read_unit(result.files[Part.RETURNED]) for result in delivered]),
        )


def read_unit(path: Path) -> Pictures:
    """A picture of 8 or 16 bits as (C, H, W) float32 in [-1, 1]."""
    picture = read_image(path)
    top = (1 << picture.bits) - 1
    unit = picture.pixels.astype(np.float32) * np.float32(2.0 / top) - np.float32(1.0)
    return np.ascontiguousarray(unit.transpose(2, 0, 1))
