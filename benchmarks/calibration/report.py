"""Writes the tables and sheets of calibration into docs/pictures.md from the JSON that the other modules leave.

python -m benchmarks.calibration.report
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np

from benchmarks.calibration.directed import BUILD, CALIBRATED, DIRECTIONS, OUT, ROOT, THRESHOLDS, Directed
from benchmarks.calibration.table import TABLE
from benchmarks.calibration.variants import VARIANTS, agreed
from benchmarks.pages import between, markdown
from ddib_fed.datasets.shipped import SHIPPED
from ddib_fed.files import write_file
from ddib_fed.metrics.pictures import Pictures
from ddib_fed.metrics.structure import doubtful, expected, structure
from ddib_fed.reports.sheets import Stage, save_sheet

PAGE = ROOT / "docs" / "pictures.md"
SHEETS = ROOT / "docs" / "images" / "pictures"
WRITER = "benchmarks/calibration/report.py"
SHOWN = 12
COLUMNS = (
    "",
    "crosses",
    "evaluations",
    "PSNR dB",
    "SSIM",
    "partner among 5",
    "Frechet, block 5",
    "round trip dB",
    "patch correlation / noise's",
)
UNPAIRED = {
    "calibrated": "rotation-1",
    "retrained": "colour-map-1",
    "retrained-0.7": "colour-map-0.7",
    "retrained-0.5": "colour-map-0.5",
}
"""Variants that benchmarks/calibration/unpaired.py measures, by their JSON."""
ANCHORS = {"tone": None, "retrained": 1.0, "retrained-0.85": 0.85, "retrained-0.7": 0.7, "retrained-0.5": 0.5}
"""Variants that benchmarks/calibration/anchors.py measures, by depth; None for the tone alone."""
EVALUATIONS_OF_SEEDS = 48
IN_SHEET = (
    ("plain", "as shipped"),
    ("calibrated", "calibrated"),
    ("rotation-512-pairs", "by 512 pairs"),
    ("retrained", "retrained"),
    ("retrained-0.7", "retrained, depth .7"),
)
"""Variants that stand between source and truth, as far as they are there."""


def main() -> int:
    """Write the page."""
    text = PAGE.read_text(encoding="utf-8")
    for source, target in DIRECTIONS:
        name = f"{source}-{target}"
        found = _measured(name)
        if any("settings" in one for one in found.values()) and f"<!-- calibration {name}:" in text:
            parts = [_heading(name, found), _table(name, found)]
            if sheet(Directed(source, target)):
                parts.append(
                    f"![{name}: without and with a calibration](images/pictures/{name}-calibrated.png)"
                )
            text = between(text, f"calibration {name}", WRITER, "\n\n".join(parts))
    if THRESHOLDS.exists():
        text = between(text, "marks", WRITER, _marks(json.loads(THRESHOLDS.read_text(encoding="utf-8"))))
    write_file(PAGE, text.encode())
    return 0


def _measured(name: str) -> dict[str, dict[str, Any]]:
    """What there is of a directed pair, in the order of the variants: of several seeds where they are measured."""
    found = {}
    for variant in VARIANTS:
        path = TABLE / name / f"{variant.name}.json"
        seeds = _of_unpaired(name, variant.name) + _of_anchors(name, variant.name)
        if path.exists():
            found[variant.name] = json.loads(path.read_text(encoding="utf-8"))
        if seeds:
            found[variant.name] = found.get(variant.name, {}) | {
                "figures": _mean([one["figures"] for one in seeds]),
                "evaluations": EVALUATIONS_OF_SEEDS,
                "seeds": len(seeds),
            }
    return found


def _of_unpaired(name: str, variant: str) -> list[dict[str, Any]]:
    if variant not in UNPAIRED:
        return []
    paths = sorted((OUT / "unpaired").glob(f"{name}-[0-9]-{UNPAIRED[variant]}.json"))
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths]


def _of_anchors(name: str, variant: str) -> list[dict[str, Any]]:
    """What benchmarks/calibration/anchors.py has measured of a variant, one a seed, at its first softening."""
    if variant not in ANCHORS:
        return []
    files = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((OUT / "anchors").glob(f"{name}-[0-9].json"))
    ]
    depth = ANCHORS[variant]
    if depth is None:
        return [{"figures": one["map_alone"]} for one in files]
    runs = [next((run for run in one["runs"] if run["depth"] == depth), None) for one in files]
    return [{"figures": run} for run in runs if run is not None]


def _mean(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Of several seeds: means of values and bounds, with the least and the largest value."""
    merged: dict[str, Any] = {}
    for key, first in figures[0].items():
        parts = [one[key] for one in figures if key in one]
        if isinstance(first, dict) and "low" in first:
            values = [part["value"] for part in parts]
            merged[key] = {
                side: float(np.mean([part[side] for part in parts])) for side in ("value", "low", "high")
            }
            if len(parts) > 1:
                merged[key] |= {"least": min(values), "most": max(values)}
        elif key == "latent_ratio":
            merged[key] = float(np.mean(parts))
    return merged


