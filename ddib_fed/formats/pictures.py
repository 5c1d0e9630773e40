"""JPEG 2000, WebP and BMP, and any picture that is larger than a model of parts of pictures: pixels in, a picture out.

A picture of a format that nodes do not take is one of the same format again where that can hold it, else a PNG. One
that is larger than the model is sent in tiles; where none came back the result is background, and a mask says so.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from ddib_fed.data.pictures import (
    ORIENTATION,
    ImageLimits,
    Pixels,
    decode_image,
    encode_png,
    faults_as_unreadable,
    open_pillow,
    pillow_pixels,
    read_content,
    too_many_frames,
    upright,
)
from ddib_fed.errors import FileMissing, ImageUnreadable
from ddib_fed.formats.geotiff import TileGrid, Tiles
from ddib_fed.formats.intensity import AUTO, IntensityRule
from ddib_fed.formats.recognition import PICTURES, tile_of
from ddib_fed.formats.study import Assembled, Options, Origin, Study, StudyResults

_LOSSLESS: Final[dict[str, dict[str, Any]]] = {
    "JPEG2000": {"irreversible": False},
    "WEBP": {"lossless": True},
    "BMP": {},
}


@dataclass(frozen=True, slots=True)
class PictureStudy(Study):
    """A picture that is sent as pixels; its result is of the same format, or a PNG."""

    pixels: Tiles
    format: str

    @property
    def kind(self) -> str:
        kind = {"JPEG2000": "JPEG 2000", "WEBP": "WebP", "PNG": "picture"}.get(self.format, self.format)
        return kind if self.planes == 1 else f"{kind} in tiles"

    def assemble(self, translated: StudyResults) -> Assembled:
        """The picture of the results, without loss, with its mask and with what came back."""
        blended, covered = self.pixels.together(translated.planes, translated.channels, translated.background)
        pixels = _as_numbers(blended, translated.bits)
        figures, back = self.pixels.figures(translated)
        report, said = self.pixels.report(translated, blended)
        name, content, why = self._file(pixels, translated.bits)
        files = {name: content}
        if not covered.all():
            files[f"{self.name}.mask.png"] = encode_png(covered[..., None].astype(np.uint8) * np.uint8(255))
            share = 100 * float(1 - covered.mean())
            said = (*said, f"{share:.1f} % of it was not translated and is background: {self.name}.mask.png")
        if back is not None and self.planes > 1:
            returned = next(plane for plane in translated.returned if plane is not None)
            files[f"{self.name}.returned.png"] = encode_png(_as_numbers(back, 8 * returned.dtype.itemsize))
        return Assembled(files, report, (*why, *said), figures if self.planes > 1 else {})

    def _file(self, pixels: Pixels, bits: int) -> tuple[str, bytes, tuple[str, ...]]:
        """Name and content of the result, and what has to be said of its format."""
        plain, grey16 = self.format == "PNG", self.format == "JPEG2000" and pixels.shape[2] == 1
        if plain or (bits == 16 and not grey16):
            said = f"{self.kind} cannot hold 16 bits of {pixels.shape[2]} channels, so the result is a PNG"
            return f"{self.name}.png", encode_png(pixels), () if plain else (said,)
        from PIL import Image

        file = io.BytesIO()
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
        image.save(file, self.format, **_LOSSLESS[self.format])
        return self.outputs[0], file.getvalue(), ()


def _as_numbers(picture: Pixels, bits: int) -> Pixels:
    kind = np.uint8 if bits == 8 else np.uint16
    return np.rint(picture).clip(0, np.iinfo(kind).max).astype(kind)


def picture_origin(path: Path, options: Options, within: str = "") -> Origin:
    """What the study of a picture is made from; results lie below the folder `within`."""
    own = (path.suffix,) if path.suffix.lower() in PICTURES else ()
    return Origin.of_file(
        path,
        options.settings("intensity", "picture_tile", "most_tiles"),
        suffix=path.suffix,
        within=within,
        results=(*own, ".png"),
        beside=(".mask.png", ".returned.png"),
    )


def read_picture(origin: Origin, options: Options) -> PictureStudy:
    path = origin.given
    if not path.exists():
        raise FileMissing(f"there is no {path}", hop="client")
    kind = PICTURES.get(path.suffix.lower(), "PNG")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=UserWarning)
            content = read_content(path, ImageLimits())
            pixels = decode_image(content).pixels if kind == "PNG" else _pixels(content, kind)
    except ImageUnreadable as error:
        raise ImageUnreadable(f"{path}: {error.detail}", hop="client", hint=error.hint) from error
    rule = IntensityRule("values") if options.intensity == AUTO else IntensityRule.parse(options.intensity)
    intensity = rule.on(pixels)
    height, width = pixels.shape[:2]
    tile = tile_of(height, width, options.picture_tile, options.most_tiles)
    grid = TileGrid.of(height, width, tile)
    numbers, record = intensity.numbers(pixels), intensity.record(pixels)
    if len(grid) > 1:
        tiles = Tiles.of(numbers, grid, record, rule.text)
    else:
        tiles = Tiles(numbers, grid, (0,), record, rule.text)
    if not tiles.sent:
        raise ImageUnreadable(f"{path} shows nothing: all its tiles are of one value", hop="client")
    return PictureStudy(origin, tiles, kind)


def _pixels(content: bytes, kind: str) -> Pixels:
    limits = ImageLimits()
    limits.check_bytes(len(content))
    with faults_as_unreadable(kind):
        image = open_pillow(content, kind)
        limits.check_size(image.height, image.width)
        frames = getattr(image, "n_frames", 1)
        if frames > 1:
            raise too_many_frames(f"the {kind}", frames)
        if kind == "JPEG2000" and image.mode not in {"L", "I;16"} and _bits(content) > 8:
            raise ImageUnreadable(
                f"it has {_bits(content)} bits in several channels, which cannot be read exactly here",
                hint="convert it to a 16-bit PNG or TIFF first",
            )
        orientation = image.getexif().get(ORIENTATION, 1)
        return upright(pillow_pixels(image, "white"), orientation)


def _bits(content: bytes) -> int:
    at = content.find(b"\xff\x4f\xff\x51")
    return (content[at + 42] & 0x7F) + 1 if at >= 0 and len(content) > at + 42 else 8
