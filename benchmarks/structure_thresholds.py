"""What the structure thresholds of the shipped maps mark: translations, true partners and unrelated pairs.

    python benchmarks/structure_thresholds.py [--evaluations 48]

Prints a JSON object for each direction: shares that are marked, and the thresholds. About a minute of CPU.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np

from ddib_fed.bridge.arrays import Asked, translate_array
from ddib_fed.bridge.local_party import open_party
from ddib_fed.datasets.shipped import load_shipped
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.metrics.structure import doubtful, structure
from ddib_fed.models.bundle import pretrained

SHIFTS = (20, 50, 80, 110)
"""Partners that are so many test crops away show another place."""


def main() -> int:
    """Measure both directions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--evaluations", type=int, default=48, help="of one leg")
    settings = SolverSettings(evaluations=parser.parse_args().evaluations)
    for names in (("satellite", "relief"), ("relief", "satellite")):
        models = [pretrained(name) for name in names]
        source, truth = (load_shipped(name).test for name in names)
        translated = translate_array(
            source, open_party(models[0]), open_party(models[1]), Asked(settings)
        ).translated
        thresholds = models[0].manifest.structure
        assert thresholds is not None
        partners = {
            "translations": [translated],
            "true_partners": [truth],
            "unrelated": [np.roll(truth, shift, axis=0) for shift in SHIFTS],
        }
        marked = {
            name: round(float(np.mean([doubtful(structure(source, one), thresholds) for one in stacks])), 3)
            for name, stacks in partners.items()
        }
        print(
            json.dumps(
                {
                    "pair": names,
                    "pictures": len(source),
                    "marked": marked,
                    "thresholds": thresholds.model_dump(),
                }
            )
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
