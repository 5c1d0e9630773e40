"""Plots of point clouds and of training figures.

All panels of all pictures share limits, size of dots and colours (rainbow by index), so that two pictures
can be compared side by side; no pyplot, hence no state between calls.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from ddib_fed.files import write_file
from ddib_fed.terminal import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Points = NDArray[np.floating]
Kind = Literal["scatter", "heatmap"]

LIMIT = 3.0
"""Half the side of every panel, in standard deviations of the data."""
BINS = 120
PANEL_INCHES = 2.6
DPI = 150
INK = "#3c3c46"
FRAME = "#d4d4dc"


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    points: Points
    kind: Kind = "scatter"


def draw_rows(rows: Sequence[Sequence[Panel]], path: Path, *, caption: str = "") -> None:
    columns = max(len(row) for row in rows)
    foot = 0.3 if caption else 0.08
    height = len(rows) * (PANEL_INCHES + 0.3) + foot
    figure = Figure(figsize=(columns * (PANEL_INCHES + 0.1) + 0.1, height), dpi=DPI, facecolor="white")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    figure.subplots_adjust(
        left=0.01, right=0.99, top=1 - 0.28 / height, bottom=foot / height, wspace=0.05, hspace=0.06
    )
    for line, row in zip(axes, rows, strict=True):
        for axis, panel in zip(line, row, strict=False):
            _draw(axis, panel)
        for axis in line[len(row) :]:
            axis.set_axis_off()
    if caption:
        style: dict[str, Any] = {
            "ha": "center",
            "va": "bottom",
            "fontsize": 8,
            "color": INK,
            "parse_math": False,
        }
        figure.text(0.5, 0.09 / height, escape(caption), **style)
    save(figure, path)


def clouds(named: Sequence[tuple[str, Points]], path: Path, *, heat: bool = False, caption: str = "") -> None:
    """The stages of a translation, each point keeping its colour, and with `heat` a heat map beneath each."""
    rows = [[Panel(title, points) for title, points in named]]
    rows += [[Panel("", points, "heatmap") for _, points in named]] if heat else []
    draw_rows(rows, path, caption=caption)


Curve = Sequence[tuple[int, float]]


def loss_curve(training: Curve, path: Path, *, held_out: Curve = ()) -> None:
    """The training loss as (step, loss) and, if given, the held-out loss."""
    figure = Figure(figsize=(6, 3.4), dpi=DPI, facecolor="white", layout="constrained")
    axis = figure.subplots()
    for label, curve, colour in (("training", training, "#8fa8f0"), ("held out", held_out, "#d33f6a")):
        if curve:
            axis.plot(*zip(*curve, strict=True), color=colour, linewidth=1.2, label=label)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_xlabel("step", color=INK, fontsize=9)
    axis.set_ylabel("mean squared error of v", color=INK, fontsize=9)
    axis.legend(frameon=False, fontsize=8, labelcolor=INK)
    axis.grid(color=FRAME, linewidth=0.5, which="both", alpha=0.6)
    axis.tick_params(colors=INK, labelsize=8)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(FRAME)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    write_file(path, buffer.getvalue())


def _draw(axis: Axes, panel: Panel) -> None:
    points = np.asarray(panel.points, np.float64)[:, :2]
    if points.shape[1] == 1:  # over the index
        points = np.stack([np.linspace(-LIMIT, LIMIT, len(points)), points[:, 0]], axis=1)
    if panel.kind == "heatmap":
        edges = np.linspace(-LIMIT, LIMIT, BINS + 1)
        counts, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=[edges, edges])
        extent = (-LIMIT, LIMIT, -LIMIT, LIMIT)
        axis.imshow(counts.T, origin="lower", extent=extent, cmap="viridis", interpolation="nearest")
    else:
        # A fixed shuffle: otherwise the last colours cover the others where clouds are dense.
        order = np.random.default_rng(0).permutation(len(points))
        size = float(np.clip(12_000 / len(points), 0.25, 9))
        style: dict[str, Any] = {"cmap": "rainbow", "s": size, "linewidths": 0, "vmin": 0}
        axis.scatter(points[order, 0], points[order, 1], c=order, vmax=max(1, len(points) - 1), **style)
    axis.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", xticks=[], yticks=[])
    axis.set_title(escape(panel.title), fontsize=10, color=INK, pad=4, parse_math=False)
    for spine in axis.spines.values():
        spine.set(color=FRAME, linewidth=0.8)