def _heading(name: str, found: dict[str, dict[str, Any]]) -> str:
    source, target = next(pair for pair in DIRECTIONS if "-".join(pair) == name)
    own = [one for one in found.values() if "settings" in one]
    spent = sum(one["cpu_seconds"] for one in own)
    seeds = [one["seeds"] for one in found.values() if "seeds" in one]
    pictures = (
        f"{source} → {target}: all {own[0]['count']} test pictures. In brackets 95 % of bootstrap draws of the "
        f"{own[0]['clusters']} clusters of overlapping or neighbouring pictures; after them the least and the largest "
        "of several seeds or draws of pairs, whose mean the figure is."
    )
    cost = f"{spent:.0f} s of CPU on one thread" + (
        f", without the lines of {max(seeds)} seeds." if seeds else "."
    )
    lines = [pictures, cost, f"Source: {SHIPPED[source].note}. Target: {SHIPPED[target].note}."]
    if "notes" in (calibrated := found.get("calibrated", {})):
        made, effect = calibrated["notes"]["made"], calibrated["notes"]["effect"]
        forced = " **Its figures were refused; it is shown all the same.**" if effect["forced"] else ""
        lines.append(
            f"The rotation without pairs is from one aggregate of {made['target_pictures']} pictures of the target, "
            f"{made['crossed_bytes']} bytes, epsilon {made['epsilon']:g}, delta {made['delta']:g}. It is "
            f"{calibrated['notes']['degrees_from_pairs']:.0f} degrees from that of 512 pairs; its margin over the next "
            f"optimum is {_ranged(effect['margin'])}.{forced}"
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
            rows.append(
                (
                    variant.title,
                    crosses,
                    _evaluations(found[variant.name]),
                    *cells,
                    "–" if ratio is None else f"{ratio:.2f}",
                )
            )
    truth = next((one["truth"] for one in found.values() if "truth" in one), None)
    if truth is not None:
        rows.append(("the truth itself", "–", "–", "–", "–", "–", _ranged(truth), "–", "–"))
    return markdown(COLUMNS, tuple(rows))


def _evaluations(one: dict[str, Any]) -> str:
    if "evaluations" in one:
        return str(one["evaluations"])
    return str(one["settings"]["evaluations"]) if "latent_ratio" in one["figures"] else "–"


def _ranged(figure: dict[str, float] | None) -> str:
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
        heading = (
            f"{one['source']} → {one['target']}, {one['pictures']} test pictures, under {one['calibration']}:"
        )
        parts += [heading, markdown(columns, tuple(rows))]
    return "\n\n".join(parts)


def sheet(directed: Directed) -> bool:
    """Draw test pictures as shipped and calibrated, where translations are kept; whether the sheet is there."""
    path = SHEETS / f"{directed.name}-calibrated.png"
    stacks = {name: stack for name, _ in IN_SHEET if (stack := _kept(directed, name)) is not None}
    if "plain" in stacks and len(stacks) > 1:
        refused = "calibrated" in stacks and agreed(directed)[1]["effect"]["forced"]
        stacks.pop("calibrated" if refused else "rotation-512-pairs" if "calibrated" in stacks else "", None)
        x, truth = directed.test
        rows = np.linspace(0, len(x) - 1, SHOWN).round().astype(int)
        stages = [Stage(directed.source_name, x[rows])]
        stages += [Stage(title, stacks[name][rows]) for name, title in IN_SHEET if name in stacks]
        stages.append(Stage(directed.target_name, truth[rows]))
        marks = _doubtful(directed, stacks.get("calibrated"))
        notes = dict.fromkeys(part.domain.note for part in directed.pictures)
        caption = ". ".join(notes)
        if len(marks):
            caption = f"Red: the calibrated translation is doubtful. {caption}"
        names = [str(row) for row in rows]
        save_sheet(
            path, stages, names=names, doubtful=marks[rows].tolist() if len(marks) else (), caption=caption
        )
    return path.exists()


def _kept(directed: Directed, variant: str) -> Pictures | None:
    path = CALIBRATED / f"{directed.name}-0-{UNPAIRED.get(variant, '')}.npz"
    path = path if variant in UNPAIRED and path.exists() else BUILD / directed.name / f"{variant}.npz"
    return np.load(path)["translated"] if path.exists() else None


def _doubtful(directed: Directed, translated: Pictures | None) -> np.ndarray:
    """Which calibrated translations are doubtful; nothing where there are none."""
    manifest = directed.bundles[0].manifest
    if translated is None or manifest.structure is None:
        return np.zeros(0, bool)
    expects = expected(manifest, agreed(directed)[0])
    figures = structure(directed.test[0], translated, expects)
    return doubtful(figures, manifest.structure)


if __name__ == "__main__":
    sys.exit(main())
