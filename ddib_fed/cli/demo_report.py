"""Turns the files of the demo's translation into figures with bounds, a picture, and a table of what crossed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from ddib_fed.cli.delivery import write_durably
from ddib_fed.cli.output import number, print_table, size
from ddib_fed.evaluation.metrics import (
    SLICED_POINTS,
    cycle_error,
    domain_sliced_w2_floor,
    reference_points,
    sliced_w2,
)
from ddib_fed.evaluation.plots import translation
from ddib_fed.node.views import Part, Provenance

# What was promised at 48 evaluations a leg, on points of unit standard deviation.
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
        """Read what was sent and what the client wrote."""
        parts = (files[part] for part in (Part.LATENT, Part.TRANSLATION, Part.RETURNED))
        return cls(*(np.load(path, allow_pickle=False) for path in (source, *parts)))


@dataclass(frozen=True, slots=True)
class Bound:
    """A figure and the most that it may be."""

    name: str
    value: float
    bound: float
    ok: bool

    @classmethod
    def at_most(cls, name: str, value: float, bound: float) -> Bound:
        """Whether `value` is within it; a figure that is no number is not."""
        return cls(name, value, bound, bool(value <= bound))


@dataclass(frozen=True, slots=True)
class Figures:
    """What the demo measures."""

    count: int
    steps: int
    cycle: Mapping[str, float]
    sliced_w2: float
    sliced_w2_floor: float
    latent: Mapping[str, float]
    wire_bytes: int
    bounds: tuple[Bound, ...]


def measure(clouds: Clouds, provenance: Provenance, domain: str) -> Figures:
    """Compare the files that the client wrote with what it sent and with the target's domain."""
    cycle = cycle_error(clouds.source, clouds.returned)
    count = min(len(clouds.target), SLICED_POINTS)
    distance = sliced_w2(clouds.target, reference_points(domain, count))
    floor = domain_sliced_w2_floor(domain, count)
    bounds = (
        Bound.at_most("cycle.median", cycle["median"], CYCLE_MEDIAN),
        Bound.at_most("cycle.mean", cycle["mean"], CYCLE_MEAN),
        Bound.at_most("cycle.p99", cycle["p99"], CYCLE_P99),
        Bound.at_most("sliced_w2", distance, FLOOR_FACTOR * floor + FLOOR_MARGIN),
    )
    return Figures(
        count=len(clouds.source),
        steps=provenance.solver.evaluations,
        cycle={"median": cycle["median"], "mean": cycle["mean"], "p99": cycle["p99"], "max": cycle["max"]},
        sliced_w2=distance,
        sliced_w2_floor=floor,
        latent={"mean": float(clouds.latent.mean()), "std": float(clouds.latent.std())},
        wire_bytes=provenance.wire_bytes,
        bounds=bounds,
    )


def write_report(path: Path, figures: Figures, seconds: float) -> None:
    """The figures as JSON."""
    points = asdict(figures)
    bounds = points.pop("bounds")
    report = {"seconds": round(seconds, 3), "points": points, "bounds": list(bounds)}
    write_durably(path, (json.dumps(report, indent=2) + "\n").encode(), force=True, mode=0o666)


def draw(clouds: Clouds, figures: Figures, path: Path) -> None:
    """The four stages side by side, each point keeping its colour."""
    caption = (
        f"{figures.count:,} points, {figures.steps} evaluations a leg; cycle error median "
        f"{number(figures.cycle['median'])}, p99 {number(figures.cycle['p99'])}; sliced-W2 "
        f"{number(figures.sliced_w2)} (floor {number(figures.sliced_w2_floor)})"
    )
    translation(clouds.source, clouds.latent, clouds.target, clouds.returned, path, caption=caption)


def print_hops(clouds: Clouds, provenance: Provenance) -> None:
    """What happened at each hop, and who could see it; an institution goes by the first label of its name."""
    source, target = (
        name.partition(".")[0] for name in (provenance.source_institution, provenance.target_institution)
    )
    seconds = {name: f"{value:.1f}" for name, value in provenance.seconds.items()}
    steps, latent, file = provenance.solver.evaluations, clouds.latent.nbytes, clouds.source.nbytes
    back = provenance.wire_bytes - latent
    rows = [
        [f"alice > {source}", "the points, under a number", size(file), "", source],
        [source, f"encode: {steps} evaluations", "", seconds.get("encode", ""), source],
        [f"{source} > {target}", "the latent", size(latent), "", "both"],
        [target, f"decode, encode: 2 x {steps}", "", seconds.get("remote", ""), target],
        [f"{target} > {source}", "translation and its latent", size(back), "", "both"],
        [source, f"decode: {steps}, compare", "", seconds.get("return", ""), source],
        [f"{source} > alice", "translation, return, latent", size(3 * file), "", source],
    ]
    print_table("What happened at each hop", ["hop", "what", ">bytes", ">seconds", "seen by"], rows)
    click.echo(
        f"Neither node saw the other's model or training data, and {target} never saw the points. But a"
    )
    click.echo(
        "latent is an invertible encoding for whoever holds, or can train, a model like the sender's.\n"
    )


def print_bounds(figures: Figures) -> None:
    """Each figure beside its bound."""
    rows = [
        [b.name, number(b.value), number(b.bound), "ok" if b.ok else "OUT OF BOUNDS"] for b in figures.bounds
    ]
    print_table(
        f"{figures.count:,} points, {figures.steps} evaluations a leg",
        ["figure", ">value", ">at most", ""],
        rows,
    )
