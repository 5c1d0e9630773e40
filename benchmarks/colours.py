"""Colour transfer on photographs that packages carry, beside optimal transport: tables and sheet of docs/colours.md.

    python -m benchmarks.colours [--work DIR] [--only rgb|lab]      resumes

About twenty minutes of one core. Models and full pictures stay in DIR; docs/colours/ gets a report a pair and space,
and the sheet.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw

from ddib_fed.files import write_file, write_json
from ddib_fed.paper.colour_cloud import PACKAGED, SPACES, open_photograph
from ddib_fed.paper.colour_training import ColourSettings, transfer

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "colours"
PAGE = ROOT / "docs" / "colours.md"
BEGIN, END = "<!-- colours: written by benchmarks/colours.py -->", "<!-- end of colours -->"
SHEET = (
    "![Rows: a direction each. Columns: the content, DDIB on rgb and on lab, EMD, Sinkhorn and the linear map on rgb.]"
    "(colours/sheet.png)"
)
PAIRS = (("sklearn:china", "sklearn:flower"), ("skimage:coffee", "skimage:rocket"))
CELL = 124
COLUMNS = ("content", "DDIB, rgb", "DDIB, lab", "EMD, rgb", "Sinkhorn, rgb", "linear, rgb")
TAILS = {"EMD, rgb": "-emd", "Sinkhorn, rgb": "-sinkhorn", "linear, rgb": "-linear"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "colours")
    parser.add_argument("--only", choices=SPACES)
    given = parser.parse_args()
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    for space in (given.only,) if given.only else SPACES:
        for pair in PAIRS:
            measure(pair, space, given.work)
    report(given.work)


def measure(pair: tuple[str, str], space: Any, work: Path) -> None:
    """One pair in one space, both ways, unless it was measured before."""
    path = OUT / f"{name(pair)}-{space}.json"
    if path.exists():
        return
    photos = [open_photograph(which) for which in pair]
    settings = ColourSettings(space=space, both=True, command="python -m benchmarks.colours")
    found = transfer(*photos, settings, work / f"{name(pair)}-{space}", resume=True)
    write_json(path, found)
    print(path.name, found["directions"][0]["mse"], flush=True)


def report(work: Path) -> None:
    """Tables between the markers of the page, and the sheet."""
    found = [json.loads(path.read_text()) for pair in PAIRS for path in reports(pair)]
    if not found:
        return
    head = PAGE.read_text(encoding="utf-8")
    before, rest = head.split(BEGIN)
    tables = f"{SHEET}\n\n{distances(found)}\n\n{nearness(found)}\n\n{models(found)}"
    write_file(PAGE, f"{before}{BEGIN}\n\n{tables}\n\n{END}{rest.split(END)[1]}".encode())
    sheet(work).save(OUT / "sheet.png", optimize=True)


def reports(pair: tuple[str, str]) -> list[Path]:
    paths = [OUT / f"{name(pair)}-{space}.json" for space in SPACES]
    return [path for path in paths if path.exists()]


def name(pair: tuple[str, str]) -> str:
    return "-".join(which.partition(":")[2] for which in pair)


def rows(found: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    return [(f"| {d['from']} → {d['to']} | {r['space']} |", d) for r in found for d in r["directions"]]


def distances(found: list[dict[str, Any]]) -> str:
    head = [
        "| picture | space | EMD | Sinkhorn | linear | content | EMD to Sinkhorn | EMD to linear |",
        "|---|---|---|---|---|---|---|---|",
    ]
    body = []
    for start, d in rows(found):
        mse = [d["mse"][key] for key in ("emd", "sinkhorn", "linear", "content")]
        cells = [*mse, d["between"]["emd-sinkhorn"], d["between"]["emd-linear"]]
        body.append(f"{start} {' | '.join(f'{value:.3f}' for value in cells)} |")
    return "\n".join([*head, *body])


def nearness(found: list[dict[str, Any]]) -> str:
    keys = ("ddib", "emd", "sinkhorn", "linear", "content", "floor")
    titles = ["picture", "space", "DDIB", "EMD", "Sinkhorn", "linear", "content", "floor", "DDIB clipped"]
    titles += ["latent mean", "std", "kurtosis", "round trip, median (99 %)"]
    head = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    body = []
    for start, d in rows(found):
        cells = [f"{d['colours'][key]:.3f}" for key in keys] + [f"{100 * d['outside']['ddib']:.1f} %"]
        latent, trip = d["latent"], d["round_trip"]
        cells += [f"{latent['mean']:+.3f}", f"{latent['std']:.3f}", f"{latent['kurtosis']:+.2f}"]
        cells += [f"{trip['median']:.2f} ({trip['p99']:.1f})"]
        body.append(f"{start} {' | '.join(cells)} |")
    return "\n".join([*head, *body])


def models(found: list[dict[str, Any]]) -> str:
    head = [
        "| photograph | space | pixels | colours | steps | CPU s, training | CPU s, translating |",
        "|---|---|---|---|---|---|---|",
    ]
    body = []
    for r in found:
        for photo, d in zip(r["photographs"], r["directions"], strict=True):
            model, size = photo["model"], photo["height"] * photo["width"]
            body.append(
                f"| {photo['name']} | {r['space']} | {size:,} | {photo['colours']:,} | {model['steps']:,} "
                f"| {model['cpu_seconds']:.0f} | {d['cpu_seconds']['ddib']:.0f} |"
            )
    return "\n".join([*head, *body])


def sheet(work: Path) -> Image.Image:
    """A row a direction: content, DDIB in both spaces, and the baselines in rgb."""
    lines = [(pair, way) for pair in PAIRS for way in (pair, pair[::-1])]
    height, title = int(CELL * 0.68), 14
    drawn = Image.new("RGB", (CELL * len(COLUMNS), title + height * len(lines)), "white")
    pen = ImageDraw.Draw(drawn)
    for column, text in enumerate(COLUMNS):
        pen.text((column * CELL + 4, 1), text, fill="black")
        for row, (pair, way) in enumerate(lines):
            path = file_of(work, pair, way, text)
            if path.exists():
                with Image.open(path) as picture:
                    small = picture.convert("RGB")
                    small.thumbnail((CELL - 2, height - 2), Image.Resampling.LANCZOS)
                drawn.paste(small, (column * CELL, title + row * height))
    return drawn


def file_of(work: Path, pair: tuple[str, str], way: tuple[str, str], column: str) -> Path:
    if column == "content":
        import importlib.util

        spec = importlib.util.find_spec(PACKAGED[way[0]].package)
        assert spec is not None
        assert spec.submodule_search_locations
        return Path(spec.submodule_search_locations[0]) / PACKAGED[way[0]].file
    space = "lab" if column.endswith("lab") else "rgb"
    stem = "-to-".join(which.partition(":")[2] for which in way)
    return work / f"{name(pair)}-{space}" / f"{stem}{TAILS.get(column, '')}.png"


if __name__ == "__main__":
    main()
