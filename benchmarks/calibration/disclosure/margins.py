"""Margins of right and of wrong rotations over draws of the aggregate's noise: what the least margin is chosen from.

    python -m benchmarks.calibration.disclosure.margins

A rotation is right when it is within 45 degrees of that of the pixels of the test pairs. JSON in
docs/benchmarks/calibration/margins.json.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np

from benchmarks.calibration.directed import OUT
from ddib_fed.bridge.calibration.aggregates import make_aggregate
from ddib_fed.bridge.calibration.fitting.rotation import degrees, nearest_orthogonal
from ddib_fed.bridge.calibration.fitting.unpaired import propose
from ddib_fed.datasets.shipped import ShippedPictures, load_shipped
from ddib_fed.files import write_json
from ddib_fed.models.shipped import pretrained
from ddib_fed.models.units.normalisation import Normalisation

RIGHT_DEGREES = 45.0


@dataclass(frozen=True, slots=True)
class Case:
    """Draws of one directed pair from so many pictures."""

    source: str
    target: str
    pictures: int
    draws: int


CASES = (
    Case("satellite", "relief", 4000, 100),
    Case("satellite", "relief", 1500, 30),
    Case("satellite", "relief", 500, 10),
    Case("relief", "satellite", 4000, 30),
    Case("satellite", "etopo", 4000, 50),
    Case("etopo", "satellite", 4000, 30),
)


def main() -> int:
    """Measure every case at epsilon 1 and write the file."""
    found = [one for case in CASES for one in measured(case)]
    write_json(OUT / "margins.json", {"right_degrees": RIGHT_DEGREES, "epsilon": 1.0, "draws": found})
    for right in (True, False):
        lows = sorted(one["low"] for one in found if one["right"] == right)
        print(f"{len(lows)} {'right' if right else 'wrong'}: lower bounds {lows[0]:.3f} to {lows[-1]:.3f}")
    return 0


def measured(case: Case) -> list[dict[str, object]]:
    """One record a draw."""
    source, target = load_shipped(case.source), load_shipped(case.target)
    units = [pretrained(name).manifest.normalisation.plain for name in (case.source, case.target)]
    truth = nearest_orthogonal(_pixels(target, units[1]) @ _pixels(source, units[0]).T)
    found: list[dict[str, object]] = []
    for draw in range(case.draws):
        aggregate = make_aggregate(
            target.train,
            units[1],
            case.target,
            at_most=case.pictures,
            generator=np.random.default_rng(100 + draw),
        )
        made = propose(source.train, units[0], aggregate, "rotation", seed=draw, force=True)
        off, margin = degrees(made.map.matrix, truth), made.effect.margin
        found.append(
            {
                "source": case.source,
                "target": case.target,
                "pictures": case.pictures,
                "draw": draw,
                "degrees": round(off, 1),
                "right": off < RIGHT_DEGREES,
                "margin": margin.value,
                "low": margin.low,
                "high": margin.high,
            }
        )
        print(
            case.source,
            case.target,
            case.pictures,
            f"{off:.0f} degrees, {margin.value:.3f} {margin.low:.3f}",
            flush=True,
        )
    return found


def _pixels(pictures: ShippedPictures, units: Normalisation) -> np.ndarray:
    found: np.ndarray = np.moveaxis(units.apply(pictures.test).astype(np.float64), 1, 0)
    return found.reshape(len(found), -1)


if __name__ == "__main__":
    sys.exit(main())
