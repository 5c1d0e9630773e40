"""The page of a rehearsal (`ddib try`): two folders, two models, two directions, and what to try next.

Advice is based on a figure on the page, and names it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddib_fed.metrics.judgement import Figures
from ddib_fed.metrics.latents import WHITE_RATIO
from ddib_fed.metrics.sample_verdict import SampleVerdict
from ddib_fed.models.manifest import Manifest
from ddib_fed.reports import html
from ddib_fed.reports.html import Cell, Html
from ddib_fed.reports.tables import tables

FEW_PICTURES = 1000
POOR_CYCLE_DB = 30.0
STD_BOUNDS = (0.97, 1.03)
RISEN = 1.05
NEAR = 0.5
MORE_TIME = "The same command with more --time trains on from here."


@dataclass(frozen=True, slots=True)
class SideFound:
    """One folder and its model."""

    folder: Path
    lines: tuple[str, ...]
    pictures: int
    manifest: Manifest
    bundle: Path
    loss_chart: bytes
    samples: bytes
    held_out: bytes | None
    held_out_losses: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class WayFound:
    """One direction, on held-out pictures."""

    title: str
    folder: Path
    report: Figures
    sheet: bytes | None
    notes: tuple[str, ...] = ()


def write_rehearsal(
    path: Path, sides: tuple[SideFound, SideFound], ways: tuple[WayFound, WayFound], shared: Sequence[str]
) -> None:
    """Write the page; it appears completely or not at all."""
    names = " and ".join(side.manifest.domain for side in sides)
    parts = [html.heading("What to try next"), *map(html.paragraph, advice(sides, ways, shared))]
    for way in ways:
        parts += _way(way)
    for side in sides:
        parts += _side(side)
    html.write_page(path, f"Rehearsal of {names}", parts)


def advice(
    sides: tuple[SideFound, SideFound], ways: tuple[WayFound, WayFound], shared: Sequence[str]
) -> list[str]:
    """What to try next, the most important first."""
    found: list[str] = []
    if shared:
        found.append(
            f"{len(shared)} pictures are in both folders ({shared[0]}, for one): take them out of one. "
            "Two institutions would share none, so this rehearsal is too kind."
        )
    for side in sides:
        found += _of_side(side)
    for way in ways:
        found += _of_way(way)
    if not found:
        found.append("Nothing stands out. More training time is what usually helps next.")
    first, second = (shlex.quote(str(side.bundle)) for side in sides)
    found.append(
        f"Both models can be used as they are: ddib translate FOLDER --source {first} --target {second} --out DIR "
        "marks pictures that keep no more structure than unrelated ones share. A node serves a model by `bundle` "
        "under [model] in its node.toml."
    )
    return found


def _of_side(side: SideFound) -> list[str]:
    name, figures = side.manifest.domain, side.manifest.training.figures
    found = []
    verdict = SampleVerdict.of_figures(figures)
    if verdict is not None and verdict.level in {"not yet", "near"}:
        found.append(f"{name}: {verdict.sentence(side.manifest.training.steps)}. {MORE_TIME}")
    losses = side.held_out_losses
    if losses and losses[-1] > RISEN * min(losses):
        found.append(
            f"{name}: the held-out loss rose from {min(losses):.4f} to {losses[-1]:.4f}: the model begins to learn its "
            "pictures by heart. Train for less time, add pictures, or use --flip where mirrored pictures are possible."
        )
    elif losses and losses[-1] <= min(losses):
        found.append(f"{name}: the held-out loss ({losses[-1]:.4f}) was still falling. {MORE_TIME}")
    near, usual = (figures.get(f"nearest_training_picture{part}") for part in ("", "_held_out"))
    if near is not None and usual is not None and near < NEAR * usual:
        found.append(
            f"{name}: samples lie nearer to training pictures ({near:.4f}) than new pictures do ({usual:.4f}): "
            "the model repeats its pictures. Add pictures, or train for less time."
        )
    if side.pictures < FEW_PICTURES:
        found.append(f"{name}: {side.pictures} training pictures are few; every further one helps.")
    return found


def _of_way(way: WayFound) -> list[str]:
    report, found = way.report, []
    if way.sheet is None:
        found.append(
            f"{way.title}: no held-out picture has a latent that a node would let pass: train for longer, "
            "try more --evaluations, or --soften-sigma more."
        )
        return found
    cycle, kept, latent = (report.get(key) for key in ("cycle", "structure", "latent"))
    if cycle is not None and cycle["psnr"]["median"] < POOR_CYCLE_DB:
        found.append(
            f"{way.title}: the round trip reaches {cycle['psnr']['median']:.1f} dB: try more --evaluations, a smaller "
            "--soften-sigma, or a longer training."
        )
    if latent is not None:
        low, high = STD_BOUNDS
        if not low <= latent["std"] <= high or latent.get("ratio", 0.0) > WHITE_RATIO:
            found.append(
                f"{way.title}: latents have a standard deviation of {latent['std']:.3f} and {latent['ratio']:.2f} "
                "times the patch correlation of noise, so they still show the picture: train for longer, or "
                "--soften-sigma more."
            )
    if kept is not None and kept["chance"] is not None:
        edges, chance = kept["edge_correlation"]["median"], kept["chance"]["edge_correlation"]
        if edges < 2.0 * max(chance, 0.05):
            found.append(
                f"{way.title}: edges agree by {edges:.2f}, those of pictures that do not belong together by "
                f"{chance:.2f}: hardly any structure is kept. Start both models from one public bundle (ddib model "
                "train --init), train for longer, or try ddib translate --depth 0.6, which reveals more of the "
                "picture."
            )
    features = report.get("features")
    if features is not None:
        distance = features["distance"]
        if distance["translated"]["frechet_early"] >= distance["source"]["frechet_early"]:
            found.append(
                f"{way.title}: translations are no nearer to the target domain than their sources are "
                f"({distance['translated']['frechet_early']:.3g} and {distance['source']['frechet_early']:.3g}): the "
                "target's model needs more training."
            )
    return found


def _way(way: WayFound) -> list[Html]:
    caption = (
        f"{way.title}: held-out pictures, their translations, and what came back. All of it: {way.folder}"
    )
    parts = [html.heading(way.title)]
    if way.sheet is not None:
        parts.append(html.figure(way.sheet, caption))
    parts += [html.paragraph(note) for note in way.notes]
    for table in tables(way.report) if way.report else ():
        parts += [
            html.paragraph(table.title),
            html.table(table.columns, table.rows),
            html.paragraph(table.note),
        ]
    return parts


def _side(side: SideFound) -> list[Html]:
    manifest = side.manifest
    values: dict[str, Cell] = {
        "bundle": str(side.bundle),
        "size": " x ".join(map(str, manifest.sample_shape)),
        "parameters": f"{manifest.parameters:,}",
        "steps": f"{manifest.training.steps:,}",
        **{key.replace("_", " "): _value(value) for key, value in manifest.training.figures.items()},
    }
    verdict = SampleVerdict.of_figures(manifest.training.figures)
    said = "Too few pictures were held out to judge the samples." if verdict is None else ""
    parts = [
        html.heading(f"{manifest.domain}: folder and model"),
        html.paragraph("\n".join([str(side.folder), *side.lines])),
        html.figures(values),
        html.figure(side.loss_chart, f"Losses of {manifest.domain} while it was trained"),
        html.paragraph(said if verdict is None else verdict.sentence(manifest.training.steps)),
        html.figure(side.samples, f"Samples of {manifest.domain}, from noise alone"),
    ]
    if side.held_out is not None:
        parts.append(html.figure(side.held_out, f"Pictures of {manifest.domain} that were held out"))
    return parts


def _value(value: Any) -> Cell:
    return float(value) if isinstance(value, int | float) else str(value)
