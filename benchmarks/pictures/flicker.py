"""Slices of a volume with one draw of softening noise, and with one each: flicker, round trip, and the gate.

    python -m benchmarks.pictures.flicker      25 minutes of one core

The study is the 48 coronal test slices of the packaged head, four slabs of 12 neighbours at 1 mm. Flicker is the mean
absolute difference of neighbouring slices of the translation, as a multiple of the source's; of the truth it stands in
`flicker_of_truth`. Of the models of volumes, the same of coronal slices of 12 test blocks of 32^3 at 2 mm. Figures are
means over the draws, with intervals over clusters of slices, which blocks have not, and the least and the largest draw.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration.directed import from_bytes
from benchmarks.calibration.variants import LEGS
from benchmarks.command import Rows, Run, command
from benchmarks.pictures import slices
from benchmarks.pictures.judged import mean
from benchmarks.pictures.slices import PAIRS, STUDY, changes, correlations, neighbours
from ddib_fed import Model, Settings, datasets, metrics
from ddib_fed.metrics import Figures, Pictures

DRAWS, VOLUME_DRAWS = 8, 3


def measure(run: Run) -> Rows:
    """Measure both ways between the contrasts."""
    most, settings = run.pick(smoke=(6, Settings(evaluations=8)), long=(STUDY, LEGS))
    draws, volumes = run.pick(smoke=(1, 0), long=(DRAWS, VOLUME_DRAWS))
    for source, target in PAIRS[: run.pick(smoke=1, long=2)]:
        pair, clusters = {"source": source, "target": target}, datasets.clusters_of(source)[:most]
        pictures = slices.slices_of(source, most), slices.slices_of(target, most)
        models = Model.open(source, threads=1), Model.open(target, threads=1)
        for shared in (False, True):
            row = measured(models, pictures, clusters, settings, draws, shared=shared)
            yield {"kind": "slices", **pair, "shared": shared, **row}
        if volumes:
            names = f"{source}-volume", f"{target}-volume"
            blocks = [from_bytes(datasets.shipped_bytes(name, ["test"])[0][::2]) for name in names]
            models = Model.open(names[0], threads=1), Model.open(names[1], threads=1)
            row = measured(models, (blocks[0], blocks[1]), np.zeros(len(blocks[0])), settings, volumes)
            yield {"kind": "volumes", **dict(zip(pair, names, strict=True)), **row}


def measured(
    models: tuple[Model, Model],
    pictures: tuple[Pictures, Pictures],
    clusters: NDArray[Any],
    settings: Settings,
    draws: int,
    *,
    shared: bool = False,
) -> dict[str, Any]:
    """Translate there and back with each draw of noise."""
    (source, target), (given, truth), drawn = models, pictures, metrics.resample(len(clusters), clusters)
    x, sigma, each = source.units(given), source.manifest.soften_sigma, list[dict[str, Figures]]()
    for seed in range(draws):
        u = slices.softened(source, x, seed, shared=shared)
        z = source.integrate(u, settings, sigma=sigma)
        y = target.integrate(z, settings, back=True)
        back = source.integrate(target.integrate(y, settings), settings, back=True)
        translated = slices.pictures_of(target, y)
        each.append(
            {
                "flicker": changes(translated),
                "round_trip": metrics.psnr(slices.pictures_of(source, back), given),
                "psnr": metrics.psnr(translated, truth),
                **({"correlation": correlations(z)} if z.ndim == 4 else {}),
                "refused": np.array([bool(why) for why in source.refusals(z, settings, states=u)], float),
            }
        )
    before = changes(given)

    def figure(name: str) -> dict[str, float]:
        values = np.array([draw[name] for draw in each])
        # Of neighbours and their correlation a slab has one less than of slices.
        paired = values.shape[1] != len(clusters)
        over = metrics.resample(values.shape[1], neighbours(clusters)) if paired else drawn
        means, interval = values.mean(1), mean(over, values.mean(0))
        if name == "flicker":
            means = means / before.mean()
            ratio = over.of(lambda weights: float(weights @ values.mean(0) / (weights @ before)))
            interval = ratio if paired else {"value": float(means.mean())}
        return {**interval, "least": float(means.min()), "most": float(means.max())}

    return {
        "draws": draws,
        "evaluations": settings.evaluations,
        "flicker_of_truth": float(changes(truth).mean() / before.mean()),
        **{name: figure(name) for name in each[0]},
    }


if __name__ == "__main__":
    sys.exit(command(measure, "pictures/flicker"))
