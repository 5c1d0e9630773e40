"""Pictures of every accepted form are read exactly, and written without anything but their pixels."""

import io
import itertools

import numpy as np
import png
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ddib_fed.data.pictures import ImageLimits, decode_image, encode_png, read_image
from ddib_fed.errors import ImageTooLarge
from tests.data_modules.picture_examples import (
    chunk,
    differences,
    exif,
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
    """Grey and RGB of 8 and 16 bits, interlaced or not, written by another library."""
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
    got = decode_image(png_of(pixels, transparent=key[0] if channels == 1 else key)).pixels
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
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: np.rot90,
}


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
    """Any picture of 8 or 16 bits comes back from its PNG, and anybody's library reads the same."""
    content = encode_png(pixels)
    np.testing.assert_array_equal(decode_image(content).pixels, pixels)
    _, _, rows, _ = png.Reader(bytes=content).read()
    np.testing.assert_array_equal(np.vstack([np.asarray(r) for r in rows]).reshape(pixels.shape), pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_written_png_has_nothing_but_its_pixels(dtype, channels):
    """Header, pixels, end: no text, time, resolution, profile or EXIF; the same bytes for the same pixels."""
    pixels = noise(40, 50, channels, dtype)
    content = encode_png(pixels)
    assert {name for name, _ in png.Reader(bytes=content).chunks()} == {b"IHDR", b"IDAT", b"IEND"}
    assert encode_png(np.asfortranarray(pixels)) == content


def test_a_file_over_the_limit_is_not_read(tmp_path):
    """Its size alone refuses it: nothing is there that could be decoded."""
    path = tmp_path / "huge.png"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(ImageTooLarge) as caught:
        read_image(path)
    assert caught.value.facts == {"size_bytes": str(1 << 40), "limit_bytes": str(ImageLimits().max_bytes)}


def test_profiles_and_texts_are_not_unpacked():
    """A profile that would unpack to a gigabyte is left out before any decoder sees it."""
    pixels = noise(4, 5, 3)
    content = with_chunk(encode_png(pixels), b"iCCP", b"x\0\0" + b"\x78\x9c" + b"broken")
    content = with_chunk(content, b"zTXt", b"x\0\0broken")
    np.testing.assert_array_equal(decode_image(content).pixels, pixels)
    assert chunk(b"zTXt", b"x\0\0broken") in content


def test_a_palette_becomes_rgb_and_its_transparent_entries_white():
    """Indices are looked up, never shown."""
    palette = [(255, 0, 0, 255), (0, 255, 0, 0), (1, 2, 3, 255)]
    file = io.BytesIO()
    png.Writer(width=3, height=1, palette=palette, bitdepth=8).write(file, [[0, 1, 2]])
    got = decode_image(file.getvalue())
    np.testing.assert_array_equal(got.pixels, [[[255, 0, 0], [255, 255, 255], [1, 2, 3]]])
