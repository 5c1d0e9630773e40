"""The table of calibration: what each way of telling the bridge how two domains correspond gains, both directions.

    python -m benchmarks.calibration.table                              measure what is missing
    python -m benchmarks.calibration.table --pairs satellite-relief --variants plain histogram
    python -m benchmarks.calibration.table --list                       the variants

One JSON a variant and directed pair below docs/benchmarks/calibration/table; one that is there for the same models and
settings is not measured again. All test pictures, one thread, float32; every figure with its bootstrap interval over
clusters of overlapping pictures. `python -m benchmarks.tables` makes the table of docs/quality.md from them.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import options
from benchmarks.calibration.directed import NAMED, OUT, Directed
from benchmarks.calibration.variants import VARIANTS, Variant
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.files import write_json

TABLE = OUT / "table"


def main() -> int:
    """Measure what is missing."""
    parser = options(__doc__)
    parser.add_argument("--pairs", nargs="+", choices=NAMED, default=[*NAMED], metavar="SOURCE-TARGET")
    parser.add_argument("--variants", nargs="+", default=[each.name for each in VARIANTS], metavar="NAME")
    parser.add_argument("--evaluations", type=int, default=24, help="of one leg")
    parser.add_argument(
        "--models", type=Path, help="folder of bundles, one a domain; default: those that ship"
    )
    parser.add_argument("--fresh", action="store_true", help="measure again what is there")
    parser.add_argument("--list", action="store_true", help="only name the variants")
    given = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [each for each in VARIANTS if each.name in given.variants]
    if given.list:
        print("\n".join(f"{each.name:28}{each.title}" for each in chosen))
        return 0
    settings = SolverSettings(evaluations=given.evaluations)
    for name in given.pairs:
        directed = Directed(*NAMED[name], given.models)
        for variant in chosen:
            if variant.when(directed):
                measured(directed, variant, settings, fresh=given.fresh)
    return 0


def measured(directed: Directed, variant: Variant, settings: SolverSettings, *, fresh: bool = False) -> None:
    """Measure a variant, unless its file is there for these models and settings."""
    path = TABLE / directed.name / f"{variant.name}.json"
    asked = {
        "variant": variant.name,
        "source": directed.source_name,
        "target": directed.target_name,
        # No figure depends on the thresholds in a bundle.
        "models": [
            b.manifest.model_copy(update={"structure": None}).digest().removeprefix("sha256:")
            for b in directed.bundles
        ],
        "settings": asdict(settings),
    }
    if path.exists() and not fresh:
        there = json.loads(path.read_text(encoding="utf-8"))
        if all(there[key] == json.loads(json.dumps(value)) for key, value in asked.items()):
            return
    started = time.process_time()
    made = variant.make(directed, settings)
    figures = directed.figures(made.translated, back=made.back, latent=made.latent)
    spent = round(time.process_time() - started, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path,
        {
            **asked,
            "count": len(made.translated),
            "clusters": len(set(directed.clusters.tolist())),
            "figures": figures,
            "truth": directed.truth_distance,
            "notes": made.notes or {},
            "cpu_seconds": spent,
            "torch": str(torch.__version__),
        },
    )
    print(directed.name, variant.name, f"{spent:.0f} s CPU", flush=True)


if __name__ == "__main__":
    sys.exit(main())
