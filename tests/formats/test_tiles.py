"""Tiles cover a picture, and blended tiles are the picture again."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.formats.geotiff import TileGrid, blend, cut
from ddib_fed.formats.intensity import measure_seams

GENERATOR = np.random.default_rng(3)
ROWS, COLUMNS = np.mgrid[0:90, 0:131]
SMOOTH = np.stack([np.sin(ROWS / 17) * 60 + COLUMNS / 2, np.cos(COLUMNS / 11) * 50 + ROWS], axis=2).astype(
    np.float32
)


@pytest.mark.parametrize("size", [(32, 32), (90, 131), (33, 40), (20, 200)])
def test_tiles_cover_every_pixel_and_are_the_picture_again(size):
    picture = GENERATOR.normal(size=(*size, 2)).astype(np.float32)
    grid = TileGrid.of(*size, (32, 32))
    tiles = cut(picture, grid)
    assert {tile.shape[:2] for tile in tiles} == {grid.tile}
    blended, covered = blend(tiles, grid, 2)
    np.testing.assert_allclose(blended, picture, atol=1e-3)
    assert covered.all()


def test_tiles_side_by_side_show_their_edges():
    """The figure is large where tiles are only put beside one another: it can tell."""
    grid = TileGrid(90, 131, (32, 32), 0)
    raw = np.zeros_like(SMOOTH)
    for window, tile in zip(grid.windows(), cut(SMOOTH, grid), strict=True):
        raw[window] = tile + GENERATOR.normal(0, 15, 2).astype(np.float32)
    seams = measure_seams(SMOOTH, raw, *grid.edges)
    assert seams is not None
    assert seams.record["translation"] > 3 * seams.record["source"]
