"""What the table of calibration compares: each variant translates all test pictures of a directed pair."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibration.directed import BUILD, CALIBRATED, Directed
from ddib_fed.bridge.arrays import Asked, translate_array
from ddib_fed.bridge.calibration.aggregates import make_aggregate
from ddib_fed.bridge.calibration.files import read_calibration, write_calibration
from ddib_fed.bridge.calibration.fitting.rotation import degrees, nearest_orthogonal
from ddib_fed.bridge.local_party import LocalParty, only, open_party
from ddib_fed.bridge.party import Leg, ToDecode
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.latent import Latent
from ddib_fed.metrics.baselines import ColourMap, HistogramMatch, unchanged
from ddib_fed.metrics.pictures import Pictures
from ddib_fed.models.bundle import load_bundle
from ddib_fed.models.units.channel_map import ChannelMap
from ddib_fed.runs.calibration.making import Wanted, from_aggregate, side

DRAWS_OF_PAIRS = 5
"""Draws of k pairs that a colour map's figures are taken over: a few pairs may be lucky ones."""


def never(directed: Directed) -> bool:
    del directed
    return False


COMMAND = "python -m benchmarks.calibration.table"
ONCE = "aggregate once"


@dataclass(frozen=True)
class Made:
    """Translations of all test pictures."""

    translated: Pictures
    back: Pictures | None = None
    latent: np.ndarray | None = None
    notes: dict[str, Any] | None = None
    repeats: tuple[Pictures, ...] = ()


@dataclass(frozen=True)
class Variant:
    """One line of the table."""

    name: str
    title: str
    crosses: str
    make: Callable[[Directed, SolverSettings], Made]
    when: Callable[[Directed], bool] = bool

    def crosses_of(self, pair: str) -> str:
        return self.crosses.replace("CALIBRATION", "8 anchors" if pair.startswith("brain") else ONCE)


def bridged(directed: Directed, settings: SolverSettings, **asked: Any) -> Made:
    return through(directed, directed.parties, settings, **asked)


def through(
    directed: Directed, parties: tuple[LocalParty, LocalParty], settings: SolverSettings, **asked: Any
) -> Made:
    """By these models, by the ODE at full depth there and back; with the CPU seconds that it took."""
    started = time.process_time()
    asked = {"cycle": settings.depth == 1.0 and settings.encoder == "ode"} | asked
    found = translate_array(directed.test[0], *parties, Asked(settings, **asked))
    spent = round(time.process_time() - started, 1)
    return Made(found.translated, found.back, found.latent, {"translating_cpu_seconds": spent})


def unchanged_source(directed: Directed, settings: SolverSettings) -> Made:
    del settings
    x, truth = directed.test
    return Made(unchanged(x, truth.shape[1]))


def histogram(directed: Directed, settings: SolverSettings) -> Made:
    del settings
    own, target = directed.unpaired
    return Made(HistogramMatch.fit(own, target)(directed.test[0]))


def oracle(directed: Directed, settings: SolverSettings) -> Made:
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
    return tuple(bundle.manifest.normalisation.plain for bundle in directed.bundles)  # type: ignore[return-value]


def procrustes(directed: Directed, count: int, seed: int = 0) -> np.ndarray:
    """The rotation nearest to pairs of pixels, of determinant 1 (Kabsch, 1976), in the models' units, (C, C)."""
    u, v = (
        np.moveaxis(normalisation.apply(stack), 1, -1).reshape(-1, stack.shape[1])
        for normalisation, stack in zip(units(directed), directed.pairs(count, seed), strict=True)
    )
    return nearest_orthogonal(v.T.astype(np.float64) @ u, proper=True)


def nearest_signed_permutation(rotation: np.ndarray) -> np.ndarray:
    """Of the 2^C C! signed permutations the one nearest to a rotation (C, C)."""
    channels = len(rotation)
    every = (
        np.diag(signs)[list(order)]
        for order in itertools.permutations(range(channels))
        for signs in itertools.product((1.0, -1.0), repeat=channels)
    )
    best: np.ndarray = max(every, key=lambda one: float((one * rotation).sum()))
    return best


def decoded(directed: Directed, settings: SolverSettings, rotation: np.ndarray) -> Made:
    """The latents of `plain`, rotated, decoded by the target: what a calibrated leg gives, without encoding again."""
    kept = BUILD / directed.name / "plain.npz"
    latent = np.load(kept)["latent"] if kept.exists() else bridged(directed, settings).latent
    turned = np.einsum("ij,njhw->nihw", rotation, latent).astype(np.float32)
    items = (ToDecode(row, Latent.from_array(turned[row : row + 1])) for row in range(len(turned)))
    found = directed.parties[1].decode_each(items, Leg(settings))
    translated = np.concatenate([only(each).samples for each in found]).clip(-1.0, 1.0)
    return Made(translated, latent=turned, notes={"rotation": rotation.tolist()})


def rotation_of_pairs(count: int) -> Callable[[Directed, SolverSettings], Made]:
    return lambda directed, settings: decoded(directed, settings, procrustes(directed, count))


def signed_permutation(directed: Directed, settings: SolverSettings) -> Made:
    return decoded(directed, settings, nearest_signed_permutation(procrustes(directed, 512)))


