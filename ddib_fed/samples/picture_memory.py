"""Computes from a file's header how much memory decoding it takes.

The figure is an upper bound of the memory of each format's decoder, as measured (docs/operating.md
has the table), without the file itself. Later needs are in `fitting.input_bytes` and `output_bytes`.
"""

from __future__ import annotations

from typing import NamedTuple

from ddib_fed.samples.fitting import Geometry, PictureRule, input_bytes, output_bytes
from ddib_fed.samples.formats.decoded import ImageLimits, faults_as_unreadable
from ddib_fed.samples.formats.png_jpeg_npy import ORIENTATION, jpeg_scan, npy_shape, open_pillow, png_header
from ddib_fed.samples.formats.tiff import first_page, segment_bytes
from ddib_fed.samples.images import image_format

_PALETTE = 3  # "colour type" of the PNG specification
_PLANES, _WHITE_IS_ZERO = 2, 0  # TIFF's PlanarConfiguration and PhotometricInterpretation
FIXED = 32 << 20
"""Of a large picture: what decoders keep for themselves."""


class Cost(NamedTuple):
    """Memory needs of a picture, in bytes."""

    decoding: int
    pixels: int
    itemsize: int
    geometry: Geometry
    dtype: str = ""
    channels: int = 1


def memory_of(content: bytes, limits: ImageLimits, rule: PictureRule) -> int:
    """Upper bound of the memory to read this file and write a picture of its size, in bytes; without the file."""
    cost = cost_of(content, limits)
    lying = Geometry(cost.geometry.width, cost.geometry.height)
    after = max(
        max(cost.pixels + input_bytes(way, cost.itemsize, rule), output_bytes(way, rule))
        for way in (cost.geometry, lying)
    )
    return fixed_bytes(cost.geometry) + max(cost.decoding, after)


def fixed_bytes(geometry: Geometry) -> int:
    return min(FIXED, (1 << 20) + 64 * geometry.height * geometry.width)


def cost_of(content: bytes, limits: ImageLimits) -> Cost:
    """Memory needed for decoding, from the header."""
    kind = image_format(content) or ""
    with faults_as_unreadable(kind or "picture"):
        found: Cost = {"PNG": _png, "JPEG": _jpeg, "TIFF": _tiff, "NPY": _npy}.get(kind, _nothing)(content)
    limits.check_size(found.geometry.height, found.geometry.width)
    return found


def _png(content: bytes) -> Cost:
    """Pillow's picture (4 bytes a pixel but for grey) and the pixels; then these and what is flat, or upright,
    of them.
    """
    width, height, depth, colour = png_header(content)
    samples = {0: 1, 2: 3, 3: 4, 4: 2, 6: 4}.get(colour, 4)
    itemsize = 2 if depth == 16 else 1
    flat = (1 if samples < 3 else 3) * itemsize
    held = (2 if samples == 1 and depth == 16 else 1) if samples == 1 else 4
    # A palette is first converted to another Pillow image.
    converted = 4 if colour == _PALETTE else 0
    read = samples * itemsize if itemsize == 2 else flat
    most = max(held + converted, held + converted + read, read + flat)
    found = _cost(height, width, most, flat, itemsize, len(content))
    return found._replace(dtype="uint16" if itemsize == 2 else "uint8", channels=flat // itemsize)


def _jpeg(content: bytes) -> Cost:
    """Pillow's picture, and of one in several scans all coefficients: two bytes for each sample."""
    image = open_pillow(content, "JPEG")
    samples = len(image.getbands())
    scan = content[(start := jpeg_scan(content)) : start + 5]
    in_one = scan[:2] == b"\xff\xda" and scan[4:] == bytes([samples]) and "progressive" not in image.info
    coefficients = 0 if in_one else 2 * samples
    held = 1 if samples == 1 else 4
    flat = 1 if samples == 1 else 3
    converted = 4 if samples == 4 else 0  # CMYK is first converted to another Pillow image
    most = max(held + coefficients, held + converted + flat, 2 * flat)
    return _cost(image.height, image.width, most, flat, 1, 0)._replace(dtype="uint8", channels=flat)


def _tiff(content: bytes) -> Cost:
    """The pixels as stored, as Pillow's where libtiff reads, as settled or upright; and the segments being decoded."""
    page = first_page(content)
    samples = max(1, int(page.samplesperpixel))
    itemsize = max(1, int(page.bitspersample) // 8)
    flat = (1 if samples < 3 else 3) * (itemsize if itemsize <= 2 else 4)
    stored = samples * itemsize
    # Separate planes, rotated and inverted pictures are copied once more as stored.
    moved = page.planarconfig == _PLANES or page.photometric == _WHITE_IS_ZERO or ORIENTATION in page.tags
    by_pillow = 4 + 4 + max(flat, 4) if itemsize <= 4 else 0
    most = max(stored + (max(stored, flat) if moved else flat), by_pillow)
    segments = 2 * segment_bytes(page) + len(content)
    return _cost(page.imagelength, page.imagewidth, most, flat, min(itemsize, 4), segments)


def _npy(content: bytes) -> Cost:
    height, width, samples, itemsize = npy_shape(content)
    kept = samples * (itemsize if itemsize <= 2 else 4)
    return _cost(height, width, 2 * kept, kept, min(itemsize, 4), 0)


def _nothing(content: bytes) -> Cost:
    del content
    return Cost(0, 0, 1, Geometry(1, 1))


def _cost(height: int, width: int, most: int, pixels: int, itemsize: int, extra: int) -> Cost:
    count = int(height) * int(width)
    return Cost(count * most + extra, count * pixels, itemsize, Geometry(int(height), int(width)))
