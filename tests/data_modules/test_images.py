"""Pictures of every accepted form are read exactly; what is damaged, forged or too large is refused by
name; what reading takes is known from the header, and held to by a process with so much memory.
"""

import io
import itertools
import json
import struct
import subprocess
import sys
import zlib
from contextlib import suppress

import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ddib_fed.data.fitting import PictureRule, memory_of
from ddib_fed.data.pictures import ImageLimits, decode_image, encode_png
from ddib_fed.errors import ImageTooLarge, ImageUnreadable
from tests.data_modules import picture_examples as examples
from tests.data_modules.picture_examples import (
    chunk,
    chunks,
    deep_png,
    differences,
    exif,
    forged_png,
    lzw,
    noise,
    npy_of,
    png_of,
    raw_tiff,
    saved,
    tiff_of,
    with_chunk,
)


def assert_holds(content: bytes, pixels: np.ndarray, format_name: str) -> None:
    """The file is read as exactly these pixels, in their own type."""
    picture = decode_image(content)
    assert (picture.pixels.dtype, picture.format) == (pixels.dtype.newbyteorder("="), format_name)
    assert picture.pixels.flags.writeable
    assert picture.bits == 8 * pixels.dtype.itemsize
    np.testing.assert_array_equal(picture.pixels, pixels)


@pytest.mark.parametrize("interlace", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_png_is_read_to_the_bit(dtype, channels, interlace):
    """Grey and RGB of 8 and 16 bits, interlaced or not, written by hand."""
    pixels = noise(13, 17, channels, dtype)
    assert_holds(png_of(pixels, interlace=interlace), pixels, "PNG")


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [2, 4])
def test_transparency_shows_white(dtype, channels):
    """Each number is c a + b (1 - a), rounded; also where grey and alpha have 16 bits."""
    pixels = noise(9, 8, channels, dtype)
    top = np.iinfo(dtype).max
    colour, alpha = pixels[..., :-1].astype(float), pixels[..., -1:] / top
    got = decode_image(png_of(pixels)).pixels
    assert got.dtype == np.dtype(dtype)
    assert np.abs(got - (colour * alpha + top * (1 - alpha))).max() <= 0.5 + 1e-9


@pytest.mark.parametrize(("dtype", "channels"), [("uint8", 1), ("uint8", 3), ("uint16", 1), ("uint16", 3)])
def test_the_transparent_colour_of_a_png_is_white(dtype, channels):
    """The chunk tRNS names one colour; all others stay."""
    pixels = noise(6, 5, channels, dtype)
    key = tuple(int(v) for v in pixels[2, 3])
    got = decode_image(png_of(pixels, transparent=key)).pixels
    hidden = (pixels == pixels[2, 3]).all(axis=2, keepdims=True)
    expected = np.where(hidden, np.iinfo(dtype).max, pixels)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("channels", "planar"), [(1, None), (3, "contig"), (3, "separate")])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_a_tiff_is_read_to_the_bit(dtype, channels, planar):
    """Every type, interleaved or in planes, plain or deflated, in either byte order."""
    pixels = noise(13, 17, channels, dtype)
    options = {} if planar is None else {"planarconfig": planar}
    for order, compression in itertools.product("<>", (None, "zlib")):
        content = tiff_of(pixels, compression=compression, byteorder=order, **options)
        assert_holds(content, pixels, "TIFF")


@pytest.mark.parametrize("predictor", [1, 2])
@pytest.mark.parametrize(
    ("dtype", "channels"), [("uint8", 1), ("uint8", 3), ("uint16", 1), ("uint16", 3), ("int16", 1)]
)
def test_lzw_keeps_sixteen_bits(dtype, channels, predictor):
    """The compression that most programs write; with differences along the row or without."""
    pixels = noise(7, 11, channels, dtype)
    strip = lzw(differences(pixels) if predictor == 2 else pixels.tobytes())
    assert_holds(raw_tiff(pixels, 5, strip, predictor=predictor), pixels, "TIFF")