def agreed(directed: Directed) -> tuple[ChannelMap, dict[str, Any]]:
    """The rotation from the target's noised aggregate without pairs, and how it was found."""
    path = CALIBRATED / f"{directed.name}-0-rotation.json"
    if not path.exists():
        path = BUILD / directed.name / "rotation.json"
    if not path.exists():
        aggregate = make_aggregate(directed.pictures[1].train, units(directed)[1], directed.target_name)
        own, target = (bundle.manifest for bundle in directed.bundles)
        wanted = Wanted("rotation", side(own), side(target), days=365, command=COMMAND, force=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        made = from_aggregate(directed.pictures[0].train, own.normalisation, aggregate, wanted)
        write_calibration(made, path)
    found = read_calibration(path)
    return found.map, {
        "rotation": found.map.matrix.tolist(),
        "effect": found.effect.model_dump(mode="json"),
        "made": found.made.model_dump(mode="json"),
        "degrees_from_pairs": degrees(found.map.matrix, procrustes(directed, 512)),
    }


def calibrated(depth: float = 1.0, encoder: str = "ode") -> Callable[[Directed, SolverSettings], Made]:
    """By the rotation without pairs, there and back."""

    def make(directed: Directed, settings: SolverSettings) -> Made:
        found, notes = agreed(directed)
        asked = replace(settings, depth=depth, encoder=encoder)
        made = bridged(directed, asked, calibration=found)
        return replace(made, notes={**(made.notes or {}), **notes})

    return make


def uncalibrated(depth: float = 1.0, encoder: str = "ode") -> Callable[[Directed, SolverSettings], Made]:
    return lambda directed, settings: bridged(directed, replace(settings, depth=depth, encoder=encoder))


def retrained(
    depth: float = 1.0, encoder: str = "ode", seeds: int | None = None
) -> Callable[[Directed, SolverSettings], Made]:
    """By source models that were trained on their own mapped pictures, one a seed."""

    def make(directed: Directed, settings: SolverSettings) -> Made:
        asked = replace(settings, depth=depth, encoder=encoder)
        made = [
            through(
                directed,
                (open_party(load_bundle(path)), directed.parties[1]),
                asked,
                cycle=number == 0 and depth == 1.0 and encoder == "ode",
            )
            for number, path in enumerate(trained(directed)[:seeds])
        ]
        notes = {**(made[0].notes or {}), "seeds": len(made)}
        return replace(made[0], notes=notes, repeats=tuple(each.translated for each in made[1:]))

    return make


def trained(directed: Directed) -> list[Path]:
    return sorted(path.parent for path in CALIBRATED.glob(f"{directed.name}-[0-9]/manifest.json"))


def colours(directed: Directed) -> bool:
    return directed.test[0].shape[1] > 1


def has_trained(directed: Directed) -> bool:
    return bool(trained(directed))


VARIANTS: tuple[Variant, ...] = (
    Variant("source", "source unchanged", "–", unchanged_source),
    Variant("histogram", "histogram matching", "quantiles", histogram),
    Variant("plain", "as shipped", "latent", bridged),
    Variant("calibrated", "**rotation without pairs**", f"latent, {ONCE}", calibrated(), colours),
    Variant("calibrated-0.7", "the same at depth .7", f"partial latent, {ONCE}", calibrated(0.7), colours),
    Variant("calibrated-0.5", "the same at depth .5", f"partial latent, {ONCE}", calibrated(0.5), colours),
    Variant(
        "retrained",
        "**source retrained on its mapped pictures**",
        "latent, CALIBRATION",
        retrained(),
        has_trained,
    ),
    Variant("retrained-0.85", "the same at depth .85", "partial latent, CALIBRATION", retrained(0.85), never),
    Variant(
        "retrained-0.7", "the same at depth .7", "partial latent, CALIBRATION", retrained(0.7), has_trained
    ),
    Variant(
        "retrained-0.5", "the same at depth .5", "partial latent, CALIBRATION", retrained(0.5), has_trained
    ),
    Variant(
        "retrained-mixed",
        "the same with the mixed encoder",
        "mixed latent, CALIBRATION",
        retrained(encoder="mixed", seeds=1),
        has_trained,
    ),
    Variant("linear", "linear encoder", "linear latent", uncalibrated(encoder="linear")),
    Variant(
        "linear-calibrated",
        "linear encoder and rotation",
        f"linear latent, {ONCE}",
        calibrated(encoder="linear"),
        colours,
    ),
    Variant("mixed", "mixed encoder", "mixed latent", uncalibrated(encoder="mixed")),
    Variant(
        "mixed-calibrated",
        "mixed encoder and rotation",
        f"mixed latent, {ONCE}",
        calibrated(encoder="mixed"),
        colours,
    ),
    Variant("oracle", "oracle: the truth's own latent, decoded", "–", oracle),
    Variant(
        "rotation-512-pairs",
        "rotation from pixels of 512 pairs",
        "latent, anchors",
        rotation_of_pairs(512),
        colours,
    ),
    Variant(
        "rotation-2-pairs",
        "rotation from pixels of 2 pairs",
        "latent, anchors",
        rotation_of_pairs(2),
        colours,
    ),
    Variant("signed", "nearest signed permutation of the channels", "latent, 6 bits", signed_permutation),
    Variant("tone", "the tone of 8 pairs alone, no model", "anchors", retrained(), never),
    *(
        Variant(f"colour-map-{k}", f"quadratic colour map on {k} pairs, no model", "anchors", colour_map(k))
        for k in (2, 8, 32)
    ),
)
