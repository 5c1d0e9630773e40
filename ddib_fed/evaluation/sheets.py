"""Contact sheets: one row for each stage, one column for each picture.

Pixels are shown unchanged. Small pictures are enlarged by an integer factor, each pixel becoming a square,
and nothing is stretched, smoothed or sorted by how good it looks.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ddib_fed.errors import ShapeMismatch
from ddib_fed.evaluation.metrics import Pictures, to_channels
from ddib_fed.files import write_file
from ddib_fed.terminal import escape

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

ACROSS = 8
CELL = 96
"""Pixels that the longer side of a small picture is at least brought to."""
MOST_SCALE = 4
GAP, MARGIN, LINE = 4, 12, 18
LEAST_WIDTH = 480
"""Of a sheet with a caption."""
FONT = 13
INK, FAINT, DOUBT, PAPER = (60, 60, 70), (130, 130, 140), (200, 30, 60), (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Stage:
    title: str
    pictures: Pictures = field(repr=False)


def contact_sheet(
    stages: Sequence[Stage],
    *,
    names: Sequence[str] = (),
    doubtful: Sequence[bool] = (),
    across: int = ACROSS,
    caption: str = "",
) -> bytes:
    """A PNG of all stages of all pictures, `across` pictures per band."""
    from PIL import Image, ImageDraw

    sizes = {(len(stage.pictures), *stage.pictures.shape[2:]) for stage in stages}
    if len(sizes) != 1:
        raise ShapeMismatch(
            f"the stages of a sheet must have one number and size of pictures, not {sorted(sizes)}"
        )
    count, height, width = sizes.pop()
    if count == 0 or not {len(names), len(doubtful)} <= {0, count}:
        raise ShapeMismatch(f"{count} pictures have {len(names)} names and {len(doubtful)} marks")
    scale = max(1, min(MOST_SCALE, -(-CELL // max(height, width))))
    cell = height * scale + GAP, width * scale + GAP
    left = MARGIN + max(_text_width(stage.title) for stage in stages) + 8
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
        for line, stage in enumerate(stages):
            y = top + head + line * cell[0]
            shown = to_pixels(to_channels(stage.pictures[number : number + 1], 3))[0]
            shown = shown.repeat(scale, axis=0).repeat(scale, axis=1)
            sheet.paste(Image.fromarray(np.ascontiguousarray(shown)), (x, y))
            if number % across == 0:
                _write(draw, (MARGIN, y + (cell[0] - GAP - FONT) // 2), stage.title, INK)
        if ink == DOUBT:
            foot = top + head + len(stages) * cell[0] - GAP
            draw.rectangle((x - 2, top + head - 2, x + width * scale + 1, foot + 1), outline=DOUBT, width=2)
    for line, words in enumerate(text):
        _write(draw, (MARGIN, MARGIN + bands * band + line * LINE), words, FAINT)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def save_sheet(path: Path, stages: Sequence[Stage], **how: Any) -> None:
    """Write a sheet; arguments as of `contact_sheet`."""
    write_file(path, contact_sheet(stages, **how), private=True)


def to_pixels(pictures: Pictures) -> NDArray[np.uint8]:
    levels = np.rint((np.clip(pictures, -1.0, 1.0) + 1.0) * 127.5)
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(0, 2, 3, 1))


def _write(draw: ImageDraw, place: tuple[int, int], text: str, ink: tuple[int, int, int]) -> None:
    from PIL import ImageFont

    draw.text(place, escape(text), fill=ink, font=ImageFont.load_default(FONT))


def _text_width(text: str) -> int:
    from PIL import ImageFont

    return int(ImageFont.load_default(FONT).getlength(escape(text))) + 1


def _lines(text: str, room: int) -> list[str]:
    """A text wrapped between words to lines of this many pixels; a longer word gets its own line."""
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
