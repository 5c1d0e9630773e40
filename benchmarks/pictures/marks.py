"""Which wrong translations the marks find, against the truth: by structure alone, and by classes under a calibration.

    python -m benchmarks.pictures.marks      8 minutes of one core

Wrong is a pixel on the other side of sea and land: in relief by the colours of water that cut the crops, in satellite
pictures by the nearer of the mean colours of sea and land; of heads by the nearer of two mean values of the truth. A
picture is bad when more than `BAD` of its pixels are wrong. `auc_knowable` leaves out pictures of which the
calibration's map alone is bad: there the source does not show what the truth has. Intervals are over clusters.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.calibration.directed import NAMED, Directed, from_results
from benchmarks.calibration.variants import LEGS, RETRAINED, agreed
from benchmarks.command import Rows, Run, command
from benchmarks.pictures.judged import area, hits, wrong_of
from ddib_fed import Calibration, Model, Request, Settings, metrics
from ddib_fed.metrics import Pictures

BAD = {"satellite-relief": 0.25, "relief-satellite": 0.25}
FEW = Settings(evaluations=12, share=0.5)
"""Too few evaluations for a mixed encoder: PSNR hardly falls, and most maps are wrong."""


def measure(run: Run) -> Rows:
    """Measure each state of each pair."""
    for name in [*BAD][: run.pick(smoke=1, long=len(BAD))]:
        directed = Directed(*NAMED[name], count=run.pick(smoke=8, long=0))
        shares = [LEGS, Settings(evaluations=24, share=0.75)]
        for state, calibration, source, under in states(directed):
            settings = [*shares, FEW] if state == "rotation" else shares
            for one in run.pick(smoke=[Settings(evaluations=12)], long=settings):
                results = directed.translate(Request(one, calibration=under, left=()), source)
                row = figures(directed, calibration, from_results(results))
                yield {
                    "pair": name,
                    "state": state,
                    "share": one.share,
                    "evaluations": one.evaluations,
                    **row,
                }
            if run.smoke:
                return


def states(directed: Directed) -> Iterator[tuple[str, Calibration, Model, Calibration | None]]:
    """Yield name, calibration that marks, model that encodes, and calibration under which it encodes."""
    plain, name = directed.models[0], RETRAINED.get(directed.name)
    rotation = agreed(directed)[0]
    yield "without", rotation, plain, None
    yield "rotation", rotation, plain, rotation
    if name is not None:
        shipped = Calibration.open(name)
        yield shipped.kind, shipped, Model.open(name, threads=1), shipped


def figures(directed: Directed, calibration: Calibration, pictures: Pictures) -> dict[str, Any]:
    """Return how many translations are bad, and how well each mark finds them."""
    source, wrong, least, drawn = directed.test[0], wrong_of(directed), directed.thresholds, directed.drawn
    mapping, most = calibration.alone, BAD[directed.name]
    assert mapping is not None
    pixels, unknowable = wrong(pictures), wrong(mapping(source)).mean((1, 2)) > most
    bad = pixels.mean((1, 2)) > most
    by_classes = metrics.structure(source, pictures, mapping, least)
    by_structure = metrics.structure(source, pictures)
    assert by_classes.differs is not None
    score = by_classes.differs.mean((1, 2))

    return {
        "pictures": len(source),
        "wrong": drawn.mean(pixels.mean((1, 2))),
        "bad": int(bad.sum()),
        "bad_of_the_map": int(unknowable.sum()),
        "auc": area(drawn, score, bad),
        "auc_knowable": area(drawn, score, bad, ~unknowable),
        "by_classes": hits(drawn, metrics.doubtful(by_classes, least), bad),
        "by_structure": hits(drawn, metrics.doubtful(by_structure, least), bad),
        "auc_by_structure": area(drawn, -by_structure.edge_correlation, bad),
    }


if __name__ == "__main__":
    sys.exit(command(measure, "pictures/marks"))
