"""A sheet of pictures: one row for each title, one column for each picture, pixels as they are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddib_fed.metrics import Pictures, to_channels

GAP, MARGIN, FONT = 4, 12, 13
INK, PAPER = (60, 60, 70), (255, 255, 255)


def save_sheet(path: Path, rows: Mapping[str, Pictures]) -> None:
    """Write rows of pictures (N, C, H, W) in [-1, 1], all of one number and size, with their titles."""
    font = ImageFont.load_default(FONT)
    left = 2 * MARGIN + int(max(map(font.getlength, rows)))
    count, _, height, width = next(iter(rows.values())).shape
    size = left + count * (width + GAP) + MARGIN, 2 * MARGIN + len(rows) * (height + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    for line, (title, pictures) in enumerate(rows.items()):
        top = MARGIN + line * (height + GAP)
        draw.text((MARGIN, top + (height - FONT) // 2), title, fill=INK, font=font)
        levels = np.rint((np.clip(to_channels(pictures, 3), -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
        for column, picture in enumerate(levels.transpose(0, 2, 3, 1)):
            shown = Image.fromarray(np.ascontiguousarray(picture))
            sheet.paste(shown, (left + column * (width + GAP), top))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(255).save(path, optimize=True)  # a third of the size in true colour


def halved(pictures: Pictures) -> Pictures:
    """Return pictures of half the sides."""
    count, channels, height, width = pictures.shape
    small: Pictures = pictures.reshape(count, channels, height // 2, 2, width // 2, 2).mean((3, 5))
    return small
