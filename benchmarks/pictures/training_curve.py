"""What more training would give: quality of the shipped pairs after a part of their training, as a table and curves.

    python -m benchmarks.pretrained_pictures --out build/pretrained     leaves build/pretrained/DOMAIN/kept/STEP
    python -m benchmarks.pictures.training_curve [--runs build/pretrained] [--count 32] [--evaluations 32]

Averaged weights of the kept checkpoints, which are those of a run that was not over: its learning rate was still high.
The last line of a pair is its finished bundle. Writes docs/benchmarks/pictures/PAIR/curve.json,
docs/images/pictures/curve.png, and the table between the markers of docs/pictures.md.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.pages import between, markdown
from benchmarks.pictures.pair import DOCS, PAIRS, white
from benchmarks.pictures.report import COLUMNS_OF_CURVE
from ddib_fed.bridge.arrays import Asked, translate_array
from ddib_fed.bridge.local_party import open_party
from ddib_fed.datasets.shipped import load_shipped
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.files import write_file, write_json
from ddib_fed.metrics import retrieval
from ddib_fed.metrics.pictures import compare, psnr
from ddib_fed.models.bundle import Bundle, load_bundle, make_bundle
from ddib_fed.reports.plots import DPI, FRAME, INK, save
from ddib_fed.training.loop.checkpoint import read_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=Path("build/pretrained"))
    parser.add_argument("--count", type=int, default=32, help="test pictures")
    parser.add_argument("--evaluations", type=int, default=32, help="network evaluations of a leg")
    given = parser.parse_args()
    torch.set_num_threads(1)
    curves = {}
    for pair, domains in PAIRS.items():
        runs = [given.runs / domain for domain in domains]
        kept = [{int(path.name): path for path in (run / "kept").iterdir()} for run in runs]
        finished = [load_bundle(run) for run in runs]
        rows = [
            _measured(domains, [_at(*each) for each in zip(finished, ways, strict=True)], given)
            for ways in (
                [own[step] for own in kept]
                for step in sorted(kept[0].keys() & kept[1].keys())
                if step < finished[0].manifest.training.steps
            )
        ]
        rows.append(_measured(domains, finished, given))
        curves[pair] = rows
        write_json(
            DOCS / "benchmarks" / "pictures" / pair / "curve.json",
            {"count": given.count, "evaluations": given.evaluations, "rows": rows},
        )
        print(pair, json.dumps(rows[-1]), flush=True)
    _draw(curves, DOCS / "images" / "pictures" / "curve.png")
    page = DOCS / "pictures.md"
    parts = [
        f"{' → '.join(PAIRS[pair])}:\n\n{markdown(tuple(COLUMNS_OF_CURVE), _cells(rows))}"
        for pair, rows in curves.items()
    ]
    parts.append("![PSNR, SSIM and patch correlation over training](images/pictures/curve.png)")
    text = between(
        page.read_text(encoding="utf-8"), "curve", "benchmarks/pictures/training_curve.py", "\n\n".join(parts)
    )
    write_file(page, text.encode())


def _at(finished: Bundle, path: Path) -> Bundle:
    """The bundle as it would have been at a checkpoint."""
    checkpoint = read_checkpoint(path)
    figures = {"cpu_seconds": round(checkpoint.info.cpu_seconds, 1)}
    training = finished.manifest.training.model_copy(
        update={"steps": checkpoint.info.step, "figures": figures}
    )
    return make_bundle(finished.manifest.model_copy(update={"training": training}), checkpoint.part("ema"))


def _measured(domains: tuple[str, str], bundles: list[Bundle], given: argparse.Namespace) -> dict[str, Any]:
    """One line."""
    tests = [load_shipped(domain).test for domain in domains]
    rows = np.linspace(0, len(tests[0]) - 1, min(given.count, len(tests[0]))).round().astype(int)
    x, truth = (part[rows] for part in tests)
    asked = Asked(SolverSettings(evaluations=given.evaluations), cycle=True)
    # What the gate refuses, as of a model that has hardly been trained, has no figures.
    found = translate_array(x, *map(open_party, bundles), asked, refuse=False)
    x, truth = x[list(found.rows)], truth[list(found.rows)]
    assert found.back is not None
    latent = white(found.latent)
    return {
        "steps": bundles[0].manifest.training.steps,
        "refused": len(found.failed),
        "cpu_minutes": [round(b.manifest.training.figures["cpu_seconds"] / 60, 1) for b in bundles],
        **compare(found.translated, truth).means(),
        "partner": retrieval.by_pixels(found.translated, truth)["found"],
        "cycle_psnr": float(psnr(found.back, x).mean()),
        "std": latent["std"],
        "ratio": latent["ratio"],
    }


def _cells(rows: list[dict[str, Any]]) -> tuple[tuple[Any, ...], ...]:
    def cell(value: Any) -> Any:
        return " and ".join(f"{part:g}" for part in value) if isinstance(value, list) else value

    return tuple(tuple(cell(row[key]) for key in COLUMNS_OF_CURVE.values()) for row in rows)


def _draw(curves: dict[str, list[dict[str, Any]]], path: Path) -> None:
    shown = (("psnr", "PSNR, dB"), ("ssim", "SSIM"), ("ratio", "patch correlation / noise's"))
    figure = Figure(figsize=(3.4 * len(shown), 2.9), dpi=DPI, facecolor="white", layout="constrained")
    for axis, (key, title) in zip(figure.subplots(1, len(shown)), shown, strict=True):
        for (pair, rows), colour in zip(curves.items(), ("#d33f6a", "#4a6fe3"), strict=True):
            minutes = [float(np.mean(row["cpu_minutes"])) for row in rows]
            axis.plot(
                minutes,
                [row[key] for row in rows],
                "o-",
                color=colour,
                ms=4,
                lw=1.3,
                label=" → ".join(PAIRS[pair]),
            )
        axis.set_title(title, fontsize=9, color=INK)
        axis.set_xlabel("CPU minutes a model", fontsize=8, color=INK)
        axis.set_ylim(0, 1.08 * max(row[key] for rows in curves.values() for row in rows))
        axis.grid(color=FRAME, linewidth=0.5)
        axis.tick_params(colors=INK, labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8, loc="lower right")
    save(figure, path)


if __name__ == "__main__":
    main()
