"""What the structure thresholds of the shipped maps mark: true partners, other places, exchanged land and sea.

    python -m benchmarks.structure_thresholds [--evaluations 48]

Exchanged are the true partners with each channel mirrored at its picture's mean, so that land has the sea's colours
and coasts stay where they are; and of the translations those whose channels correlate negatively with the truth's.
Each is marked without a calibration, and under one: the rotation from the target's aggregate, or where that is refused
the one from pixels of 512 pairs. Writes
docs/benchmarks/structure_thresholds.json; minutes of CPU, less where benchmarks/calibration/table.py
has left its translations.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import numpy as np
import torch

from benchmarks.calibration.directed import OUT, Directed
from benchmarks.calibration.table import kept
from benchmarks.calibration.variants import agreed, as_map, bridged, decoded, procrustes, units
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.files import write_json
from ddib_fed.metrics.pictures import Pictures
from ddib_fed.metrics.structure import agreement, doubtful, expected, structure

SHIFTS = (20, 50, 80, 110)
"""Partners that are so many test crops away show another place."""
DIRECTIONS = (
    ("satellite", "relief"),
    ("relief", "satellite"),
    ("satellite", "etopo"),
    ("etopo", "satellite"),
)
REPORT = OUT.parent / "structure_thresholds.json"


def main() -> int:
    """Measure all directions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluations", type=int, default=48, help="of one leg")
    settings = SolverSettings(evaluations=parser.parse_args().evaluations)
    torch.set_num_threads(1)
    found = []
    for names in DIRECTIONS:
        found.append(measured(Directed(*names), settings))
        print(found[-1], flush=True)
    write_json(REPORT, found)
    return 0


def measured(directed: Directed, settings: SolverSettings) -> dict[str, Any]:
    """Shares and counts that are marked, in one direction."""
    manifest = directed.bundles[0].manifest
    least = manifest.structure
    assert least is not None
    x, truth = directed.test
    found, notes = agreed(directed)
    refused = notes["effect"]["forced"]
    rotation = procrustes(directed, 512) if refused else found.matrix
    plain = kept(directed, "plain")
    plain = bridged(directed, settings).translated if plain is None else plain
    calibrated = kept(directed, "rotation-512-pairs" if refused else "calibrated")
    calibrated = decoded(directed, settings, rotation).translated if calibrated is None else calibrated
    stacks = {
        "true partners": truth,
        "exchanged true partners": exchanged(directed, truth),
        "translations": plain,
        "calibrated translations": calibrated,
    }
    marked: dict[str, Any] = {}
    expects = expected(manifest, as_map(rotation))
    for name, stack in stacks.items():
        without, under = (
            doubtful(figures, least) for figures in (structure(x, stack), structure(x, stack, expects))
        )
        wrong = agreement(units(directed)[1].apply(truth), units(directed)[1].apply(stack)) < 0
        below = structure(x, stack).edge_correlation < least.chance_edge_correlation
        marked[name] = {
            "without": float(without.mean()),
            "under": float(under.mean()),
            "exchanged": int(wrong.sum()),
            "exchanged_without": int(without[wrong].sum()),
            "exchanged_under": int(under[wrong].sum()),
            "edges_below_chance": int(below.sum()),
            "edges_below_chance_without": int(without[below].sum()),
            "edges_below_chance_under": int(under[below].sum()),
        }
    lost = [np.roll(truth, shift, axis=0) for shift in SHIFTS]
    marked["other places"] = {
        "without": float(np.mean([doubtful(structure(x, one), least) for one in lost])),
        "under": float(np.mean([doubtful(structure(x, one, expects), least) for one in lost])),
    }
    return {
        "source": directed.source_name,
        "target": directed.target_name,
        "pictures": len(x),
        "calibration": "512 pairs" if refused else "aggregate",
        "marked": marked,
        "thresholds": least.model_dump(),
    }


def exchanged(directed: Directed, pictures: Pictures) -> Pictures:
    """Pictures of the target with each channel mirrored at its picture's mean."""
    own = units(directed)[1]
    channels = own.apply(pictures)
    mirrored: Pictures = own.undo(2 * channels.mean(axis=(2, 3), keepdims=True) - channels).clip(-1.0, 1.0)
    return mirrored


if __name__ == "__main__":
    sys.exit(main())
