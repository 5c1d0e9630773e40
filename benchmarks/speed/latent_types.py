"""What rounding latents to 16 bits does to translations, beside what the solver does.

    python -m benchmarks.speed.latent_types [--short]

Shipped pairs, samples that no training saw. Each is translated with float32 latents at the default 48 evaluations, with
float16 and bfloat16 ones, and, for the solver's own error, with float32 ones at 200. Softening has the same noise in
all of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks.speed.shared.harness import Form, Report, main
from benchmarks.speed.shared.two_nodes import EVALUATIONS
from ddib_fed.bridge.local_party import LocalParty, open_party
from ddib_fed.bridge.party import Failed, Leg
from ddib_fed.bridge.translate import Item, translate
from ddib_fed.datasets.shipped import load_shipped
from ddib_fed.datasets.synthetic import sample
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.models.shipped import open_bundle

Array = NDArray[np.float32]
REFERENCE = 200
NARROW = ("float16", "bfloat16")
POINT_SEED = 90_210


def party(domain: str) -> LocalParty:
    return open_party(open_bundle(domain), threads=1)


def items(samples: Array) -> Iterator[Item]:
    """Points as one item, pictures as one each, with noise that depends on the number alone."""

    def noise(number: int, normalised: Array) -> Array:
        return np.random.default_rng(number).standard_normal(normalised.shape, dtype=np.float32)

    if samples.ndim == 2:
        yield Item(0, samples)
        return
    for number, each in enumerate(samples):
        yield Item(number, each[None], noise=lambda given, number=number: noise(number, given))


def translated(pair: tuple[LocalParty, LocalParty], samples: Array, leg: Leg) -> Array:
    """The translations, one under the other, in the units of the data."""
    found = {}
    for outcome in translate(*pair, items(samples), leg):
        if isinstance(outcome, Failed):
            raise outcome.error
        found[outcome.item.number] = outcome.decoded.samples
    return np.concatenate([found[number] for number in sorted(found)])


def measure_pair(report: Report, source: str, target: str, samples: Array, unit: str) -> None:
    """Errors of rounding, and of the solver, on one pair."""
    pair = party(source), party(target)
    usual = SolverSettings(evaluations=EVALUATIONS)
    exact = translated(pair, samples, Leg(usual))
    reference = translated(pair, samples, Leg(SolverSettings(evaluations=REFERENCE)))
    others = {f"solver at {EVALUATIONS}": reference}
    for name in NARROW:
        others[f"{name} latents"] = translated(pair, samples, Leg(usual, latent_type=name))
    medians = {}
    for what, other in others.items():
        difference = (other - exact).reshape(len(exact), -1).astype(np.float64)
        distance = np.linalg.norm(difference, axis=1)
        if samples.ndim == 4:
            distance /= np.sqrt(difference.shape[1])  # root mean square over the values of a picture
        medians[what] = float(np.median(distance))
        named = f"{source} to {target}, {what}"
        report.add(f"{named}: median", [medians[what]], unit)
        report.add(f"{named}: mean", [float(distance.mean())], unit)
        report.add(f"{named}: 99 in 100 below", [float(np.quantile(distance, 0.99))], unit)
    solver = medians[f"solver at {EVALUATIONS}"]
    for name in NARROW:
        report.add(f"{source} to {target}, {name} / solver", [medians[f"{name} latents"] / solver], "")


def measure(form: Form) -> Report:
    """Errors of latents of 16 bits beside the solver's."""
    report = Report(
        f"Distance of translations from those with float32 latents at {EVALUATIONS} evaluations: of the solver (the "
        f"same at {REFERENCE}), and of latents rounded to 16 bits. Points: L2 at unit deviation; pictures: root mean "
        "square, in [-1, 1]."
    )
    for source, target in (("moons", "checkerboards"), ("concentric-rings", "parallel-rings")):
        points = sample(source, form.pick(500, 2_000), POINT_SEED)
        measure_pair(report, source, target, points, "std")
    pictures = load_shipped("satellite").test
    chosen = pictures[:: max(1, len(pictures) // form.pick(4, 16))][: form.pick(4, 16)]
    measure_pair(report, "satellite", "relief", chosen, "")
    return report


if __name__ == "__main__":
    raise SystemExit(main("latent_types", measure))