UPRIGHT = {
    1: lambda p: p, 2: np.fliplr, 3: lambda p: np.rot90(p, 2), 4: np.flipud, 5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p, 2).swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_turns_a_picture_upright(orientation):
    """PNG, JPEG and TIFF, plain and compressed, 8 and 16 bits: the eight cases of tag 274."""
    turn = UPRIGHT[orientation]
    small, large = noise(6, 9, 3), noise(6, 9, 3, "uint16")
    np.testing.assert_array_equal(
        decode_image(saved(small, "PNG", exif=exif(orientation))).pixels, turn(small)
    )
    jpeg = saved(small, "JPEG", exif=exif(orientation))
    np.testing.assert_array_equal(decode_image(jpeg).pixels, turn(np.asarray(Image.open(io.BytesIO(jpeg)))))
    for pixels in (small, large):
        for compression in (None, "zlib"):
            tagged = tiff_of(pixels, compression=compression, extratags=[(274, 3, 1, orientation, True)])
            np.testing.assert_array_equal(decode_image(tagged).pixels, turn(pixels))


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i2", ">i2", "<f4", ">f4"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3)])
def test_a_npy_is_read_to_the_bit(dtype, shape):
    """In the four types that a picture has, in either byte order, in C and Fortran order."""
    array = noise(5, 7, shape[2] if len(shape) == 3 else 1, np.dtype(dtype).newbyteorder("=").name)
    array = array.astype(dtype).reshape(shape)
    for content in (npy_of(array), npy_of(np.asfortranarray(array))):
        assert_holds(content, array.reshape(5, 7, -1), "NPY")


@given(
    st.sampled_from(["uint8", "uint16"]).flatmap(
        lambda kind: hnp.arrays(
            kind, st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))
        )
    )
)
def test_what_is_written_is_read(pixels):
    """From a PNG of pixels alone, without text, time, profile or EXIF; anybody's library reads the same."""
    content = encode_png(pixels)
    assert set(chunks(content)) == {b"IHDR", b"IDAT", b"IEND"}
    assert encode_png(np.asfortranarray(pixels)) == content
    np.testing.assert_array_equal(decode_image(content).pixels, pixels)
    np.testing.assert_array_equal(imagecodecs.png_decode(content).reshape(pixels.shape), pixels)


def test_a_palette_becomes_rgb_and_its_transparent_entries_white():
    """Indices are looked up, never shown."""
    content = forged_png(1, 3, colour=3, packed=zlib.compress(bytes([0, 0, 1, 2])))
    colours, alpha = bytes([255, 0, 0, 0, 255, 0, 1, 2, 3]), bytes([255, 0, 255])
    got = decode_image(with_chunk(with_chunk(content, b"tRNS", alpha), b"PLTE", colours))
    np.testing.assert_array_equal(got.pixels, [[[255, 0, 0], [255, 255, 255], [1, 2, 3]]])


FILES = {
    "png": encode_png(noise(20, 20, 3)),
    "png16": encode_png(noise(20, 20, 3, "uint16")),
    "jpeg": saved(noise(20, 20, 3), "JPEG"),
    "tiff": tiff_of(noise(20, 20, 3)),
    "tiff16": tiff_of(noise(20, 20, 3, "uint16"), compression="zlib"),
    "lzw": raw_tiff(noise(20, 20, 3, "uint16"), 5, examples.lzw(noise(20, 20, 3, "uint16").tobytes())),
    "npy": npy_of(noise(20, 20, 3, "float32")),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0.3, 0.95])
def test_a_file_that_is_cut_short_is_unreadable(name, share):
    content = FILES[name]
    with pytest.raises(ImageUnreadable):
        decode_image(content[: max(1, int(len(content) * share))])


def _frames(format_name: str, **options) -> bytes:
    file = io.BytesIO()
    first, second = (Image.fromarray(noise(16, 16, 3, seed=seed)) for seed in (1, 2))
    first.save(file, format_name, save_all=True, append_images=[second], **options)
    return file.getvalue()


@pytest.mark.parametrize("format_name", ["MPO", "TIFF", "PNG", "GIF"])
def test_a_file_of_two_pictures_is_refused(format_name):
    """A JPEG of two frames (MPO: stereo cameras, telephones) is one too; of it the first alone was taken."""
    content = _frames(format_name)
    wanted = ImageUnreadable if format_name in {"GIF", "WEBP"} else ImageTooLarge
    with pytest.raises(wanted) as caught:
        decode_image(content)
    if wanted is ImageTooLarge:
        assert caught.value.facts["limit_frames"] == "1"
        assert caught.value.hint


@pytest.mark.parametrize("between", [b"", bytes(100)], ids=["at once", "after zeros"])
@pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
def test_one_file_behind_another_is_refused(format_name, between):
    """Decoders stop at the end of the first, which alone was taken; anything else there is passed over, as before."""
    content = saved(noise(16, 16, 3, seed=1), format_name)
    with pytest.raises(ImageTooLarge, match="more than one frame"):
        decode_image(content + between + content)
    for further in (between, b"\0\0\0\x18ftypmp42" + bytes(40), content[4:]):
        assert np.array_equal(decode_image(content + further).pixels, decode_image(content).pixels)


