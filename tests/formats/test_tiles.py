"""Tiles cover a picture and are the picture again; what comes of a picture of another format, and of a map."""

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.io import MemoryFile

from ddib_fed.data.pictures import decode_image
from ddib_fed.data.study import StudyResults
from ddib_fed.data.tiles import TileGrid, blend
from ddib_fed.errors import ImageUnreadable
from tests.formats.echoes import echo, only, require_pixels_alone, results
from tests.formats.maps import WHERE, write_map
from tests.node.picture_examples import SECRET

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:affine")

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
    deep = (PIXELS[..., 0].astype(np.uint16) << 8) + PIXELS[..., 1]
    Image.fromarray(deep).save(tmp_path / "scan.jp2", irreversible=False)
    study = only(tmp_path / "scan.jp2")
    assert study.pixels.numbers.dtype == np.uint16
    made = study.assemble(echo(study, scale=(1.0, 0.0, 16, 0.0, 65535.0)))
    np.testing.assert_array_equal(decode_image(made.files["scan.png"]).pixels[..., 0], deep)


@pytest.mark.parametrize("suffix", ["webp", "jp2"])
def test_metadata_stay(suffix, tmp_path):
    """Neither an item nor an output nor the record has them."""
    exif, text, path = Image.Exif(), SECRET.encode(), tmp_path / f"scan.{suffix}"
    exif[270] = SECRET
    metadata = {"webp": {"exif": exif, "xmp": text, "icc_profile": text}, "jp2": {"comment": SECRET}}[suffix]
    Image.fromarray(PIXELS).save(path, **LOSSLESS[suffix], **metadata)
    assert path.read_bytes().count(text) == len(metadata)
    study = only(path)
    require_pixels_alone(study)  # a profile would be compressed
    assert SECRET not in repr([*study.items(), study.assemble(echo(study))])


ROWS, COLUMNS = np.mgrid[0:90, 0:131]
SMOOTH = np.stack([100 + 80 * np.sin(ROWS / 17), 120 + 60 * np.cos(COLUMNS / 11), ROWS + COLUMNS / 3]).astype(
    "uint8"
)


def opened(content):
    with MemoryFile(content) as memory, memory.open() as file:
        return file.profile, file.read(), file.dataset_mask() > 0, file.tags()


def test_a_map_comes_back_where_it_was(tmp_path):
    """The same pixels, reference system and transform; no tag of the input, and a mark."""
    path = write_map(tmp_path / "map.tif", SMOOTH)
    study = only(path, tile=(32, 32))
    require_pixels_alone(study)
    assert len(list(study.items())) == len(study.pixels.grid) > 20
    made = study.assemble(echo(study))
    profile, values, _, tags = opened(made.files["map.tif"])
    assert np.abs(values.astype(int) - SMOOTH).max() <= 1
    assert (profile["crs"], profile["transform"]) == (rasterio.crs.CRS.from_epsg(32633), WHERE["transform"])
    assert tags["SYNTHETIC"] == "YES"
    assert "OWNER" not in tags
    assert b"Lovelace" not in made.files["map.tif"]
    assert made.report["geometry"]["crs"] == "EPSG:32633"


def test_holes_are_filled_for_the_model_and_stay_holes(tmp_path):
    """Where there are no data nothing extreme is sent, and the output has a mask there; empty tiles are not sent."""
    mask = np.full((90, 131), 255, np.uint8)
    mask[:45, 60:] = 0
    holed = np.where(mask, SMOOTH, 0).astype(np.uint8)
    study = only(write_map(tmp_path / "map.tif", holed, mask=mask), tile=(32, 32))
    assert len(study.sent) < study.planes
    assert study.pixels.numbers[:45, 60:].min() > 0
    _, _, valid, _ = opened(study.assemble(echo(study)).files["map.tif"])
    np.testing.assert_array_equal(valid, mask > 0)


def test_scale_and_offset_of_a_band_are_applied(tmp_path):
    """A map of depths, stored as positive numbers with a negative scale, and without data where 9999 is stored."""
    stored = (10 * ROWS + COLUMNS).astype(np.int16)[None]
    stored[0, :5, :7] = 9999
    path = write_map(tmp_path / "map.tif", stored, nodata=9999)
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = [-0.5], [20.0]
    study = only(path, intensity="window:-200,440")
    depth = stored[0] * -0.5 + 20
    expected = np.rint(((depth + 420) / 440).clip(0, 1) * 255)
    inside = stored[0] != 9999
    np.testing.assert_array_equal(study.pixels.numbers[inside, 0], expected[inside])
    assert study.pixels.intensity["clipped"] == pytest.approx(
        np.mean(np.abs(depth[inside] + 200) > 220), abs=1e-6
    )
    assert (study.pixels.intensity["scales"], study.pixels.intensity["offsets"]) == ([-0.5], [20.0])
    content = study.assemble(echo(study)).files["map.tif"]
    with MemoryFile(content) as memory, memory.open() as file:
        assert (file.scales, file.offsets) == ((1.0,), (0.0,)), "the units are the target's"


