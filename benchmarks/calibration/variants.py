"""What the table of calibration compares: each variant translates all test pictures of a directed pair."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.calibration.directed import Directed
from ddib_fed.bridge.arrays import Asked, translate_array
from ddib_fed.bridge.local_party import LocalParty
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.metrics.baselines import ColourMap, HistogramMatch, unchanged
from ddib_fed.metrics.gaussian_bridge import GaussianBridge
from ddib_fed.metrics.pictures import Pictures

DRAWS_OF_PAIRS = 5
"""Draws of k pairs that a colour map's figures are taken over: a few pairs may be lucky ones."""


@dataclass(frozen=True)
class Made:
    """Translations of all test pictures.

    Attributes:
        translated: In [-1, 1].
        back: The returned sources; None where there is no way back.
        latent: What crossed; None for nothing.
        notes: Further values for the JSON.
        repeats: Further translations by other draws or seeds; figures of pairs are means over all.
    """

    translated: Pictures
    back: Pictures | None = None
    latent: np.ndarray | None = None
    notes: dict[str, Any] | None = None
    repeats: tuple[Pictures, ...] = ()


@dataclass(frozen=True)
class Variant:
    """One line of the table.

    Attributes:
        name: Of its JSON.
        title: In the table.
        crosses: What crosses between the institutions besides a signature.
        make: Translates.
        when: Of which directed pairs.
    """

    name: str
    title: str
    crosses: str
    make: Callable[[Directed, SolverSettings], Made]
    when: Callable[[Directed], bool] = bool


def bridged(directed: Directed, settings: SolverSettings, **asked: Any) -> Made:
    """By both models, there and back."""
    return through(directed, directed.parties, settings, **asked)


def through(
    directed: Directed, parties: tuple[LocalParty, LocalParty], settings: SolverSettings, **asked: Any
) -> Made:
    """By these models, there and back; with the CPU seconds of both ways."""
    started = time.process_time()
    found = translate_array(directed.test[0], *parties, Asked(settings, cycle=True, **asked))
    spent = round(time.process_time() - started, 1)
    return Made(found.translated, found.back, found.latent, {"translating_cpu_seconds": spent})


def unchanged_source(directed: Directed, settings: SolverSettings) -> Made:
    """The source itself."""
    del settings
    x, truth = directed.test
    return Made(unchanged(x, truth.shape[1]))


def histogram(directed: Directed, settings: SolverSettings) -> Made:
    """Each channel's quantiles, unpaired."""
    del settings
    own, target = directed.unpaired
    return Made(HistogramMatch.fit(own, target)(directed.test[0]))


def gaussian(directed: Directed, settings: SolverSettings) -> Made:
    """The closed form in the models' units."""
    del settings
    return Made(GaussianBridge.fit(*directed.unpaired, units=units(directed))(directed.test[0]))


def oracle(directed: Directed, settings: SolverSettings) -> Made:
    """The truth, encoded and decoded by the target's own model."""
    target = directed.parties[1]
    found = translate_array(directed.test[1], target, target, Asked(settings))
    return Made(found.translated, latent=found.latent)


def colour_map(count: int) -> Callable[[Directed, SolverSettings], Made]:
    """A quadratic map fitted on so many pairs, no model."""

    def make(directed: Directed, settings: SolverSettings) -> Made:
        del settings
        maps = [
            ColourMap.fit(*directed.pairs(count, seed))(directed.test[0]) for seed in range(DRAWS_OF_PAIRS)
        ]
        return Made(maps[0], repeats=tuple(maps[1:]), notes={"draws": DRAWS_OF_PAIRS})

    return make


def units(directed: Directed) -> tuple[Any, Any]:
    """The normalisations of both models, without a calibration."""
    return tuple(bundle.manifest.normalisation.plain for bundle in directed.bundles)  # type: ignore[return-value]


def at_depth(settings: SolverSettings, depth: float) -> SolverSettings:
    """The same to a partial depth."""
    return replace(settings, depth=depth)


VARIANTS: tuple[Variant, ...] = (
    Variant("source", "source unchanged", "–", unchanged_source),
    Variant("histogram", "histogram matching", "quantiles", histogram),
    Variant("gaussian", "Gaussian bridge in closed form", "mean and spectrum", gaussian),
    Variant("plain", "as shipped", "the latent", bridged),
    Variant("oracle", "oracle: the truth's own latent, decoded", "–", oracle),
    *(
        Variant(
            f"colour-map-{k}", f"quadratic colour map on {k} pairs, no model", f"{k} anchors", colour_map(k)
        )
        for k in (2, 8, 32)
    ),
)
