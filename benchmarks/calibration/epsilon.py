"""What the noise of an aggregate costs: epsilon and number of pictures against the rotation that is found from it.

    python -m benchmarks.calibration.epsilon [--pairs satellite-relief ...]

Degrees from the rotation of the true pairs of all test pixels (Procrustes), the margin, and PSNR and SSIM of the test
pictures whose colours are turned by it, without any network. Three draws of noise and search each; delta 1e-5. One
JSON a directed pair below docs/benchmarks/calibration/epsilon.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from benchmarks import options
from benchmarks.calibration.directed import COLOURS, NAMED, OUT, Directed
from ddib_fed.calibration.aggregate import (
    Cells,
    Floats,
    Numbers,
    count_array,
    default_cells,
    histogram,
    thinned,
)
from ddib_fed.calibration.fit import (
    DRAWN,
    EACH,
    MOST_PICTURES,
    degrees,
    nearest_orthogonal,
    pseudo_colours,
    sampled_pixels,
    search,
    without_noise,
)
from ddib_fed.files import write_json
from ddib_fed.metrics import compare

EPSILONS: tuple[float | None, ...] = (0.1, 0.3, 1.0, 3.0, None)
PICTURES = (500, 1500, 4000)
DRAWS = 3
FOLDER = OUT / "epsilon"


def main() -> int:
    """Measure the curve of each pair that is asked for."""
    parser = options(__doc__)
    parser.add_argument("--pairs", nargs="+", choices=COLOURS, default=COLOURS[:1], metavar="SOURCE-TARGET")
    given = parser.parse_args()
    for name in given.pairs:
        directed = Directed(*NAMED[name])
        points = [
            point(directed, pictures, epsilon, draw)
            for pictures in PICTURES
            for epsilon in EPSILONS
            for draw in range(DRAWS)
        ]
        FOLDER.mkdir(parents=True, exist_ok=True)
        write_json(FOLDER / f"{name}.json", {"delta": 1e-5, "points": points})
    return 0


def point(directed: Directed, pictures: int, epsilon: float | None, draw: int) -> dict[str, Any]:
    """One search with one draw of noise."""
    generator = np.random.default_rng([draw, pictures])
    shares, cells, size = published(directed, pictures, epsilon, generator)
    units = unit_pictures(directed, 0, thinned(directed.pictures[0].train, MOST_PICTURES))
    cloud: Numbers = generator.permutation(sampled_pixels(units, EACH, generator).reshape(-1, 3))
    found = search(cloud, pseudo_colours(shares, cells, DRAWN, generator), seed=draw)
    gap = np.sqrt(found.other.cost) - np.sqrt(found.best.cost)
    result = {
        "pictures": pictures,
        "epsilon": epsilon,
        "draw": draw,
        "bytes": size,
        "bins": cells.bins,
        "degrees": degrees(found.best.matrix, paired_rotation(directed)),
        "gap": float(gap),
        **turned(directed, found.best.matrix),
    }
    print(
        directed.name,
        {name: round(value, 3) if isinstance(value, float) else value for name, value in result.items()},
        flush=True,
    )
    return result


def published(
    directed: Directed, pictures: int, epsilon: float | None, generator: np.random.Generator
) -> tuple[Numbers, Cells, int]:
    """The target's shares as the source has them: cleaned, or exact without noise; and the bytes that cross."""
    target = directed.pictures[1].train
    if epsilon is None:
        cells = default_cells(3, 1e9)
        return histogram(unit_pictures(directed, 1, thinned(target, pictures)), cells), cells, 0
    units, name = directed.bundles[1].manifest.normalisation, directed.target_name
    counted = count_array(target, units, name, epsilon=epsilon, at_most=pictures)
    made = counted.noised(epsilon, generator=generator)
    return without_noise(made.shares, made.sigma), made.cells, len(made.canonical)


def unit_pictures(directed: Directed, side: int, pictures: Floats) -> Floats:
    return directed.bundles[side].manifest.normalisation.apply(pictures)


def paired_rotation(directed: Directed) -> Numbers:
    """The orthogonal map nearest to the true pairs of all test pixels: what a search should find."""
    u, v = (
        np.moveaxis(unit_pictures(directed, side, directed.test[side]), 1, -1)
        .reshape(-1, 3)
        .astype(np.float64)
        for side in (0, 1)
    )
    return nearest_orthogonal(v.T @ u)


def turned(directed: Directed, rotation: Numbers) -> dict[str, float]:
    """PSNR and SSIM of the test pictures whose colours are turned."""
    u = unit_pictures(directed, 0, directed.test[0])
    v = np.einsum("ij,njhw->nihw", rotation, u).astype(np.float32)
    made = np.clip(directed.bundles[1].manifest.normalisation.undo(v), -1.0, 1.0)
    same = compare(made, directed.test[1])
    return {"psnr": float(same.psnr.mean()), "ssim": float(same.ssim.mean())}


if __name__ == "__main__":
    sys.exit(main())
