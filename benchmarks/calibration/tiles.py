"""A crop of the satellite map of a test stripe to relief: fitted, in tiles that are averaged, and as one ODE.

    python -m benchmarks.calibration.tiles      writes docs/benchmarks/calibration/tiles.json; one thread, two minutes

Tiles are cut and averaged by `ddib_fed.formats.tiles`, as `ddib translate` does it between nodes.
"""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks.calibration.directed import OUT
from ddib_fed.data.fitting import PictureRule, from_array, to_array
from ddib_fed.data.pictures import Picture
from ddib_fed.data.shipped import cut_scene
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings
from ddib_fed.engine.local_party import open_party
from ddib_fed.evaluation.metrics import Pictures, compare, psnr
from ddib_fed.files import write_json
from ddib_fed.formats.tiles import TileGrid, blend
from ddib_fed.models.bundle import open_bundle
from tests.engine.stages import translate_array

STRIPE, ROWS, SIDE, TOGETHER = 3, (200, 456), 32, 64
ASKED = ArraySettings(SolverSettings(evaluations=24), cycle=True)
Made = tuple[Pictures, Pictures]
"""The translation and what comes back, each (1, 3, H, W) in [-1, 1]."""


def fitted(x: Pictures, model: str) -> Made:
    """The whole crop squeezed to the model's size, and stretched again."""
    source, target = (open_party(open_bundle(name)) for name in (model, "relief"))
    rule = PictureRule(3, SIDE, SIDE)
    pixels = np.rint((x[0].transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
    small, size = to_array(Picture(pixels, "PNG"), rule)
    found = translate_array(small[None], source, target, ASKED)
    assert found.back is not None
    there, back = (
        from_array(each[0], rule, size).astype(np.float32) / 127.5 - 1
        for each in (found.translated, found.back)
    )
    return there.transpose(2, 0, 1)[None], back.transpose(2, 0, 1)[None]


def averaged(x: Pictures, model: str) -> Made:
    """Tiles that overlap by half, each translated by itself."""
    source, target = (open_party(open_bundle(name), together=TOGETHER) for name in (model, "relief"))
    grid = TileGrid.of(*x.shape[2:], (SIDE, SIDE))
    tiles = np.stack(
        [tile.transpose(2, 0, 1) for tile in (x[0].transpose(1, 2, 0)[w] for w in grid.windows())]
    )
    found = translate_array(np.ascontiguousarray(tiles), source, target, ASKED)
    assert found.back is not None
    there, back = (
        blend([tile.clip(-1, 1).transpose(1, 2, 0) for tile in each], grid, 3)[0]
        for each in (found.translated, found.back)
    )
    return there.transpose(2, 0, 1)[None], back.transpose(2, 0, 1)[None]


def one_ode(x: Pictures, model: str) -> Made:
    """The mean of the tiles' velocities moves the whole crop."""
    source, target = (open_party(open_bundle(name).of_scenes(*x.shape[2:])) for name in (model, "relief"))
    found = translate_array(x, source, target, ASKED)
    assert found.back is not None
    return found.translated.clip(-1, 1), found.back.clip(-1, 1)


def main() -> None:
    torch.set_num_threads(1)
    x, truth = (
        cut_scene(kind, STRIPE, ROWS, 1)[None].astype(np.float32) / np.float32(127.5) - np.float32(1)
        for kind in ("satellite", "relief")
    )
    rows = []
    for model in ("satellite", "satellite-as-relief"):
        for title, way in {"fitted": fitted, "tiles, averaged": averaged, "one ODE": one_ode}.items():
            began = time.process_time()
            there, back = (each.astype(np.float32) for each in way(x, model))
            spent = time.process_time() - began
            same = compare(there, truth)
            edges = np.abs(np.diff(there, axis=3)).mean() / np.abs(np.diff(truth, axis=3)).mean()
            rows.append(
                {
                    "model": model,
                    "way": title,
                    "psnr": float(same.psnr[0]),
                    "ssim": float(same.ssim[0]),
                    "edges": float(edges),
                    "cycle_psnr": float(psnr(back, x)[0]),
                    "cpu_seconds": round(spent, 1),
                }
            )
            print(rows[-1], flush=True)
    write_json(OUT / "tiles.json", rows)


if __name__ == "__main__":
    main()
