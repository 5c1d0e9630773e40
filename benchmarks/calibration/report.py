"""Writes the tables and sheets of calibration into docs/pictures.md from the JSON that the other modules leave.

python -m benchmarks.calibration.report
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.calibration.directed import BUILD, DIRECTIONS, ROOT, Directed
from benchmarks.calibration.table import TABLE
from benchmarks.calibration.variants import VARIANTS, agreed
from benchmarks.pages import between, markdown
from benchmarks.structure_thresholds import REPORT
from ddib_fed.datasets.shipped import SHIPPED
from ddib_fed.files import write_file
from ddib_fed.metrics.structure import doubtful, expected, structure
from ddib_fed.reports.sheets import Stage, save_sheet

PAGE = ROOT / "docs" / "pictures.md"
SHEETS = ROOT / "docs" / "images" / "pictures"
WRITER = "benchmarks/calibration/report.py"
SHOWN = 12
COLUMNS = (
    "",
    "crosses",
    "PSNR dB",
    "SSIM",
    "partner among 5",
    "Frechet, block 5",
    "round trip dB",
    "patch correlation / noise's",
)
IN_SHEET = (
    ("plain", "as shipped"),
    ("calibrated", "calibrated"),
    ("retrained", "retrained"),
    ("retrained-0.7", "retrained, depth .7"),
)
"""Variants that stand between source and truth, as far as they are there."""


def main() -> int:
    """Write the page."""
    text = PAGE.read_text(encoding="utf-8")
    for source, target in DIRECTIONS:
        name = f"{source}-{target}"
        if (found := _measured(name)) and f"<!-- calibration {name}:" in text:
            parts = [_heading(found), _table(name, found)]
            if sheet(Directed(source, target)):
                parts.append(
                    f"![{name}: without and with a calibration](images/pictures/{name}-calibrated.png)"
                )
            text = between(text, f"calibration {name}", WRITER, "\n\n".join(parts))
    if REPORT.exists():
        text = between(text, "marks", WRITER, _marks(json.loads(REPORT.read_text(encoding="utf-8"))))
    write_file(PAGE, text.encode())
    return 0


def _measured(name: str) -> dict[str, dict[str, Any]]:
    """What there is of a directed pair, in the order of the variants."""
    found = {}
    for variant in VARIANTS:
        path = TABLE / name / f"{variant.name}.json"
        if path.exists():
            found[variant.name] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _heading(found: dict[str, dict[str, Any]]) -> str:
    first = next(iter(found.values()))
    evaluations = sorted({one["settings"]["evaluations"] for one in found.values()})
    spent = sum(one["cpu_seconds"] for one in found.values())
    notes = [SHIPPED[first[side]].note for side in ("source", "target")]
    head = (
        f"{first['source']} → {first['target']}: all {first['count']} test pictures, "
        f"{' or '.join(map(str, evaluations))} evaluations a leg; in brackets 95 % of bootstrap draws of the "
        f"{first['clusters']} clusters of overlapping or neighbouring pictures. Measured in {spent:.0f} s of CPU "
        f"on one thread. Source: {notes[0]}. Target: {notes[1]}."
    )
    lines = [head]
    if (calibrated := found.get("calibrated")) is not None:
        made, effect = calibrated["notes"]["made"], calibrated["notes"]["effect"]
        forced = " **Its figures were refused; it is shown all the same.**" if effect["forced"] else ""
        lines.append(
            f"The rotation without pairs is from one aggregate of {made['target_pictures']} pictures of the target, "
            f"{made['crossed_bytes']} bytes, epsilon {made['epsilon']:g}, delta {made['delta']:g}. It is "
            f"{calibrated['notes']['degrees_from_pairs']:.0f} degrees from that of 512 pairs; its margin over the next "
            f"optimum is {_ranged(effect['margin'])}.{forced}"
        )
    if (trained := found.get("retrained")) is not None:
        lines.append(
            f"The source was retrained {trained['notes']['seeds']} times; figures of pairs are means."
        )
    return "\n".join(lines)


def _table(name: str, found: dict[str, dict[str, Any]]) -> str:
    rows = []
    for variant in VARIANTS:
        if variant.name in found:
            figures = found[variant.name]["figures"]
            crosses = variant.crosses_of(name)
            cells = [
                _ranged(figures.get(key))
                for key in ("psnr", "ssim", "partner", "frechet_early", "cycle_psnr")
            ]
            ratio = figures.get("latent_ratio")
            rows.append((variant.title, crosses, *cells, "–" if ratio is None else f"{ratio:.2f}"))
    truth = found.get("plain", {}).get("truth")
    if truth is not None:
        rows.append(("the truth itself", "–", "–", "–", "–", _ranged(truth), "–", "–"))
    return markdown(COLUMNS, tuple(rows))


def _ranged(figure: dict[str, float] | None) -> str:
    """A figure with its interval, and with the least and largest of several draws or seeds."""
    if figure is None:
        return "–"
    text = f"{figure['value']:.3g} [{figure['low']:.3g}, {figure['high']:.3g}]"
    return f"{text}, {figure['least']:.3g} to {figure['most']:.3g}" if "least" in figure else text


def _marks(found: list[dict[str, Any]]) -> str:
    columns = (
        "",
        "marked without a calibration",
        "marked under one",
        "exchanged: pictures",
        "of them marked without",
        "of them marked under one",
        "edges below chance: pictures",
        "of them marked without",
        "of them marked under one",
    )
    parts = []
    for one in found:
        rows = []
        for name, marks in one["marked"].items():
            shares = (f"{marks['without']:.0%}", f"{marks['under']:.0%}")
            keys = ("exchanged", "edges_below_chance")
            counts = [
                str(marks[key + end]) if key in marks else "–"
                for key in keys
                for end in ("", "_without", "_under")
            ]
            rows.append((name, *shares, *counts))
        told = "one aggregate" if one["calibration"] == "aggregate" else "512 pairs"
        heading = f"{one['source']} → {one['target']}, {one['pictures']} test pictures; the rotation is from {told}:"
        parts += [heading, markdown(columns, tuple(rows))]
    return "\n\n".join(parts)


def sheet(directed: Directed) -> bool:
    """Draw test pictures as shipped and calibrated, where translations are kept; whether the sheet is there."""
    path = SHEETS / f"{directed.name}-calibrated.png"
    stacks = {name: BUILD / directed.name / f"{name}.npz" for name, _ in IN_SHEET}
    if all(stacks[name].exists() for name in ("plain",)) and sum(p.exists() for p in stacks.values()) > 1:
        x, truth = directed.test
        rows = np.linspace(0, len(x) - 1, SHOWN).round().astype(int)
        stages = [Stage(directed.source_name, x[rows])]
        stages += [
            Stage(title, np.load(stacks[name])["translated"][rows])
            for name, title in IN_SHEET
            if stacks[name].exists()
        ]
        stages.append(Stage(directed.target_name, truth[rows]))
        marks = _doubtful(directed, stacks["calibrated"])
        notes = dict.fromkeys(part.domain.note for part in directed.pictures)
        caption = ". ".join(notes)
        if len(marks):
            caption = f"Red: the calibrated translation is doubtful. {caption}"
        names = [str(row) for row in rows]
        save_sheet(
            path, stages, names=names, doubtful=marks[rows].tolist() if len(marks) else (), caption=caption
        )
    return path.exists()


def _doubtful(directed: Directed, kept: Path) -> np.ndarray:
    """Which calibrated translations are doubtful; nothing where there are none."""
    manifest = directed.bundles[0].manifest
    if not kept.exists() or manifest.structure is None:
        return np.zeros(0, bool)
    expects = expected(manifest, agreed(directed)[0])
    figures = structure(directed.test[0], np.load(kept)["translated"], expects)
    return doubtful(figures, manifest.structure)


if __name__ == "__main__":
    sys.exit(main())
