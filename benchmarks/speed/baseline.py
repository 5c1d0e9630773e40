"""The public code's procedure for points against our default: CPU seconds of a cycle at equal or better accuracy.

python -m benchmarks.speed.baseline [--short]

The public procedure is a network of 3,103,234 parameters and DDIM on the 4,000 integer steps that it was trained on,
in batches of 30,000 points, four legs a cycle. Its cost is that of a few such steps times their number. Its accuracy is
that of its solver on its grid: both solvers integrate the ODEs of our shipped models, so that what differs is the
solver alone, and both are held against rk4 in float64 with 800 evaluations a leg.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
import torch
from torch import Tensor

from benchmarks.speed.shared.harness import Form, Report, interleaved, main, ratio
from ddib_fed.datasets.synthetic import sample
from ddib_fed.diffusion.bridge import Side, integrate
from ddib_fed.diffusion.denoiser import Denoiser
from ddib_fed.diffusion.plans import SolverSettings, plan
from ddib_fed.metrics.points import CycleError, cycle_error
from ddib_fed.models.shipped import pretrained
from ddib_fed.networks.configs import SyntheticConfig
from ddib_fed.networks.placement import keep_freed_memory
from ddib_fed.networks.registry import build_network

PAIR: Final = ("moons", "checkerboards")
CYCLE_POINTS: Final = 90_000
PUBLIC_BATCH: Final = 30_000
PUBLIC_STEPS: Final = 4_000
LEGS: Final = 4
OUR_BATCH: Final = 2_000
PUBLIC: Final = SolverSettings("ddim", 1, PUBLIC_STEPS, "integer")
DEFAULT: Final = SolverSettings()
CHEAPER: Final = SolverSettings("unipc", 3, 24)
REFERENCE: Final = SolverSettings("rk4", 4, 800)


def measure(form: Form) -> Report:
    """CPU seconds of a cycle of 90,000 points, and how far each solver is from the converged answer."""
    torch.set_num_threads(1)
    keep_freed_memory()
    report = Report(
        f"A cycle {PAIR[0]} -> {PAIR[1]} -> {PAIR[0]} of 90,000 points: the public procedure (network of 3,103,234 "
        "parameters, DDIM, 4,000 integer steps a leg, batches of 30,000) against our default (shipped network of "
        f"396,834 parameters, {DEFAULT.solver}, {DEFAULT.evaluations} evaluations a leg, batches of {OUR_BATCH:,}); "
        "CPU seconds, one thread."
    )
    _costs(report, form.pick(4_000, CYCLE_POINTS), form.pick(2, 4), form.pick(3, 3))
    _errors(report, form.pick(200, 2_000))
    return report


def _costs(report: Report, points: int, steps: int, repeats: int) -> None:
    """Of both procedures by turns; of the public one by some of its steps."""
    sides = tuple(pretrained(name).side() for name in PAIR)
    x = torch.from_numpy(sample(PAIR[0], points, 0))
    candidates: dict[str, Callable[[], float]] = {
        "public procedure": partial(_public_cycle, steps),
        f"ours, {DEFAULT.evaluations} evaluations": partial(_our_cycle, sides, x, DEFAULT),
        f"ours, {CHEAPER.evaluations} evaluations": partial(_our_cycle, sides, x, CHEAPER),
    }
    for warm in candidates.values():
        warm()
    times = interleaved(candidates, repeats)
    public, ours, cheaper = candidates
    report.add_times(times, "CPU s a cycle")
    report.bound(f"CPU of the public procedure / {ours}", ratio(times, public, ours), at_least=1_000)
    report.add(f"CPU of the public procedure / {cheaper}", ratio(times, public, cheaper), "x")
    report.note(
        f"The public procedure is extrapolated: {steps} of its {LEGS * PUBLIC_STEPS:,} steps were measured, on "
        "30,000 of the 90,000 points, with its network as this package computes it, and random weights."
    )
    if points < CYCLE_POINTS:
        report.note(f"Ours is extrapolated: {points:,} of the 90,000 points were measured.")


def _public_cycle(steps: int) -> float:
    """CPU seconds of the whole cycle, from some steps of one batch."""
    network = build_network(SyntheticConfig()).eval()
    solve = plan(PUBLIC, pretrained(PAIR[0]).schedule).encoder
    denoiser = Denoiser(network, "eps", "timestep")
    x = torch.from_numpy(sample(PAIR[0], PUBLIC_BATCH, 0))
    with torch.no_grad():
        solver = solve(x)
        query = next(solver)
        query = solver.send(denoiser(query.x, query.level, query.cond))  # what is made once
        begun = time.process_time()
        for _ in range(steps):
            query = solver.send(denoiser(query.x, query.level, query.cond))
        spent = time.process_time() - begun
        solver.close()
    return spent / steps * LEGS * PUBLIC_STEPS * (CYCLE_POINTS // PUBLIC_BATCH)


def _our_cycle(sides: tuple[Side, ...], x: Tensor, settings: SolverSettings) -> float:
    begun = time.process_time()
    _cycle(sides, x, settings)
    return (time.process_time() - begun) * CYCLE_POINTS / len(x)


def _cycle(sides: tuple[Side, ...], x: Tensor, settings: SolverSettings) -> list[np.ndarray]:
    stages = []
    for side, encodes in ((sides[0], True), (sides[1], False), (sides[1], True), (sides[0], False)):
        x = _leg(side, x, settings, encodes=encodes)
        stages.append(x.numpy())
    return stages


def _leg(side: Side, x: Tensor, settings: SolverSettings, *, encodes: bool) -> Tensor:
    steps = plan(settings, side.schedule)
    start = steps.encoder if encodes else steps.decoder
    points = x.to(side.denoiser.dtype)
    return torch.cat([integrate(start(part), side.denoiser) for part in points.split(OUR_BATCH)])


def _errors(report: Report, points: int) -> None:
    """Of the translated points and of the cycle, for each solver on the shipped models."""
    bundles = [pretrained(name) for name in PAIR]
    x = torch.from_numpy(sample(PAIR[0], points, 0))
    exact = tuple(bundle.side(torch.float64) for bundle in bundles)
    latent = _leg(exact[0], x, REFERENCE, encodes=True)
    converged = _leg(exact[1], latent, REFERENCE, encodes=False).numpy()
    sides = tuple(bundle.side() for bundle in bundles)
    found: dict[str, tuple[CycleError, CycleError]] = {}
    for name, settings in (("public solver", PUBLIC), ("default", DEFAULT), ("24 evaluations", CHEAPER)):
        stages = _cycle(sides, x, settings)
        found[name] = cycle_error(converged, stages[1]), cycle_error(x.numpy(), stages[3])
        for what, error in zip(("translated point", "cycle"), found[name], strict=True):
            report.add(f"error of the {what}, {name}, mean", [error["mean"]], "std")
            report.add(f"error of the {what}, {name}, median", [error["median"]], "std")
    for index, what in enumerate(("translated point", "cycle")):
        for figure in ("mean", "median"):
            ratios = [found["default"][index][figure] / found["public solver"][index][figure]]
            report.bound(f"error of the {what}, {figure}: default / public solver", ratios, at_most=1.0)
    report.note(
        f"Errors are of {points:,} points against rk4 in float64 with {REFERENCE.evaluations} evaluations a leg, in "
        "units of the domains' deviation; docs/benchmarks/solvers has them for 10,000 points on three pairs."
    )


if __name__ == "__main__":
    raise SystemExit(main("baseline", measure))
