"""Table and plot of docs/benchmarks.md from the JSON files that benchmarks/points/solvers.py leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FormatStrFormatter, NullLocator

from benchmarks.points.settings import OUT, PAIRS, ROOT, SETTINGS
from ddib_fed.files import write_file
from ddib_fed.reports.plots import DPI, FRAME, INK, save

PAGE = ROOT / "docs" / "benchmarks.md"
PICTURE = ROOT / "docs" / "benchmarks" / "solvers.png"
BEGIN, END = "<!-- solvers: written by benchmarks/points/solvers.py -->", "<!-- end of solvers -->"
TICKS = (24, 48, 100, 200, 1000, 4000)
PAPER_BEST = 0.0065
COLOURS = {"ddim": "#8c8c94", "unipc": "#d33f6a", "alf": "#4a6fe3", "rk4": "#11a579"}


def report() -> None:
    """Write the tables between the markers of the page, and the plot."""
    found = {pair: measured(pair) for pair in PAIRS}
    if not any(found.values()):
        return
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    tables = "\n".join(table(pair, rows) for pair, rows in found.items() if rows)
    write_file(PAGE, f"{before}{BEGIN}\n\n{tables}\n{END}{after}".encode())
    draw({pair: rows for pair, rows in found.items() if rows}, PICTURE)


def measured(pair: tuple[str, str]) -> list[dict[str, Any]]:
    paths = [OUT / "--".join(pair) / f"{setting.key}.json" for setting in SETTINGS]
    rows = [json.loads(path.read_text()) for path in paths if path.exists()]
    return sorted(rows, key=lambda row: (row["solver"], row["evaluations"], row["grid"], not row["carried"]))


def table(pair: tuple[str, str], rows: list[dict[str, Any]]) -> str:
    """One pair's table, with a verdict on what was to be shown."""
    head = [
        f"### {pair[0]} → {pair[1]}",
        "",
        "| solver | evaluations a leg | CPU s, 4 legs | cycle median | mean | p99 | max | reference mean | max |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    body = [line(row) for row in rows]
    gap = rows[0]["reference_gap"]
    tail = "Reference: rk4, float64, 800 evaluations a leg; "
    tail += f"400 move the translated point by {gap['mean']:.0e} on average, at most {gap['max']:.0e}."
    return "\n".join([*head, *body]) + f"\n\n{tail} {verdict(rows)}\n"


def line(row: dict[str, Any]) -> str:
    """One setting's line."""
    cycle, target = row["cycle"], row["target_error"]
    figures = [cycle["median"], cycle["mean"], cycle["p99"], cycle["max"], target["mean"], target["max"]]
    cells = [
        row["label"],
        f"{row['evaluations']:,}",
        f"{row['cpu_seconds']:.0f}",
        *(f"{value:.1e}" for value in figures),
    ]
    if row["label"] == "unipc, order 3" and row["evaluations"] == 48:
        cells = [f"**{cell}**" for cell in cells]
    return f"| {' | '.join(cells)} |"


def verdict(rows: list[dict[str, Any]]) -> str:
    """The two things that every pair must show, as sentences."""
    known = {(row["solver"], row["evaluations"], row["grid"], row["carried"]): row for row in rows}
    default = known.get(("unipc", 48, "default", False))
    honest = [row for row in rows if row["evaluations"] <= 200 and not row["carried"]]
    best = min(honest, key=lambda row: float(row["cycle"]["max"]))
    said = f"Smallest maximum of the cycle error at 200 evaluations or fewer: {best['cycle']['max']:.1e} "
    said += f"({best['label']}, {best['evaluations']}); the paper's best is {PAPER_BEST}."
    baselines = [row for row in rows if row["solver"] == "ddim" and row["evaluations"] == 4000]
    if default and baselines:
        best_ddim = min(row["target_error"]["mean"] for row in baselines)
        ratio = best_ddim / default["target_error"]["mean"]
        said += f" The default at 48 has {ratio:.0f} times less reference error than ddim at 4,000."
    return said


def draw(found: dict[tuple[str, str], list[dict[str, Any]]], path: Path) -> None:
    """Mean reference error (solid) and mean cycle error (dashed) over evaluations, a panel a pair."""
    figure = Figure(figsize=(4.2 * len(found), 3.8), dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
    for axis, (pair, rows) in zip(axes, found.items(), strict=True):
        for solver, colour in COLOURS.items():
            drawn = [
                row
                for row in rows
                if row["solver"] == solver and row["grid"] == "default" and not row["carried"]
            ]
            drawn.sort(key=lambda row: int(row["evaluations"]))
            x = [row["evaluations"] for row in drawn]
            axis.plot(
                x,
                [r["target_error"]["mean"] for r in drawn],
                "o-",
                color=colour,
                ms=3.5,
                lw=1.3,
                label=solver,
            )
            axis.plot(x, [r["cycle"]["mean"] for r in drawn], "o--", color=colour, ms=2.5, lw=0.9, alpha=0.6)
        whole = [row for row in rows if row["grid"] == "integer"]
        x = [row["evaluations"] for row in whole]
        axis.plot(
            x, [r["target_error"]["mean"] for r in whole], "*", color=INK, ms=8, label="ddim, integer grid"
        )
        axis.set(xscale="log", yscale="log", xlim=(20, 5500))
        axis.set_xlabel("network evaluations a leg", fontsize=9, color=INK)
        axis.xaxis.set_major_locator(FixedLocator(TICKS))
        axis.xaxis.set_major_formatter(FormatStrFormatter("%d"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_title(" → ".join(pair), fontsize=10, color=INK)
        axis.grid(color=FRAME, linewidth=0.5)
        axis.tick_params(colors=INK, labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("mean error (solid: reference, dashed: cycle)", fontsize=9, color=INK)
    axes[0].legend(frameon=False, fontsize=8)
    save(figure, path)


if __name__ == "__main__":
    report()
