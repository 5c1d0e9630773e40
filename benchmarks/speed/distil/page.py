"""Writes the tables of docs/distillation.md from docs/benchmarks/speed/distil.json, else from distil.short.json.

python -m benchmarks.speed.distil.page
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages import between, markdown
from benchmarks.speed.shared.harness import OUT, ROOT

PAGE = ROOT / "docs" / "distillation.md"
WRITER = "benchmarks/speed/distil/page.py"
WITH_INTERVAL = ("error", "latent", "round trip", "PSNR to the true partner", "SSIM to the true partner")
ALONE = ("sliced W2 of the cloud", "CPU of four legs")


def write_page() -> None:
    """One table for each pair, between the page's marks."""
    long = OUT / "distil.json"
    record = json.loads((long if long.exists() else OUT / "distil.short.json").read_text())
    table: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for figure in record["figures"]:
        title, _, rest = figure["what"].partition(": ")
        model, _, what = rest.partition(": ")
        if what:
            table.setdefault(title, {}).setdefault(model, {})[what] = figure
    floors = {f["what"]: f["median"] for f in record["figures"] if f["what"].endswith("its floor")}
    parts = [_section(title, rows) for title, rows in table.items()]
    parts += [f"{what}: {value:.4f}." for what, value in floors.items()]
    parts += record["notes"]
    where = record["machine"]
    parts.append(
        f"`{record['command']}`, {record['date']}, {where['cpu']}, torch {where['packages']['torch']}, load before "
        f"{where['load before']}."
    )
    PAGE.write_text(between(PAGE.read_text(), "distilled", WRITER, "\n\n".join(parts)))


def _section(title: str, rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """A table: models down, figures across."""
    columns = [what for what in (*WITH_INTERVAL, *ALONE) if any(what in row for row in rows.values())]
    count = next(row["error"]["runs"] for row in rows.values() if "error" in row)
    lines = tuple((model, *_cells(row, columns)) for model, row in rows.items())
    head = (
        "models, evaluations a leg",
        *(name.replace("CPU of four legs", "CPU s of four legs") for name in columns),
    )
    return f"**{title}**, {count:,} held-out samples\n\n{markdown(head, lines)}"


def _cells(row: Mapping[str, Mapping[str, Any]], columns: Sequence[str]) -> list[str]:
    cells = []
    for what in columns:
        figure = row.get(what)
        if figure is None:
            cells.append("")
        elif what in WITH_INTERVAL:
            cells.append(f"{figure['median']:.3g} ({figure['low']:.3g} to {figure['high']:.3g})")
        else:
            cells.append(f"{figure['median']:.3g}")
    return cells


if __name__ == "__main__":
    write_page()
