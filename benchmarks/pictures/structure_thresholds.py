"""What the structure thresholds of the shipped models mark: true partners, other places, exchanged land and sea.

    python -m benchmarks.pictures.structure_thresholds [--evaluations 48]

Exchanged are the true partners with each channel mirrored at its picture's mean, so that land has the sea's colours
and coasts stay where they are; and of the translations those whose channels correlate negatively with the truth's.
Each is marked without a calibration, and under one: of the maps the rotation from the target's aggregate, or where that
is refused the one from pixels of 512 pairs; of the heads the tone from eight anchors in build/calibrated, where
benchmarks/calibration/anchors.py has left it. Writes
docs/benchmarks/structure_thresholds.json; minutes of CPU, less where benchmarks/calibration/table.py
has left its translations.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.calibration.directed import CALIBRATED, DIRECTIONS, THRESHOLDS, Directed
from benchmarks.calibration.table import kept
from benchmarks.calibration.variants import agreed, bridged, colours, procrustes, units
from ddib_fed.calibration.fit import as_map
from ddib_fed.calibration.record import read_calibration
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.evaluation.metrics import Expected, Pictures, agreement, doubtful, structure
from ddib_fed.files import write_json
from ddib_fed.models.units import ChannelMap

SHIFTS = (20, 50, 80, 110)
"""Partners that are so many test crops away show another place."""


def main() -> int:
    """Measure all directions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluations", type=int, default=48, help="of one leg")
    names = [f"{source}-{target}" for source, target in DIRECTIONS]
    parser.add_argument("--pairs", nargs="+", choices=names, default=names, metavar="SOURCE-TARGET")
    given = parser.parse_args()
    settings = SolverSettings(evaluations=given.evaluations)
    torch.set_num_threads(1)
    for source, target in DIRECTIONS:
        directed = Directed(source, target)
        if directed.name in given.pairs and (under := calibration_of(directed)) is not None:
            found = measured(directed, under, settings)
            print(found, flush=True)
            there = json.loads(THRESHOLDS.read_text(encoding="utf-8")) if THRESHOLDS.exists() else []
            others = [one for one in there if (one["source"], one["target"]) != (source, target)]
            write_json(
                THRESHOLDS,
                sorted([*others, found], key=lambda one: DIRECTIONS.index((one["source"], one["target"]))),
            )
    return 0


@dataclass(frozen=True)
class Under:
    """The calibration under which translations are marked."""

    map: ChannelMap
    basis: str
    variant: str


def calibration_of(directed: Directed) -> Under | None:
    """That of a directed pair; None where a tone is not there."""
    if colours(directed):
        found, notes = agreed(directed)
        if notes["effect"]["forced"]:
            return Under(as_map(procrustes(directed, 512)), "a rotation from 512 pairs", "rotation-512-pairs")
        return Under(found, "a rotation from one aggregate", "calibrated")
    path = CALIBRATED / f"{directed.name}-0.json"
    return Under(read_calibration(path).map, "a tone from 8 pairs", "retrained") if path.exists() else None


def measured(directed: Directed, under: Under, settings: SolverSettings) -> dict[str, Any]:
    """Shares and counts that are marked, in one direction."""
    manifest = directed.bundles[0].manifest
    least = manifest.structure
    assert least is not None
    x, truth = directed.test
    plain = kept(directed, "plain")
    plain = bridged(directed, settings).translated if plain is None else plain
    stacks = {
        "true partners": truth,
        "exchanged true partners": exchanged(directed, truth),
        "translations": plain,
    }
    if (calibrated := kept(directed, under.variant)) is not None:
        stacks["calibrated translations"] = calibrated
    marked: dict[str, Any] = {}
    expects = Expected(manifest.normalisation.plain, under.map)
    for name, stack in stacks.items():
        without, held = (
            doubtful(figures, least) for figures in (structure(x, stack), structure(x, stack, expects))
        )
        wrong = agreement(units(directed)[1].apply(truth), units(directed)[1].apply(stack)) < 0
        below = structure(x, stack).edge_correlation < least.chance_edge_correlation
        marked[name] = {
            "without": float(without.mean()),
            "under": float(held.mean()),
            "exchanged": int(wrong.sum()),
            "exchanged_without": int(without[wrong].sum()),
            "exchanged_under": int(held[wrong].sum()),
            "edges_below_chance": int(below.sum()),
            "edges_below_chance_without": int(without[below].sum()),
            "edges_below_chance_under": int(held[below].sum()),
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
        "calibration": under.basis,
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
