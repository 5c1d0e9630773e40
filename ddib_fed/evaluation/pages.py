"""The page of a rehearsal (`ddib try`), and that of a report on a folder of translations (`ddib evaluate`).

Advice after a rehearsal is based on a figure on the page, and names it.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddib_fed.data.pictures import encode_png
from ddib_fed.evaluation.folder import Table, per_picture, tables
from ddib_fed.evaluation.judgement import Figures
from ddib_fed.evaluation.metrics import WHITE_RATIO, Pictures
from ddib_fed.evaluation.sample_verdict import SampleVerdict
from ddib_fed.evaluation.sheets import to_pixels
from ddib_fed.evaluation.translations import Translations
from ddib_fed.models.manifest import Manifest
from ddib_fed.pages import write_page

FEW_PICTURES = 1000
POOR_CYCLE_DB = 30.0
STD_BOUNDS = (0.97, 1.03)
RISEN = 1.05
NEAR = 0.5
MOST_ROWS = 200
THUMBNAIL = 128
COLUMNS = {
    "cycle_psnr": "round trip dB",
    "psnr": "PSNR dB",
    "ssim": "SSIM",
    "edge_correlation": "edge correlation",
    "mutual_information": "mutual information",
}
MORE_TIME = "The same command with more --time trains on from here."


@dataclass(frozen=True, slots=True)
class SideFound:
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
    title: str
    folder: Path
    report: Figures
    sheet: bytes | None
    notes: tuple[str, ...] = ()

    @property
    def tables(self) -> list[Table]:
        return tables(self.report) if self.report else []


def write_rehearsal(
    path: Path, sides: tuple[SideFound, SideFound], ways: tuple[WayFound, WayFound], shared: Sequence[str]
) -> None:
    names = " and ".join(side.manifest.domain for side in sides)
    write_page(
        path,
        "rehearsal.html",
        title=f"Rehearsal of {names}",
        advice=advice(sides, ways, shared),
        ways=ways,
        sides=[_side(side) for side in sides],
    )


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


def _side(side: SideFound) -> dict[str, Any]:
    manifest, figures = side.manifest, side.manifest.training.figures
    verdict = SampleVerdict.of_figures(figures)
    return {
        "domain": manifest.domain,
        "folder": side.folder,
        "lines": side.lines,
        "figures": [
            ("bundle", side.bundle),
            ("size", " x ".join(map(str, manifest.sample_shape))),
            ("parameters", f"{manifest.parameters:,}"),
            ("steps", f"{manifest.training.steps:,}"),
            *((key.replace("_", " "), value) for key, value in figures.items()),
        ],
        "verdict": "Too few pictures were held out to judge the samples."
        if verdict is None
        else verdict.sentence(manifest.training.steps),
        "loss_chart": side.loss_chart,
        "samples": side.samples,
        "held_out": side.held_out,
    }


def write_report_page(
    path: Path, title: str, report: Figures, found: Translations, *, most_rows: int = MOST_ROWS
) -> None:
    """Write the page of a report: the worst come first, and the page states how many it leaves out."""
    stacks = {
        "source": found.source,
        "translated": found.translated,
        "truth": found.truth,
        "back": found.back,
    }
    stages = {title: stack for title, stack in stacks.items() if stack is not None}
    rows = per_picture(report)
    known = [key for key in COLUMNS if key in rows[0]]
    where = {name: number for number, name in enumerate(found.names)}
    write_page(
        path,
        "folder.html",
        title=title,
        notes=report["notes"],
        tables=tables(report),
        columns=["", *stages, *(COLUMNS[key] for key in known)],
        rows=[
            {
                "name": row["name"],
                "doubtful": row.get("doubtful"),
                "pictures": [
                    _thumbnail(stack, where[row["name"]], f"{row['name']}, {stage}")
                    for stage, stack in stages.items()
                ],
                "figures": [row[key] for key in known],
            }
            for row in rows[:most_rows]
        ],
        left_out=max(0, len(rows) - most_rows),
    )


def _thumbnail(stack: Pictures, number: int, text: str) -> tuple[bytes, str, int]:
    """The picture, what it is, and its width."""
    height, width = stack.shape[2:]
    shown = max(1, round(THUMBNAIL * width / max(height, width)))
    return encode_png(to_pixels(stack[number : number + 1])[0]), text, shown
