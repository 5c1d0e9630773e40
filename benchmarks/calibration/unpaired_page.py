"""Writes what calibrations without pairs reach, seed by seed, into docs/calibration.md, and the sheet beside it.

python -m benchmarks.calibration.unpaired_page
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibration.directed import OUT, ROOT, Directed
from benchmarks.calibration.unpaired import MADE
from benchmarks.pages import between, markdown
from ddib_fed.datasets.shipped import SHIPPED
from ddib_fed.files import write_file
from ddib_fed.reports.sheets import Stage, save_sheet

PAGE = ROOT / "docs" / "calibration.md"
SHEET = ROOT / "docs" / "images" / "pictures" / "satellite-relief-unpaired.png"
NAME = "satellite-relief"
COLUMNS = (
    "",
    "seed",
    "PSNR dB",
    "SSIM",
    "partner among 5",
    "Frechet, block 5",
    "round trip dB",
    "patch correlation / noise's",
)
TITLES = {
    ("rotation", 1.0): "rotation, no training",
    ("colour-map", 1.0): "colour map, source retrained",
    ("colour-map", 0.7): "the same, depth .7",
}
SHOWN = 12


def main() -> int:
    """Write the page and the sheet."""
    rows: list[tuple[Any, ...]] = []
    for name, title in (("histogram", "histogram matching"), ("plain", "without a calibration")):
        path = OUT / "table" / NAME / f"{name}.json"
        if path.is_file():
            rows.append((title, None, *_cells(_read(path)["figures"])))
    found = [_read(path) for path in sorted((OUT / "unpaired").glob(f"{NAME}-*.json"))]
    seeds = sorted(path.name for path in (OUT / "unpaired").glob(f"{NAME}-*.json"))
    for (kind, depth), title in TITLES.items():
        for one, name in zip(found, seeds, strict=True):
            if (one["kind"], one["depth"]) == (kind, depth):
                rows.append((title, int(name.removeprefix(f"{NAME}-")[0]), *_cells(one["figures"])))
    text = PAGE.read_text(encoding="utf-8")
    new = markdown(COLUMNS, tuple(rows))
    write_file(PAGE, between(text, "unpaired", "benchmarks/calibration/unpaired_page.py", new).encode())
    sheet()
    return 0


def sheet() -> None:
    """Evenly chosen test pictures, and what each calibration of the first seed makes of them."""
    directed = Directed(*NAME.split("-"))
    source, truth = directed.test
    rows = np.linspace(0, len(source) - 1, SHOWN).astype(int)
    made = [
        Stage(title, np.load(MADE / f"{NAME}-0-{kind}-{depth:g}.npz")["translated"][rows])
        for (kind, depth), title in TITLES.items()
    ]
    notes = [SHIPPED[name].note for name in NAME.split("-")]
    stages = [Stage("source", source[rows]), *made, Stage("truth", truth[rows])]
    save_sheet(SHEET, stages, caption=". ".join(notes))


def _cells(figures: dict[str, Any]) -> tuple[str | float | None, ...]:
    named = (("psnr", 1), ("ssim", 3), ("partner", 2), ("frechet_early", 0), ("cycle_psnr", 1))
    values = [_interval(figures.get(name), digits) for name, digits in named]
    ratio = figures.get("latent_ratio")
    return (*values, None if ratio is None else f"{ratio:.2f}")


def _interval(figure: dict[str, float] | None, digits: int) -> str | None:
    if figure is None:
        return None
    value, low, high = (f"{figure[name]:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


if __name__ == "__main__":
    sys.exit(main())
