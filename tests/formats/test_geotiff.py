"""Maps made by rasterio: by tiles and back, with their georeference; plain TIFFs are left alone."""

from __future__ import annotations

import numpy as np
import pytest
import rasterio
from rasterio.io import MemoryFile

from ddib_fed.errors import ImageUnreadable
from ddib_fed.formats.study import StudyResults
from tests.formats.echoes import echo, only, require_pixels_alone, results
from tests.formats.maps import WHERE, write_map

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning:affine")

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
