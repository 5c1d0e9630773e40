"""Draws docs/images/dial.png of the rows of benchmarks.calibration.dial: SSIM and feature distance over the leak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from benchmarks.command import ROOT

COLOURS = ("#3366cc", "#d33f6a", "#2a9d4a")


def plot(rows: Sequence[Mapping[str, Any]]) -> None:
    """Draw a line a pair: dots at shares, a star at what the dial proposes, and the map alone dotted."""
    figure = Figure(figsize=(9, 3.6), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    pairs = dict.fromkeys(row["pair"] for row in rows)
    for colour, pair in zip(COLOURS, pairs, strict=False):
        named = {row["setting"]: row for row in rows if row["pair"] == pair}
        shares = [row for name, row in named.items() if name.startswith("share")]
        leaks = [row["leak"]["value"] for row in shares]
        label = f"{pair}, {shares[0]['calibration']}"
        for axis, key in ((left, "ssim"), (right, "frechet_early")):
            values = [row[key]["value"] for row in shares]
            axis.plot(leaks, values, marker="o", color=colour, label=label)
            for leak, value, row in zip(leaks, values, shares, strict=True):
                place = {"xytext": (3, 4), "textcoords": "offset points", "fontsize": 7}
                axis.annotate(f"{row['share']:g}", (leak, value), **place)
            best = named["proposed"]
            axis.scatter(
                [best["leak"]["value"]], [best[key]["value"]], marker="*", s=130, color=colour, zorder=3
            )
            axis.axhline(named["the map alone"][key]["value"], color=colour, linestyle=":", linewidth=1)
    for axis, title in ((left, "SSIM"), (right, "feature distance")):
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("read from a latent by 512 pairs, PSNR dB", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=7)
    figure.savefig(ROOT / "docs" / "images" / "dial.png", metadata={"Software": None})
