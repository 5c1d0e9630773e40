"""The table of calibration: what each way of telling the bridge how two domains correspond gains, both directions.

    python -m benchmarks.calibration.table      20 minutes of one core

Models are those that ship, of all test pictures, there and back with 24 evaluations a leg, one thread, float32. What
has to be trained first is measured by benchmarks.calibration.retrained.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks.calibration.directed import NAMED, Directed
from benchmarks.calibration.variants import COLOUR_MAP, RETRAINED, ROTATION, agreed, translated, under
from benchmarks.command import Rows, Run, command
from ddib_fed import Calibration, Model, Settings

FEW = Settings(evaluations=4, blend=0.3)


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the option of this benchmark."""
    parser.add_argument(
        "--pairs", nargs="+", choices=NAMED, default=[*NAMED], metavar="SOURCE-TARGET", help="default: all"
    )


def measure(run: Run) -> Rows:
    """Measure each pair."""
    if run.smoke:
        yield from ways(Directed(*NAMED["satellite-relief"], count=2), smoke=True)
        return
    for pair in run.options.pairs:
        yield from ways(Directed(*NAMED[pair]))


def ways(directed: Directed, *, smoke: bool = False) -> Iterator[dict[str, Any]]:
    """Yield a row of each way."""
    yield {"pair": directed.name, "name": "histogram", **directed.figures(directed.histogram_matched())}
    if not smoke:
        yield translated(directed, "plain")
    rotated = {"rotation-dial": FEW} if smoke else ROTATION
    yield from under(directed, agreed(directed)[0], directed.models[0], rotated, "rotation-alone")
    if directed.name in RETRAINED:
        name = RETRAINED[directed.name]
        calibration, model = Calibration.open(name), Model.open(name, threads=1)
        yield from under(directed, calibration, model, {} if smoke else COLOUR_MAP)


if __name__ == "__main__":
    sys.exit(command(measure, "calibration/table", arguments=arguments))
