"""Coasts of 256 x 75 pixels of the satellite map to relief: in tiles that are averaged, as one ODE, and at the dial.

    python -m benchmarks.calibration.scenes      writes docs/benchmarks/calibration/scenes.json; one thread, ten minutes

Tiles are cut and averaged by `ddib_fed.data.tiles`, as `ddib translate` does it between nodes; under the rotation
from one aggregate. Wrong is a pixel on the other side of sea and land (benchmarks.pictures.marks); a scene is marked by
the share of its pixels that differ from the map, as the source's thresholds say.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from benchmarks.calibration.directed import OUT, Directed
from benchmarks.calibration.variants import agreed
from benchmarks.pictures.large import tiled
from benchmarks.pictures.marks import water
from ddib_fed.calibration.record import Calibration, Dial
from ddib_fed.datasets import cut_scene
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings
from ddib_fed.engine.local_party import open_party
from ddib_fed.files import write_json
from ddib_fed.metrics import Pictures, compare, structure
from ddib_fed.models.bundle import open_bundle
from tests.engine.stages import translate_array

STRIPES, ROWS, HEIGHT, WIDTH = range(7), (112, 368, 624, 832), 256, 75
SEA = (0.25, 0.8)
DIALS = {"share 1": Dial(), "proposed": Dial(share=0.75, temperature=0.9, blend=0.3)}
Scene = tuple[Pictures, Pictures]


def scenes() -> list[Scene]:
    """Source and truth of each coast, (1, 3, H, W) in [-1, 1]."""
    found = []
    for stripe in STRIPES:
        for top in ROWS:
            x, truth = (
                cut_scene(kind, stripe, (top, top + HEIGHT), 1)[None].astype(np.float32) / np.float32(127.5)
                - 1
                for kind in ("satellite", "relief")
            )
            if SEA[0] < water(truth).mean() < SEA[1]:
                found.append((x, truth))
    return found


def settings(dial: Dial, calibration: Calibration) -> ArraySettings:
    solver = SolverSettings(evaluations=24, share=dial.share, temperature=dial.temperature)
    return ArraySettings(solver, calibration=calibration.map)


def averaged(x: Pictures, dial: Dial, calibration: Calibration) -> Pictures:
    source, target = (open_party(open_bundle(name), together=64) for name in ("satellite", "relief"))
    return tiled(x[0], (source, target), settings(dial, calibration))[None]


def one_ode(x: Pictures, dial: Dial, calibration: Calibration) -> Pictures:
    """The mean of the tiles' velocities moves the whole scene."""
    parties = [open_party(open_bundle(name).of_scenes(HEIGHT, WIDTH)) for name in ("satellite", "relief")]
    return translate_array(x, *parties, settings(dial, calibration)).translated.clip(-1, 1).astype(np.float32)


def main() -> None:
    torch.set_num_threads(1)
    directed = Directed("satellite", "relief")
    calibration, least = agreed(directed)[0], directed.thresholds
    assert least is not None
    found, rows = scenes(), []

    def row(way: str, stacks: list[Pictures], **more: Any) -> None:
        same = [compare(stack, truth) for stack, (_, truth) in zip(stacks, found, strict=True)]
        seas = [water(truth) for _, truth in found]
        wrong = [water(stack) != sea for stack, sea in zip(stacks, seas, strict=True)]
        kept = [
            structure(x, y, calibration.alone, least).differs for (x, _), y in zip(found, stacks, strict=True)
        ]
        differs = [float(each.mean()) for each in kept if each is not None]
        rows.append(
            {
                "way": way,
                "scenes": len(found),
                "psnr": float(np.mean([each.psnr[0] for each in same])),
                "ssim": float(np.mean([each.ssim[0] for each in same])),
                "wrong": [float(each.mean()) for each in wrong],
                "wrong_mean": float(np.mean([each.mean() for each in wrong])),
                "sea_as_land": float(
                    sum((w & s).sum() for w, s in zip(wrong, seas, strict=True)) / sum(map(np.sum, seas))
                ),
                "differs": differs,
                "marked": sum(each > least.differs for each in differs),
                **more,
            }
        )
        print(rows[-1], flush=True)

    alone = [calibration.alone(x) for x, _ in found]
    row("the map alone", alone)
    for title, way in (("tiles, averaged", averaged), ("one ODE", one_ode)):
        for name, dial in DIALS.items():
            began = time.process_time()
            made = [way(x, dial, calibration) for x, _ in found]
            spent = round((time.process_time() - began) / len(found), 1)
            mixed = [(1 - dial.blend) * y + dial.blend * z for y, z in zip(made, alone, strict=True)]
            row(f"{title}, {name}", [each.astype(np.float32) for each in mixed], cpu_seconds=spent)
    write_json(OUT / "scenes.json", rows)


if __name__ == "__main__":
    main()
