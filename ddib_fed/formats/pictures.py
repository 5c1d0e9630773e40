"""JPEG 2000, WebP and BMP: decoded here, because nodes take none of them."""

from __future__ import annotations

import warnings
from typing import Final

from ddib_fed.errors import ImageUnreadable
from ddib_fed.studies import (
    ORIENTATION,
    ImageLimits,
    Options,
    Origin,
    PictureStudy,
    Pixels,
    faults_as_unreadable,
    open_pillow,
    pillow_pixels,
    read_content,
    too_many_frames,
    upright,
)

KINDS: Final = {".jp2": "JPEG2000", ".j2k": "JPEG2000", ".webp": "WEBP", ".bmp": "BMP"}
"""As Pillow calls them."""
_WORDS: Final = {"JPEG2000": "JPEG 2000", "WEBP": "WebP"}


def read_picture(origin: Origin, options: Options) -> PictureStudy:
    path, limits = origin.given, ImageLimits()
    kind = KINDS[path.suffix.lower()]
    with warnings.catch_warnings(action="ignore", category=UserWarning):
        pixels = _pixels(read_content(path, limits), kind, limits)
    return PictureStudy.of(origin, pixels, options, _WORDS.get(kind, kind))


def _pixels(content: bytes, kind: str, limits: ImageLimits) -> Pixels:
    with faults_as_unreadable(kind):
        image = open_pillow(content, kind)
        limits.check_size(image.height, image.width)
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise too_many_frames(f"the {kind}", frames)
        at = content.find(b"\xff\x4f\xff\x51")  # the header of a JPEG 2000 codestream
        bits = (content[at + 42] & 0x7F) + 1 if at >= 0 and len(content) > at + 42 else 8
        if kind == "JPEG2000" and image.mode not in {"L", "I;16"} and bits > 8:
            raise ImageUnreadable(
                f"it has {bits} bits in several channels, which cannot be read exactly here",
                hint="convert it to a 16-bit PNG or TIFF first",
            )
        orientation = image.getexif().get(ORIENTATION, 1)
        return upright(pillow_pixels(image), orientation)
