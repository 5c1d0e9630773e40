"""A calibration and all test pictures between two nodes, by the commands that their operators type.

    python -m benchmarks.calibration.nodes      25 minutes, two cores

Two institutions with the shipped models, their nodes as processes. The target publishes one aggregate of its training
pictures (epsilon 1, noise from the system's generator), the source calibrates to it, and for a colour map its model is
trained again with what both signed. A client sends the same pictures before and after. Figures are of what it gets.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ddib_fed
from benchmarks.calibration.directed import Directed, from_results, to_files
from benchmarks.calibration.operators import retrain, sign
from benchmarks.command import Rows, Run, command
from benchmarks.pictures.judged import wrong_of
from ddib_fed import Request, Settings
from ddib_fed.metrics import Pictures
from ddib_fed.testing import TwoNodes, ddib

KINDS = ("rotation", "colour-map")
SHARE = Settings(share=0.75, temperature=0.9)
DIALS = {"": Settings(), ", share": SHARE, ", dial": replace(SHARE, blend=0.3)}
PLAIN = Request(cycle=True, without_calibration=True)


def measure(run: Run) -> Rows:
    """Set both nodes up, and measure each way."""
    directed = Directed("satellite", "relief", count=run.pick(smoke=2, long=0))
    yield row(directed, "histogram matching", directed.histogram_matched())
    with tempfile.TemporaryDirectory() as place:
        settings = {"calibration": [*KINDS], "least_share": SHARE.share, "threads": 1}
        names = ("east.example", "west.example")
        nodes = TwoNodes.create(place, "satellite", "relief", institutions=names, settings=settings)
        with nodes:
            if run.smoke:
                anchors = directed.write_anchors(Path(place) / "anchors", 12, 0)
                yield from under(nodes, directed, "rotation", {}, "--anchors", *anchors, "--force")
                yield from sent(
                    nodes, directed, {"uncalibrated": replace(PLAIN, settings=Settings(evaluations=8))}
                )
                return
            yield from sent(nodes, directed, {"uncalibrated": PLAIN})
            ddib(
                "calibrate", "publish", "--pictures", "relief", "--yes", "--config", nodes.target.config_path
            )
            for kind in KINDS:
                yield from under(nodes, directed, kind, DIALS, "--pictures", "satellite")


def under(
    nodes: TwoNodes, directed: Directed, kind: str, dials: Mapping[str, Settings], *materials: object
) -> Iterator[dict[str, Any]]:
    """Yield rows under a calibration: of its map alone, and of each setting."""
    calibration = sign(nodes, kind, *materials)
    assert calibration.alone is not None
    yield {
        **row(directed, f"the {kind} alone", calibration.alone(directed.test[0])),
        "made": str(calibration.made),
    }
    if kind == "colour-map":
        retrain(nodes, calibration)
    requests = {f"{kind}{name}": Request(settings, left=()) for name, settings in dials.items()}
    last = [*requests][-1:]
    yield from sent(
        nodes, directed, {name: replace(one, cycle=name in last) for name, one in requests.items()}
    )


def sent(nodes: TwoNodes, directed: Directed, requests: Mapping[str, Request]) -> Iterator[dict[str, Any]]:
    """Yield a row of each request of a client."""
    with nodes.client() as client:
        for way, request in requests.items():
            results = [*ddib_fed.translate(to_files(directed.test[0]), client, nodes.to, request)]
            most = max(result.record.wire_bytes for result in results)
            yield {**row(directed, way, from_results(results), results), "wire_bytes": most}


def row(directed: Directed, way: str, pictures: Pictures, results: Any = ()) -> dict[str, Any]:
    """Return figures of a way, with the share of wrong pixels."""
    wrong = directed.drawn.mean(wrong_of(directed)(pictures).mean((1, 2)))
    return {"way": way, **directed.figures(pictures, results), "wrong": wrong}


if __name__ == "__main__":
    sys.exit(command(measure, "calibration/nodes"))
