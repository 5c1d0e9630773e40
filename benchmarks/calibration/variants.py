"""What the table of calibration compares: each variant translates all test pictures of a directed pair."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.calibration.directed import BUILD, CALIBRATED, Directed
from ddib_fed.calibration.aggregate import count_array
from ddib_fed.calibration.record import Calibration
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.arrays import ArraySettings
from ddib_fed.metrics import Pictures, histogram_match
from ddib_fed.training.calibrating import CalibrationRequest, Ends, from_aggregate, side
from tests.engine.stages import translate_array

COMMAND = "python -m benchmarks.calibration.table"


@dataclass(frozen=True)
class Made:
    """Translations of all test pictures."""

    translated: Pictures
    back: Pictures | None = None
    latent: np.ndarray | None = None
    notes: dict[str, Any] | None = None


@dataclass(frozen=True)
class Variant:
    """One line of the table."""

    name: str
    title: str
    make: Callable[[Directed, SolverSettings], Made]
    when: Callable[[Directed], bool] = bool


def bridged(directed: Directed, settings: SolverSettings, **asked: Any) -> Made:
    """By the models, there and back where the whole ODE encodes; with the CPU seconds that it took."""
    started = time.process_time()
    asked = {"cycle": settings.depth == 1.0 and settings.share == 1.0} | asked
    found = translate_array(directed.test[0], *directed.parties, ArraySettings(settings, **asked))
    spent = round(time.process_time() - started, 1)
    return Made(found.translated, found.back, found.latent, {"translating_cpu_seconds": spent})


def histogram(directed: Directed, settings: SolverSettings) -> Made:
    del settings
    return Made(histogram_match(directed.test[0], *directed.unpaired))


def agreed(directed: Directed) -> tuple[Calibration, dict[str, Any]]:
    """The rotation from the target's noised aggregate without pairs, and how it was found."""
    path = CALIBRATED / f"{directed.name}-0-rotation.json"
    if not path.exists():
        path = BUILD / directed.name / "rotation.json"
    if not path.exists():
        own, target = (bundle.manifest for bundle in directed.bundles)
        units = own.normalisation.plain, target.normalisation.plain
        aggregate = count_array(directed.pictures[1].train, units[1], directed.target_name).noised(1.0)
        wanted, ends = CalibrationRequest(days=365, force=True), Ends(side(own), ("", target.domain), COMMAND)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = from_aggregate(directed.pictures[0].train, units, aggregate, wanted, ends)
        made.save(path)
    found = Calibration.open(path)
    return found, {
        "rotation": found.map.matrix.tolist(),
        "effect": found.effect.model_dump(mode="json"),
        "made": found.made.model_dump(mode="json"),
    }


def alone(directed: Directed, settings: SolverSettings) -> Made:
    del settings
    return Made(agreed(directed)[0].alone(directed.test[0]))


def calibrated(blend: float = 0.0, **changes: float) -> Callable[[Directed, SolverSettings], Made]:
    """By the rotation without pairs, there and back."""

    def make(directed: Directed, settings: SolverSettings) -> Made:
        found, notes = agreed(directed)
        made = bridged(directed, replace(settings, **changes), calibration=found.map)
        mixed = (1.0 - blend) * made.translated + blend * found.alone(directed.test[0])
        return replace(made, translated=mixed.astype(np.float32), notes={**(made.notes or {}), **notes})

    return make


def colours(directed: Directed) -> bool:
    return directed.test[0].shape[1] > 1


VARIANTS: tuple[Variant, ...] = (
    Variant("histogram", "histogram matching", histogram),
    Variant("plain", "as shipped", bridged),
    Variant("calibrated", "rotation without pairs", calibrated(), colours),
    Variant("rotation-alone", "the rotation alone, no model", alone, colours),
    Variant("rotation-dial", "at the dial's proposal", calibrated(0.3, share=0.75, temperature=0.9), colours),
)
