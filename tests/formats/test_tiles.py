"""Tiles cover a picture and are the picture again; JPEG 2000, WebP and BMP are sent without their metadata."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ddib_fed.data.pictures import decode_image
from ddib_fed.errors import FileMissing, ImageTooLarge, ImageUnreadable
from ddib_fed.formats.tiles import TileGrid, blend
from tests.formats.echoes import echo, only, require_pixels_alone

PIXELS = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(np.uint8)
LOSSLESS = {"jp2": {"irreversible": False}, "webp": {"lossless": True}, "bmp": {}}


@pytest.mark.parametrize("size", [(32, 32), (90, 131), (33, 40), (20, 200)])
def test_tiles_cover_every_pixel_and_are_the_picture_again(size):
    picture = np.random.default_rng(3).normal(size=(*size, 2)).astype(np.float32)
    grid = TileGrid.of(*size, (32, 32))
    tiles = [picture[window] for window in grid.windows()]
    assert {tile.shape[:2] for tile in tiles} == {grid.tile}
    blended, covered = blend(tiles, grid, 2)
    np.testing.assert_allclose(blended, picture, atol=1e-3)
    assert covered.all()


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_the_same_again(suffix, channels, tmp_path):
    """Sent as a PNG of pixels alone, and written as one."""
    pixels = PIXELS[..., :channels]
    path = tmp_path / f"scan.{suffix}"
    Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(path, **LOSSLESS[suffix])
    study = only(path)
    require_pixels_alone(study)
    made = study.assemble(echo(study, change=lambda numbers: 255 - numbers))
    back = decode_image(made.files["scan.png"]).pixels
    np.testing.assert_array_equal(back[..., :channels], 255 - pixels)


def test_sixteen_bits_of_jpeg_2000_survive(tmp_path):
    """In and out, grey."""
    deep = (PIXELS[..., 0].astype(np.uint16) << 8) + PIXELS[..., 1]
    Image.fromarray(deep).save(tmp_path / "scan.jp2", irreversible=False)
    study = only(tmp_path / "scan.jp2")
    assert study.pixels.numbers.dtype == np.uint16
    made = study.assemble(echo(study, scale=(1.0, 0.0, 16, 0.0, 65535.0)))
    np.testing.assert_array_equal(decode_image(made.files["scan.png"]).pixels[..., 0], deep)


def test_bad_files_are_named(tmp_path):
    """None, torn, of another format, and of several frames."""
    with pytest.raises(FileMissing):
        only(tmp_path / "none.webp")
    (tmp_path / "torn.webp").write_bytes(b"RIFF\x10\0\0\0WEBPVP8 ")
    Image.fromarray(PIXELS).save(tmp_path / "other.png")
    (tmp_path / "other.png").rename(tmp_path / "other.bmp")
    for name in ("torn.webp", "other.bmp"):
        with pytest.raises(ImageUnreadable, match=name):
            only(tmp_path / name)
    frames = [Image.fromarray(PIXELS), Image.fromarray(255 - PIXELS)]
    frames[0].save(tmp_path / "film.webp", save_all=True, append_images=frames[1:], duration=100)
    with pytest.raises(ImageTooLarge):
        only(tmp_path / "film.webp")
