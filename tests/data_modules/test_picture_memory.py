"""What reading a picture takes is bounded, known from its header, and held to by a process with so much memory."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import tifffile

from ddib_fed.data.fitting import PictureRule, memory_of
from ddib_fed.data.pictures import ImageLimits, decode_image
from ddib_fed.errors import ImageTooLarge
from tests.data_modules.picture_examples import chunk, deep_png, saved, tiff_of

SIDE = 3_000
MEASURE = """
import json, os, re, sys
import numpy
import tifffile
from PIL import JpegImagePlugin, PngImagePlugin, TiffImagePlugin
from ddib_fed.data import pictures as images
from ddib_fed.data.pictures import ImageLimits
from ddib_fed.data.fitting import PictureRule, from_array, to_array
from ddib_fed.data.pictures import cost_of
from ddib_fed.data.fitting import FIXED, memory_of

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) << 10

def measure(path, whole):
    content = open(path, "rb").read()
    rule = PictureRule(3, 64, 64, "resize", 0.0, 65535.0, 16)
    limits = ImageLimits()
    to_array(images.decode_image(images.encode_png(numpy.zeros((4, 4, 3), "uint16"))), rule)
    stated = {"decoding": FIXED + cost_of(content, limits).decoding, "whole": memory_of(content, limits, rule)}
    before = peak()
    picture = images.decode_image(content, limits)
    decoded = peak() - before
    found = {"stated": stated, "decoding": decoded}
    if whole:
        array, size = to_array(picture, rule)
        found["read"] = peak() - before
        del picture
        images.encode_png(from_array(array, rule, size))
        found["whole"] = peak() - before
    print(json.dumps(found), flush=True)

for line in sys.stdin:
    whole, path = line.split(maxsplit=1)
    child = os.fork()
    if child == 0:
        try:
            measure(path.strip(), whole == "whole")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.fixture(scope="module")
def measured():
    """Measure what one file takes, each in a fresh process: a fork of one that has imported everything."""
    with subprocess.Popen(
        [sys.executable, "-c", MEASURE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:

        def measure(path, part):
            process.stdin.write(f"{part} {path}\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield measure
        process.stdin.close()


BLANK = np.zeros((SIDE, SIDE, 3), np.uint8)
FILES = {
    "png rgb 16": lambda: deep_png(SIDE, 2, 3),
    "png rgba 16": lambda: deep_png(SIDE, 6, 4),
    "png palette": lambda: saved(BLANK, "PNG", "P", transparency=0),
    "jpeg progressive": lambda: saved(BLANK, "JPEG", progressive=True),
    "jpeg cmyk": lambda: saved(BLANK, "JPEG", "CMYK"),
    "tiff tiles": lambda: tiff_of(BLANK.astype(np.uint16), compression="zlib", tile=(256, 256)),
    "tiff lzw": lambda: saved(BLANK, "TIFF", compression="tiff_lzw"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_picture_takes_no_more_than_its_header_states(name, measured, tmp_path) -> None:
    """As a process of its own measures it; of some also from the file to the model's array and back to a PNG."""
    path = tmp_path / "picture"
    path.write_bytes(FILES[name]())
    whole = name in {"png rgb 16", "jpeg cmyk"}
    found = measured(path, "whole" if whole else "decoding")
    assert found["decoding"] <= found["stated"]["decoding"]
    if whole:
        assert found["whole"] <= found["stated"]["whole"]
    if name == "png rgb 16":  # 126 MB for 9 megapixels; it took 380
        assert found["read"] < 17 * SIDE * SIDE


@pytest.mark.parametrize(("height", "width"), [(20_000_000, 1), (1, 20_000_000)])
def test_a_thread_of_a_picture_states_what_its_resizing_would_take(height, width) -> None:
    """Twenty megapixels in one column: between the two passes they are 64 columns."""
    rule = PictureRule(1, 64, 64)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")
    stated = memory_of(content, ImageLimits(), rule)
    assert stated > 64 * 20_000_000


def test_a_tile_larger_than_its_picture_is_refused() -> None:
    """Decoders make room for a whole tile: 600 MB here, for four pixels."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((2, 2), np.uint16), tile=(16, 16), compression="zlib", metadata=None)
    content = bytearray(file.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(content))) as opened:
        for name in ("TileWidth", "TileLength"):
            tag = opened.pages[0].tags[name]
            struct.pack_into("<H" if tag.dtype == 3 else "<I", content, tag.valueoffset, 17_600)
    with pytest.raises(ImageTooLarge, match="tiles"):
        decode_image(bytes(content))
