"""The tables of docs/scenes.md from what has been measured: python -m benchmarks.calibration.scenes_page"""

from __future__ import annotations

import json
import sys

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


def main() -> int:
    """Fill the page."""
    text = PAGE.read_text(encoding="utf-8")
    for pair in PAIRS:
        if table := _scene(pair):
            text = _filled(text, f"{pair} scene", table)
    write_file(PAGE, text.encode())
    return 0


def _filled(text: str, name: str, table: str) -> str:
    begin, end = (
        f"<!-- {name}: written by benchmarks/calibration/scenes_page.py -->",
        f"<!-- end of {name} -->",
    )
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{table}\n\n{end}{rest.split(end)[1]}"


def _scene(pair: str) -> str:
    path = OUT / "scenes" / f"{pair}.json"
    if not path.exists():
        return ""
    found = json.loads(path.read_text(encoding="utf-8"))
    height, width = found["scene"]["pixels"]
    tiles = found["tiles"]
    rows = [_way(TITLES[way], found["ways"][way]) for way in WAYS if way in found["ways"]]
    truth = f"| the truth | – | – | {found['truth']['seams']:.2f} | 1.00 | – | – |"
    said = (
        f"A scene of {height} x {width} pixels, tiles of {tiles['side']} x {tiles['side']}: {tiles['cut']} side by "
        f"side, {tiles['overlapping']} overlapping; {found['evaluations']} evaluations a leg."
    )
    return "\n".join([said, "", *_head("", *COLUMNS), *rows, truth])


def _way(title: str, one: dict[str, float]) -> str:
    back = f"{one['cycle_psnr']:.1f}" if "cycle_psnr" in one else "–"
    figures = f"{one['psnr']:.1f} | {one['ssim']:.3f} | {one['seams']:.2f} | {one['edges']:.2f}"
    return f"| {title} | {figures} | {back} | {one['cpu_seconds']:.0f} |"


def _head(*cells: str) -> list[str]:
    return [f"| {' | '.join(cells)} |", "|" + "---|" * len(cells)]


if __name__ == "__main__":
    sys.exit(main())
