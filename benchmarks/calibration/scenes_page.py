"""The tables of docs/scenes.md from what has been measured: python -m benchmarks.calibration.scenes_page"""

from __future__ import annotations

import json
import sys
from typing import Any

from benchmarks.calibration.directed import OUT, ROOT
from benchmarks.calibration.scenes import WAYS
from ddib_fed.files import write_file

PAGE = ROOT / "docs" / "scenes.md"
PAIRS = ("satellite-relief", "satellite-64-relief-64")
TITLES = {
    "fitted": "squeezed to one picture, and back",
    "cut": "tiles side by side",
    "blended": "overlapping tiles, averaged when finished",
    "one-ode": "**overlapping tiles, one ODE**",
    "blended-rotated": "averaged when finished, calibrated",
    "one-ode-rotated": "**one ODE, calibrated**",
    "one-ode-rotated-mixed": "the same, encoder mixed",
}
COLUMNS = ("PSNR dB", "SSIM", "seams", "edges", "round trip dB", "CPU s")
CROPS = {"histogram": "histogram matching", "plain": "without calibration"}
"""Lines of the table of crops; further ones have the title of their variant."""


def main() -> int:
    """Fill the page."""
    text = PAGE.read_text(encoding="utf-8")
    for pair in PAIRS:
        for part, table in (("scene", _scene(pair)), ("crops", _crops(pair))):
            if table:
                text = _filled(text, f"{pair} {part}", table)
    write_file(PAGE, text.encode())
    return 0


def _filled(text: str, name: str, table: str) -> str:
    begin, end = (
        f"<!-- {name}: written by benchmarks/calibration/scenes_page.py -->",
        f"<!-- end of {name} -->",
    )
    if begin not in text:
        return text
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"


def _scene(pair: str) -> str:
    path = OUT / "scenes" / f"{pair}.json"
    if not path.exists():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    height, width = found["scene"]["pixels"]
    tiles = found["tiles"]
    rows = [
        f"| {TITLES[way]} | {one['psnr']:.1f} | {one['ssim']:.3f} | {one['seams']:.2f} | {one['edges']:.2f} "
        f"| {one['cycle_psnr']:.1f} | {one['cpu_seconds']:.0f} |"
        for way in WAYS
        if (one := found["ways"].get(way)) is not None
    ]
    truth = f"| the truth | – | – | {found['truth']['seams']:.2f} | 1.00 | – | – |"
    said = (
        f"A scene of {height} x {width} pixels, tiles of {tiles['side']} x {tiles['side']}: {tiles['cut']} side by "
        f"side, {tiles['overlapping']} overlapping; {found['evaluations']} evaluations a leg."
    )
    return "\n".join([said, "", *_head("", *COLUMNS), *rows, truth])


def _crops(pair: str) -> str:
    folder = OUT / "table" / pair
    found = {
        path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))
    }
    if "plain" not in found:
        return ""
    from benchmarks.calibration.variants import VARIANTS

    titles = {each.name: each.title for each in VARIANTS} | CROPS
    rows = []
    for name in [each.name for each in VARIANTS if each.name in found]:
        figures = found[name]["figures"]
        cells = [_interval(figures, key, digits) for key, digits in _FIGURES.items()]
        rows.append(f"| {titles[name]} | {' | '.join(cells)} |")
    one = found["plain"]
    said = (
        f"{one['count']} test crops, {one['settings']['evaluations']} evaluations a leg; 95 % intervals over "
        f"{one['clusters']} clusters of crops that overlap."
    )
    return "\n".join(
        [
            said,
            "",
            *_head("", "PSNR dB", "SSIM", "partner among 5", "feature distance", "round trip dB"),
            *rows,
        ]
    )


_FIGURES = {"psnr": 1, "ssim": 3, "partner": 2, "frechet_early": 0, "cycle_psnr": 1}


def _interval(figures: dict[str, Any], key: str, digits: int) -> str:
    one = figures.get(key)
    if one is None:
        return "–"
    return f"{one['value']:.{digits}f} [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"


def _head(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |", "|" + "---|" * len(cells)]


if __name__ == "__main__":
    sys.exit(main())
