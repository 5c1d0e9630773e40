"""JPEG 2000, WebP and BMP: one item of pixels in, and a picture of the same format out where it can hold it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ddib_fed.errors import FileMissing, ImageUnreadable
from ddib_fed.extras import extra
from ddib_fed.formats.intensity import AUTO, Rule, item_bytes
from ddib_fed.formats.origin import Origin
from ddib_fed.formats.recognition import PICTURES
from ddib_fed.formats.study import Assembled, FromOrigin, Options, Translated
from ddib_fed.samples.formats.decoded import (
    ImageLimits,
    Pixels,
    faults_as_unreadable,
    too_many_frames,
    upright,
)
from ddib_fed.samples.formats.png_jpeg_npy import ORIENTATION, open_pillow, pillow_pixels
from ddib_fed.samples.images import encode_png, read_content

_LOSSLESS: Final[dict[str, dict[str, Any]]] = {
    "JPEG2000": {"irreversible": False},
    "WEBP": {"lossless": True},
    "BMP": {},
}


@dataclass(frozen=True, slots=True)
class PictureStudy(FromOrigin):
    """A picture of a format that nodes do not take; its result is of the same format, or a PNG.

    Attributes:
        format: As Pillow calls it.
        numbers: (H, W, C) that are sent.
        intensity: For the provenance.
        rule: The rule that made the numbers.
    """

    format: str
    numbers: Pixels
    intensity: dict[str, Any]
    rule: str

    @property
    def kind(self) -> str:
        return {"JPEG2000": "JPEG 2000", "WEBP": "WebP"}.get(self.format, self.format)

    @property
    def warnings(self) -> tuple[str, ...]:
        return ()

    @property
    def sent(self) -> tuple[int, ...]:
        return (0,)

    @property
    def planes(self) -> int:
        return 1

    def items(self) -> Iterator[bytes]:
        yield item_bytes(self.numbers)

    def assemble(self, translated: Translated) -> Assembled:
        """The picture of the result, without loss."""
        pixels = translated.planes[0]
        assert pixels is not None
        report = {"intensity": self.intensity, "output": translated.record()}
        grey16 = self.format == "JPEG2000" and pixels.shape[2] == 1
        if translated.bits == 16 and not grey16:
            said = (f"{self.kind} cannot hold 16 bits of {pixels.shape[2]} channels, so the result is a PNG",)
            return Assembled({self.outputs[1]: encode_png(pixels)}, report, said)
        from PIL import Image

        file = io.BytesIO()
        image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
        image.save(file, self.format, **_LOSSLESS[self.format])
        return Assembled({self.outputs[0]: file.getvalue()}, report)


def picture_origin(path: Path, options: Options, within: str = "") -> Origin:
    """What the study of a picture is made from; arguments as of `read_picture`."""
    return Origin.of_file(
        path, options.settings("intensity"), suffix=path.suffix, within=within, others=(".png",)
    )


def read_picture(path: Path, options: Options, within: str = "") -> PictureStudy:
    """The picture in a file, upright and without transparency.

    Args:
        path: The file.
        options: Rule of intensity.
        within: In front of the name of the results, as in `Origin.of_file`.

    Raises:
        FileMissing: There is none.
        ExtraMissing: Pillow is not installed.
        ImageUnreadable: It is damaged, of another format than its suffix says, or would lose bits here.
        ImageTooLarge: It has more bytes, pixels or frames than the limits.
        UsageError: There is no such rule of intensity.
    """
    if not path.exists():
        raise FileMissing(f"there is no {path}", hop="client")
    kind = PICTURES[path.suffix.lower()]
    with extra("pictures", "Pillow", f"reading {path.suffix} needs Pillow, which is not installed"):
        import PIL.Image  # noqa: F401
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=UserWarning)
            pixels = _pixels(read_content(path, ImageLimits()), kind)
    except ImageUnreadable as error:
        raise ImageUnreadable(f"{path}: {error.detail}", hop="client", hint=error.hint) from error
    rule = Rule("values") if options.intensity == AUTO else Rule.parse(options.intensity)
    intensity = rule.on(pixels)
    origin = picture_origin(path, options, within)
    return PictureStudy(origin, kind, intensity.numbers(pixels), intensity.record(pixels), rule.text)


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
    """Bits of the first component of a JPEG 2000 codestream (Annex A.5.1: marker SIZ)."""
    at = content.find(b"\xff\x4f\xff\x51")
    return (content[at + 42] & 0x7F) + 1 if at >= 0 and len(content) > at + 42 else 8