@pytest.mark.parametrize(
    "content",
    [
        saved(np.zeros((11, 10, 3), np.uint8), "JPEG"),
        tiff_of(np.zeros((11, 10, 3), np.uint16)),
        tiff_of(np.zeros((11, 10, 1), np.uint8), compression="zlib"),
        npy_of(np.zeros((11, 10))),
        npy_of(np.zeros((3, 11, 10))),
        encode_png(np.zeros((11, 10, 1), np.uint8)),
    ],
)
def test_the_limit_on_pixels_holds_for_every_format(content):
    with pytest.raises(ImageTooLarge) as caught:
        decode_image(content, ImageLimits(max_pixels=100))
    assert caught.value.facts["pixels"] == "110"


def test_a_tiff_that_unpacks_to_more_than_its_picture_is_refused():
    """A strip of deflated zeros, a thousand times the picture."""
    pixels = noise(20, 20, 1, "uint16")
    with pytest.raises(ImageUnreadable, match="unpacks to more"):
        decode_image(raw_tiff(pixels, 8, zlib.compress(bytes(50_000_000))))


def test_a_forged_shape_does_not_wrap_round():
    """2^33 by 2^33 by 3 bytes are not a small number; the limit refuses them first."""
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (8589934592, 8589934592, 3), }\n"
    with pytest.raises(ImageTooLarge):
        decode_image(b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
def test_numbers_that_are_not_finite_are_refused_and_counted(value):
    """In .npy and TIFF; also a double that float32 cannot hold."""
    array = np.zeros((3, 4, 1))
    array[1, 2] = array[2, 3] = value
    for content in (npy_of(array), tiff_of(array)):
        with pytest.raises(ImageUnreadable) as caught:
            decode_image(content)
        assert caught.value.facts == {"not_finite": "2"}


def test_a_second_header_is_refused():
    """A decoder would believe it, although the limit was held against the first."""
    content = forged_png(4, 4)
    second = chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 0, 0, 0, 0))
    end = 8 + 25
    with pytest.raises(ImageUnreadable, match="two headers"):
        decode_image(content[:end] + second + content[end:])


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "group4"])
def test_libtiff_writes_nothing_past_pythons_logging(compression, capfd):
    """Its own error handler writes to file descriptor 2, where a node's log lines are."""
    file, pixels = io.BytesIO(), np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert("1" if compression == "group4" else "L")
    picture.save(file, "TIFF", compression=compression)
    content = bytearray(file.getvalue())
    content[200:240] = b"\xff\x00\xaa\x13" * 10
    with suppress(ImageUnreadable):
        decode_image(bytes(content))
    assert capfd.readouterr().err == ""


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
LARGE_FILES = {
    "png rgb 16": lambda: deep_png(SIDE, 2, 3),
    "png rgba 16": lambda: deep_png(SIDE, 6, 4),
    "png palette": lambda: saved(BLANK, "PNG", "P", transparency=0),
    "jpeg progressive": lambda: saved(BLANK, "JPEG", progressive=True),
    "jpeg cmyk": lambda: saved(BLANK, "JPEG", "CMYK"),
    "tiff tiles": lambda: tiff_of(BLANK.astype(np.uint16), compression="zlib", tile=(256, 256)),
    "tiff lzw": lambda: saved(BLANK, "TIFF", compression="tiff_lzw"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE_FILES)
def test_a_picture_takes_no_more_than_its_header_states(name, measured, tmp_path) -> None:
    """As a process of its own measures it; of some also from the file to the model's array and back to a PNG."""
    path = tmp_path / "picture"
    path.write_bytes(LARGE_FILES[name]())
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
    """Count the whole tile that a decoder makes room for: 1.2 GB here, for four pixels."""
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((2, 2), np.uint16), tile=(16, 16), compression="zlib", metadata=None)
    content = bytearray(file.getvalue())
    with tifffile.TiffFile(io.BytesIO(bytes(content))) as opened:
        for name in ("TileWidth", "TileLength"):
            tag = opened.pages[0].tags[name]
            struct.pack_into("<H" if tag.dtype == 3 else "<I", content, tag.valueoffset, 17_600)
    with pytest.raises(ImageTooLarge, match="1181 MiB of memory"):
        decode_image(bytes(content), ImageLimits(max_memory=220 << 20))


def test_previews_inside_a_jpeg_are_no_second_picture():
    """Cameras keep some of them in a segment, one behind the other."""
    content = saved(noise(16, 16, 3, seed=1), "JPEG")
    segment = b"\xff\xeb" + struct.pack(">H", 2 + 2 * len(content)) + 2 * content
    assert np.array_equal(
        decode_image(content[:2] + segment + content[2:]).pixels, decode_image(content).pixels
    )
