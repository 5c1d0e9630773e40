"""Solvers side by side on three pairs of domains: cost, cycle error, error against a converged reference.

    python -m benchmarks.points.solvers                    measure what is missing
    python -m benchmarks.points.solvers --pair 0           one pair; another process may take another

One JSON per (pair, setting) under docs/benchmarks/solvers; what is there for the same models is not measured again,
and a leg that was finished before a stop is taken from build/benchmarks. 10,000 points, one thread, float32; the
reference is rk4 in float64 with 800 evaluations a leg, held against 400.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import options
from ddib_fed.datasets import sample
from ddib_fed.diffusion.plans import SolverSettings, plan
from ddib_fed.diffusion.schedule import make_grid
from ddib_fed.diffusion.solvers import integrate
from ddib_fed.files import write_json
from ddib_fed.metrics import cycle_error
from ddib_fed.models.bundle import Bundle, pretrained

ROOT = Path(__file__).resolve().parents[2]
OUT = ROOT / "docs" / "benchmarks" / "solvers"
PAIRS = (
    ("moons", "checkerboards"),
    ("concentric-rings", "parallel-squares"),
    ("concentric-squares", "parallel-rings"),
)


# The cheap ones first, so that a table is there soon; the last is the public code's number of steps on its grid.
SETTINGS = (
    *(SolverSettings("unipc", 3, evaluations) for evaluations in (24, 48, 100)),
    SolverSettings("ddim", 1, 4000, "integer"),
)

LEGS = ROOT / "build" / "benchmarks"
POINTS = 10_000
BATCH = 2_000
REFERENCES = 800, 400
"""Evaluations of the classical Runge-Kutta rule of order 4."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--pair", type=int, choices=range(len(PAIRS)), help="Only this pair.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    measure_all(PAIRS if given.pair is None else (PAIRS[given.pair],))


class Legs:
    """Points after each leg of a pair; finished legs are kept under build/benchmarks, by the models' digests."""

    def __init__(self, source: Bundle, target: Bundle, dtype: torch.dtype) -> None:
        self.bundles = source, target
        self.sides = [(bundle.denoiser(dtype), bundle.schedule) for bundle in (source, target)]
        digest = hashlib.sha256(f"{source.digest} {target.digest} {POINTS}".encode()).hexdigest()[:16]
        self.folder = LEGS / digest
        self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str, compute: Any) -> tuple[list[np.ndarray], float]:
        """Arrays and CPU seconds of a leg, from disk or from `compute()`."""
        path = self.folder / f"{name}.npz"
        if not path.exists():
            start = time.process_time()
            arrays = compute()
            spent = time.process_time() - start
            scratch = path.with_suffix(".tmp.npz")
            np.savez(scratch, *arrays, spent=spent)
            scratch.rename(path)
        with np.load(path) as stored:
            return [stored[f"arr_{i}"] for i in range(len(stored.files) - 1)], float(stored["spent"])


def measure_all(pairs: tuple[tuple[str, str], ...]) -> None:
    for setting in SETTINGS:
        for pair in pairs:
            measure(*pair, setting)


def measure(source: str, target: str, setting: SolverSettings) -> None:
    """One setting on one pair, unless its file is there for these models."""
    bundles = pretrained(source), pretrained(target)
    digests = [bundle.digest for bundle in bundles]
    path = OUT / f"{source}--{target}" / f"{_key(setting)}.json"
    if path.exists() and json.loads(path.read_text())["digests"] == digests:
        return
    x = sample(source, POINTS, 0)
    latent, translated, gap = reference(Legs(*bundles, torch.float64), x)
    stages, spent = cycle(Legs(*bundles, torch.float32), x, setting)
    figures = {
        "source": source,
        "target": target,
        "digests": digests,
        "solver": setting.solver,
        "grid": setting.grid,
        "evaluations": setting.evaluations,
        "points": POINTS,
        "cpu_seconds": round(spent, 2),
        "cycle": cycle_error(x, stages[3]),
        "latent_error": cycle_error(latent, stages[0]),
        "target_error": cycle_error(translated, stages[1]),
        "reference_gap": gap,
        "torch": str(torch.__version__),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, figures)
    print(
        source, target, _key(setting), f"{spent:.0f} s", figures["cycle"], figures["target_error"], flush=True
    )


def _key(setting: SolverSettings) -> str:
    return f"{setting.solver}-{setting.evaluations}" + (
        "" if setting.grid == "default" else f"-{setting.grid}"
    )


def reference(legs: Legs, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Latent and target in float64 by the finer reference, and how far the coarser one is from it."""
    found = []
    for count in REFERENCES:
        (latent,), _ = legs.get(
            f"reference-{count}-encode", lambda n=count: [runge_kutta(legs.sides[0], x, n, True)]
        )
        (target,), _ = legs.get(
            f"reference-{count}-decode", lambda n=count, z=latent: [runge_kutta(legs.sides[1], z, n, False)]
        )
        found.append((latent, target))
    return found[0][0], found[0][1], dict(cycle_error(found[0][1], found[1][1]))


def runge_kutta(side: Any, points: np.ndarray, evaluations: int, encoding: bool) -> np.ndarray:
    """One leg by the rule of order 4, four evaluations an interval of the default grid."""
    denoiser, schedule = side
    grid = make_grid(schedule, "default", evaluations // 4)
    found = []
    for x in torch.from_numpy(points).to(denoiser.dtype).split(BATCH):
        for here, there in pairwise(grid.levels if encoding else grid.reversed().levels):
            h = there.phi - here.phi
            middle = schedule.level(-math.log(math.tan(0.5 * (here.phi + there.phi))))
            with torch.no_grad():
                first = denoiser(x, here)
                second = denoiser(x + first * (h / 2), middle)
                third = denoiser(x + second * (h / 2), middle)
                x = x + (first + 2 * second + 2 * third + denoiser(x + third * h, there)) * (h / 6)  # noqa: PLW2901
        found.append(x)
    return torch.cat(found).numpy()


def run(side: Any, x: np.ndarray, settings: SolverSettings, encoding: bool) -> np.ndarray:
    """One leg, by a denoiser and its schedule."""
    denoiser, schedule = side
    steps = plan(settings, schedule)
    start = steps.encoder if encoding else steps.decoder
    points = torch.from_numpy(x).to(denoiser.dtype)
    return torch.cat([integrate(start(part), denoiser) for part in points.split(BATCH)]).numpy()


def cycle(legs: Legs, x: np.ndarray, setting: SolverSettings) -> tuple[list[np.ndarray], float]:
    """The stages after each of four legs, and the CPU seconds of them all."""
    stages: list[np.ndarray] = []
    total, points = 0.0, x
    for number, (side, encoding) in enumerate(((0, True), (1, False), (1, True), (0, False))):
        (points,), spent = legs.get(
            f"{_key(setting)}-{number}",
            lambda p=points, s=side, e=encoding: [run(legs.sides[s], p, setting, e)],
        )
        stages.append(points)
        total += spent
    return stages, total


if __name__ == "__main__":
    main()
