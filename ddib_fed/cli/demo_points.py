"""The demo's points: translated and returned through two nodes, with figures.

Figures come from the files that the client wrote, not from the nodes' own reports.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddib_fed.cli.demo_nodes import Bound, Outcome, Pair, Site
from ddib_fed.cli.output import number, print_table, size
from ddib_fed.client.client import JobRequest
from ddib_fed.data.synthetic import sample
from ddib_fed.engine.record import Part, Translation
from ddib_fed.evaluation.metrics import (
    SLICED_POINTS,
    cycle_error,
    domain_sliced_w2_floor,
    reference_points,
    sliced_w2,
)
from ddib_fed.evaluation.plots import translation
from ddib_fed.protocol.messages import Settings
from ddib_fed.terminal import say

PAIR = ("moons", "checkerboards")
"""Source and target domain."""
INSTITUTIONS = ("north.example", "south.example")
PERSON = "alice"
STEPS = 48
SEED = 1
# The bounds at 48 evaluations per leg, on points of unit standard deviation.
CYCLE_MEDIAN = 3e-4
CYCLE_MEAN = 1e-3
CYCLE_P99 = 5e-3
FLOOR_FACTOR = 1.5
FLOOR_MARGIN = 0.01

Points = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Clouds:
    """The same points at each stage, (N, 2) each."""

    source: Points
    latent: Points
    target: Points
    returned: Points

    @classmethod
    def load(cls, source: Path, files: Mapping[Part, Path]) -> Clouds:
        parts = (files[part] for part in (Part.LATENT, Part.TRANSLATION, Part.RETURNED))
        return cls(*(np.load(path, allow_pickle=False) for path in (source, *parts)))


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of points; the report's object."""

    count: int
    steps: int
    cycle: Mapping[str, float]
    sliced_w2: float
    sliced_w2_floor: float
    latent: Mapping[str, float]
    wire_bytes: int

    def bounds(self) -> tuple[Bound, ...]:
        """Their bounds."""
        return (
            Bound.at_most("cycle.median", self.cycle["median"], CYCLE_MEDIAN),
            Bound.at_most("cycle.mean", self.cycle["mean"], CYCLE_MEAN),
            Bound.at_most("cycle.p99", self.cycle["p99"], CYCLE_P99),
            Bound.at_most("sliced_w2", self.sliced_w2, FLOOR_FACTOR * self.sliced_w2_floor + FLOOR_MARGIN),
        )


def sites(models: Mapping[str, Path]) -> tuple[Site, Site]:
    """The two institutions, with `models` by domain instead of the shipped ones."""
    source, target = (
        Site(name, domain, models.get(domain)) for name, domain in zip(INSTITUTIONS, PAIR, strict=True)
    )
    return source, target


def translate_points(pair: Pair, points: int) -> Outcome:
    """Draw points, translate them there and back through both nodes, and measure and plot the results."""
    path = pair.out / "points.npy"
    np.save(path, sample(pair.source.domain, points, SEED))
    request = JobRequest(pair.to, Settings(evaluations=STEPS), cycle=True, keep_latent=True)
    delivered = pair.translate([path], request, pair.out / "translated", shown=str(path))[0]
    clouds = Clouds.load(path, delivered.files)
    print_hops(clouds, delivered.provenance, pair.person)
    figures = measure(clouds, delivered.provenance, pair.target.domain)
    drawn = pair.out / "translation.png"
    draw(clouds, figures, drawn)
    title = f"{figures.count:,} points, {figures.steps} evaluations a leg"
    return Outcome("points", title, asdict(figures), figures.bounds(), (drawn,))


def measure(clouds: Clouds, provenance: Translation, domain: str) -> Figures:
    """Compare the files that the client wrote with what it sent and with the target's domain."""
    cycle = cycle_error(clouds.source, clouds.returned)
    count = min(len(clouds.target), SLICED_POINTS)
    return Figures(
        count=len(clouds.source),
        steps=provenance.solver.evaluations,
        cycle={"median": cycle["median"], "mean": cycle["mean"], "p99": cycle["p99"], "max": cycle["max"]},
        sliced_w2=sliced_w2(clouds.target, reference_points(domain, count)),
        sliced_w2_floor=domain_sliced_w2_floor(domain, count),
        latent={"mean": float(clouds.latent.mean()), "std": float(clouds.latent.std())},
        wire_bytes=provenance.wire_bytes,
    )


def draw(clouds: Clouds, figures: Figures, path: Path) -> None:
    """The four stages side by side, each point keeping its colour."""
    caption = (
        f"{figures.count:,} points, {figures.steps} evaluations a leg; cycle error median "
        f"{number(figures.cycle['median'])}, p99 {number(figures.cycle['p99'])}; sliced-W2 "
        f"{number(figures.sliced_w2)} (floor {number(figures.sliced_w2_floor)})"
    )
    translation(clouds.source, clouds.latent, clouds.target, clouds.returned, path, caption=caption)


def print_hops(clouds: Clouds, provenance: Translation, person: str) -> None:
    """Table of each hop and who could see it; an institution is named by its first label."""
    source, target = (
        name.partition(".")[0] for name in (provenance.source_institution, provenance.target_institution)
    )
    seconds = {name: f"{value:.1f}" for name, value in provenance.seconds.items()}
    steps, latent, file = provenance.solver.evaluations, clouds.latent.nbytes, clouds.source.nbytes
    back = provenance.wire_bytes - latent
    rows = [
        [f"{person} > {source}", "the points, under a number", size(file), "", source],
        [source, f"encode: {steps} evaluations", "", seconds.get("encode", ""), source],
        [f"{source} > {target}", "the latent", size(latent), "", "both"],
        [target, f"decode, encode: 2 x {steps}", "", seconds.get("remote", ""), target],
        [f"{target} > {source}", "translation and its latent", size(back), "", "both"],
        [source, f"decode: {steps}, compare", "", seconds.get("return", ""), source],
        [f"{source} > {person}", "translation, return, latent", size(3 * file), "", source],
    ]
    print_table("What happened at each hop", ["hop", "what", ">bytes", ">seconds", "seen by"], rows)
    say(f"Neither node saw the other's model or training data, and {target} never saw the points. But a")
    say("latent is an invertible encoding for anyone who has, or can train, a model like the sender's.", "")
