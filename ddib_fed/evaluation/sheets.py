"""Contact sheets of pictures, and plots of point clouds and of training figures.

A sheet has one row for each stage and one column for each picture, whose pixels are shown unchanged. All panels of a
plot share limits, size of dots and colours; no pyplot, hence no state between calls.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ddib_fed.data.pictures import middle_slices
from ddib_fed.errors import ShapeMismatch
from ddib_fed.files import write_file
from ddib_fed.metrics import Pictures, to_channels
from ddib_fed.terminal import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
ACROSS = 8
CELL = 96  # least pixels of the longer side
MOST_SCALE = 4
GAP, MARGIN, LINE = 4, 12, 18
LEAST_WIDTH = 480
FONT = 13
INK, FAINT, DOUBT, PAPER = (60, 60, 70), (130, 130, 140), (200, 30, 60), (255, 255, 255)


def contact_sheet(
    stages: Mapping[str, Pictures],
    *,
    names: Sequence[str] = (),
    doubtful: Sequence[bool] = (),
    across: int = ACROSS,
    caption: str = "",
) -> bytes:
    """Draw a PNG of all stages, by their titles, of all pictures, `across` pictures per band."""
    stages = {title: as_pictures(pictures) for title, pictures in stages.items()}
    sizes = {(len(pictures), *pictures.shape[2:]) for pictures in stages.values()}
    if len(sizes) != 1:
        raise ShapeMismatch(
            f"the stages of a sheet must have one number and size of pictures, not {sorted(sizes)}"
        )
    count, height, width = sizes.pop()
    if count == 0 or not {len(names), len(doubtful)} <= {0, count}:
        raise ShapeMismatch(f"{count} pictures have {len(names)} names and {len(doubtful)} marks")
    scale = max(1, min(MOST_SCALE, -(-CELL // max(height, width))))
    cell = height * scale + GAP, width * scale + GAP
    left = MARGIN + max(map(_text_width, stages)) + 8
    head = LINE if len(names) else 0
    band = head + len(stages) * cell[0] + MARGIN
    bands = -(-count // across)
    wide = max(left + min(count, across) * cell[1] + MARGIN, LEAST_WIDTH if caption else 0)
    text = _lines(caption, wide - 2 * MARGIN)
    sheet = Image.new("RGB", (wide, MARGIN + bands * band + len(text) * LINE), PAPER)
    draw = ImageDraw.Draw(sheet)
    for number in range(count):
        top, x = MARGIN + number // across * band, left + number % across * cell[1]
        ink = DOUBT if len(doubtful) and doubtful[number] else FAINT
        if len(names):
            _write(draw, (x, top), _cut(names[number], cell[1] - GAP), ink)
        for line, (title, pictures) in enumerate(stages.items()):
            y = top + head + line * cell[0]
            shown = to_pixels(to_channels(pictures[number : number + 1], 3))[0]
            shown = shown.repeat(scale, axis=0).repeat(scale, axis=1)
            sheet.paste(Image.fromarray(np.ascontiguousarray(shown)), (x, y))
            if number % across == 0:
                _write(draw, (MARGIN, y + (cell[0] - GAP - FONT) // 2), title, INK)
        if ink == DOUBT:
            foot = top + head + len(stages) * cell[0] - GAP
            draw.rectangle((x - 2, top + head - 2, x + width * scale + 1, foot + 1), outline=DOUBT, width=2)
    for line, words in enumerate(text):
        _write(draw, (MARGIN, MARGIN + bands * band + line * LINE), words, FAINT)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_sheet(path: Path, stages: Mapping[str, Pictures], **how: Any) -> None:
    """Write a sheet; arguments as of `contact_sheet`."""
    write_file(path, contact_sheet(stages, **how), private=True)


def as_pictures(stack: Pictures) -> Pictures:
    """Return pictures (N, C, H, W), or the middle slices of volumes (N, C, D, H, W)."""
    if stack.ndim == 4:
        return stack
    return np.stack([np.moveaxis(middle_slices(np.moveaxis(each, 0, -1)), -1, 0) for each in stack])


def to_pixels(pictures: Pictures) -> NDArray[np.uint8]:
    levels = np.rint((np.clip(pictures, -1.0, 1.0) + 1.0) * 127.5)
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(0, 2, 3, 1))


def _write(draw: ImageDraw.ImageDraw, place: tuple[int, int], text: str, ink: tuple[int, int, int]) -> None:
    draw.text(place, escape(text), fill=ink, font=ImageFont.load_default(FONT))


def _text_width(text: str) -> int:
    return int(ImageFont.load_default(FONT).getlength(escape(text))) + 1


def _lines(text: str, room: int) -> list[str]:
    """Wrap a text between words to lines of this many pixels; a longer word gets its own line."""
    lines: list[str] = []
    for word in text.split():
        if lines and _text_width(f"{lines[-1]} {word}") <= room:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _cut(text: str, room: int) -> str:
    if _text_width(text) <= room:
        return text
    while text and _text_width(f"{text}…") > room:
        text = text[:-1]
    return f"{text}…"


Points = NDArray[np.floating]

LIMIT = 3.0  # half the side of every panel, in standard deviations
PANEL_INCHES = 2.6
DPI = 150
DARK = "#3c3c46"
FRAME = "#d4d4dc"


def clouds(named: Sequence[tuple[str, Points]], path: Path, *, caption: str = "") -> None:
    """Draw the stages of a translation, each point in its own colour."""
    from matplotlib.figure import Figure

    foot = 0.3 if caption else 0.08
    height = PANEL_INCHES + 0.3 + foot
    figure = Figure(figsize=(len(named) * (PANEL_INCHES + 0.1) + 0.1, height), dpi=DPI, facecolor="white")
    axes = figure.subplots(1, len(named), squeeze=False)[0]
    figure.subplots_adjust(left=0.01, right=0.99, top=1 - 0.28 / height, bottom=foot / height, wspace=0.05)
    for axis, (title, points) in zip(axes, named, strict=True):
        _draw(axis, title, np.asarray(points, np.float64)[:, :2])
    if caption:
        style: dict[str, Any] = {"ha": "center", "va": "bottom", "fontsize": 8, "parse_math": False}
        figure.text(0.5, 0.09 / height, escape(caption), color=DARK, **style)
    _save(figure, path)


Curve = Sequence[tuple[int, float]]


def loss_curve(training: Curve, path: Path, *, held_out: Curve = ()) -> None:
    """The training loss as (step, loss) and, if given, the held-out loss."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    figure = Figure(figsize=(6, 3.4), dpi=DPI, facecolor="white", layout="constrained")
    axis = figure.subplots()
    for label, curve, colour in (("training", training, "#8fa8f0"), ("held out", held_out, "#d33f6a")):
        if curve:
            axis.plot(*zip(*curve, strict=True), color=colour, linewidth=1.2, label=label)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    axis.set_xlabel("step", color=DARK, fontsize=9)
    axis.set_ylabel("mean squared error of v", color=DARK, fontsize=9)
    axis.legend(frameon=False, fontsize=8, labelcolor=DARK)
    axis.grid(color=FRAME, linewidth=0.5, which="both", alpha=0.6)
    axis.tick_params(colors=DARK, labelsize=8)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(FRAME)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)  # type: ignore[no-untyped-call]
    write_file(path, buffer.getvalue())


def _draw(axis: Axes, title: str, points: NDArray[np.float64]) -> None:
    if points.shape[1] == 1:  # over the index
        points = np.stack([np.linspace(-LIMIT, LIMIT, len(points)), points[:, 0]], axis=1)
    # A fixed shuffle: otherwise the last colours cover the others where clouds are dense.
    order = np.random.default_rng(0).permutation(len(points))
    size = float(np.clip(12_000 / len(points), 0.25, 9))
    style: dict[str, Any] = {"cmap": "rainbow", "s": size, "linewidths": 0, "vmin": 0}
    axis.scatter(points[order, 0], points[order, 1], c=order, vmax=max(1, len(points) - 1), **style)
    axis.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", xticks=[], yticks=[])
    axis.set_title(escape(title), fontsize=10, color=DARK, pad=4, parse_math=False)
    for spine in axis.spines.values():
        spine.set(color=FRAME, linewidth=0.8)