@pytest.mark.parametrize("hole", [False, True])
@pytest.mark.parametrize(("dtype", "base", "step"), [("int32", 2**30, 1), ("float64", 5e6, 2.0**-12)])
def test_wide_numbers_lose_nothing_on_their_way(dtype, base, step, hole, tmp_path):
    """32-bit floats have steps of 64 and of a half there; a hole in the map makes no difference."""
    values = (base + step * (ROWS + COLUMNS)).astype(dtype)[None]
    if hole:
        values[0, 40:50, 40:50] = 0
    study = only(write_map(tmp_path / "map.tif", values, nodata=0), intensity="percentile:0,100@0:65535")
    inside = values[0] != 0
    share = (values[0] - values[0][inside].min()) / np.ptp(values[0][inside])
    np.testing.assert_array_equal(study.pixels.numbers[inside, 0], np.rint(share[inside] * 65535))
    assert study.pixels.numbers[~inside].size == 100 * hole
    around = study.pixels.numbers[35:55, 35:55]
    assert around.min() > 20_000, "a hole is filled from around it"
    with pytest.raises(ImageUnreadable, match="32-bit floats"):
        only(tmp_path / "map.tif", intensity="values")


def test_refused_tiles_are_holes(tmp_path):
    study = only(write_map(tmp_path / "map.tif", SMOOTH), tile=(60, 88))
    found = results(study)
    found[0] = None
    made = study.assemble(StudyResults.of(found))
    _, _, valid, _ = opened(made.files["map.tif"])
    assert made.report["tiles"]["refused"] == [0]
    assert not valid[:20, :40].any()
    assert valid[50:].all()


@pytest.mark.parametrize("bands", [2, 5])
def test_other_bands_are_refused_with_a_command(bands, tmp_path):
    path = write_map(tmp_path / "map.tif", np.stack([SMOOTH[0]] * bands), photometric="minisblack")
    with pytest.raises(ImageUnreadable, match="bands") as caught:
        only(path)
    assert "rio stack" in caught.value.hint


def test_a_pixel_without_data_in_one_band_is_a_hole_in_all(tmp_path):
    """No hole becomes black: where the holes of bands differ, values beside them keep their numbers."""
    values = SMOOTH.astype(np.int16) * 10
    holes = [(slice(0, 20), slice(0, 30)), (slice(30, 50), slice(40, 60)), (slice(70, 90), slice(90, 131))]
    there = np.ones(values.shape[1:], np.bool_)
    for band, hole in enumerate(holes):
        values[band][hole], there[hole] = -9999, False
    study = only(write_map(tmp_path / "map.tif", values, nodata=-9999), intensity="percentile:0,100")
    low, high = values[:, there].min(), values[:, there].max()
    expected = np.rint((values - low) / np.float32(high - low) * 255)
    np.testing.assert_array_equal(study.pixels.numbers[there], expected.transpose(1, 2, 0)[there])
    _, _, valid, _ = opened(study.assemble(echo(study)).files["map.tif"])
    np.testing.assert_array_equal(valid, there)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_in_one_band_is_a_hole(value, tmp_path):
    values = SMOOTH.astype(np.float32)
    values[1, 20:40, 50:70] = value
    study = only(write_map(tmp_path / "map.tif", values))
    _, _, valid, _ = opened(study.assemble(echo(study)).files["map.tif"])
    np.testing.assert_array_equal(valid, np.isfinite(values[1]))
    assert study.pixels.numbers[20:40, 50:70].min() > 0


def test_percentiles_are_those_of_data_alone(tmp_path):
    """Not of what a hole is filled with, which is bright here, and larger than the rest of the map."""
    values = np.arange(90 * 131, dtype=np.float32).reshape(1, 90, 131)
    values[0, :20, :] = 40_000
    values[0, 20:80] = -1
    study = only(write_map(tmp_path / "map.tif", values, nodata=-1), intensity="percentile:5,70")
    black, white = np.percentile(values[values != -1], (5, 70))
    assert (study.pixels.intensity["black"], study.pixels.intensity["white"]) == pytest.approx((black, white))
