"""The calibrations of a pair, and the ways of translating its test pictures under one, as rows of the tables."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import ddib_fed
from benchmarks.calibration.directed import Directed, from_results
from ddib_fed import Calibration, CalibrationRequest, Model, Request, Settings

RETRAINED = {"satellite-relief": "satellite-as-relief"}
"""Shipped models that were trained on their pictures mapped by the calibration that ships with each."""
LEGS = Settings(evaluations=24)
SHARE = Settings(evaluations=24, share=0.75, temperature=0.9)
DIAL = Settings(evaluations=24, share=0.75, temperature=0.9, blend=0.3)
DEPTH = Settings(evaluations=24, depth=0.7)
ROTATION = {"calibrated": LEGS, "rotation-share": SHARE, "rotation-dial": DIAL}
COLOUR_MAP = {"retrained": LEGS, "retrained-cool": SHARE, "retrained-dial": DIAL}


@cache
def _agreed(source: str, target: str, few: bool) -> Calibration:
    directed = Directed(source, target, count=2 * few)
    if not few:
        return ddib_fed.calibrate(*directed.models, CalibrationRequest(days=365, force=True))
    with tempfile.TemporaryDirectory() as folder:
        anchors = directed.write_anchors(Path(folder), 4, 0)
        return ddib_fed.calibrate(*directed.models, CalibrationRequest(anchors=anchors, days=365, force=True))


def agreed(directed: Directed) -> tuple[Calibration, dict[str, Any]]:
    """Return the rotation from the target's noised aggregate without pairs, and how it was found.

    Of a pair with few test pictures, in a smoke, it is from four anchors, which is quicker.
    """
    calibration = _agreed(directed.source_name, directed.target_name, bool(directed.count))
    return calibration, {
        "rotation": calibration.map.matrix.tolist(),
        "effect": calibration.effect.model_dump(mode="json"),
        "made": calibration.made.model_dump(mode="json"),
    }


def under(
    directed: Directed,
    calibration: Calibration,
    source: Model,
    ways: Mapping[str, Settings],
    alone: str = "map-alone",
) -> Iterator[dict[str, Any]]:
    """Yield a row of the calibration's map alone, and one of each way of translating under it."""
    assert calibration.alone is not None
    yield {"pair": directed.name, "name": alone, **directed.figures(calibration.alone(directed.test[0]))}
    for name, settings in ways.items():
        yield translated(directed, name, settings, source, calibration)


def translated(
    directed: Directed,
    name: str,
    settings: Settings = LEGS,
    source: Model | None = None,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Return a row of translations there and back."""
    request = Request(settings, cycle=True, calibration=calibration, left=())
    results = directed.translate(request, source)
    return {"pair": directed.name, "name": name, **directed.figures(from_results(results), results)}
