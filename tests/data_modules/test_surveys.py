"""What a folder holds, in figures; and the range of values that a model is to take."""

import numpy as np
import pytest

from ddib_fed.data.folder import choose_range, scan, survey
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import SettingsInvalid
from tests.data_modules.picture_examples import npy_of, tiff_of


@pytest.fixture
def ramp(tmp_path):
    pixels = np.arange(4096, dtype=np.uint16).reshape(64, 64, 1)
    (tmp_path / "ramp.tif").write_bytes(tiff_of(pixels))
    return scan(tmp_path)


def folder_of(root, **arrays):
    for name, array in arrays.items():
        (root / f"{name}.npy").write_bytes(npy_of(array))
    return scan(root)


def test_a_survey_counts_what_is_there(tmp_path):
    """Sizes, types, classes, values, duplicates and blank pictures."""
    for name in ("cat_1", "cat_2", "dog_1"):
        (tmp_path / f"{name}.png").write_bytes(encode_png(np.full((4, 6, 3), 9, np.uint8)))
    (tmp_path / "dog_2.tif").write_bytes(tiff_of(np.arange(20, dtype=np.uint16).reshape(4, 5, 1)))
    (tmp_path / "dog_3.png").write_bytes(b"")
    found = survey(scan(tmp_path, classes="prefix", skip_bad=True))
    assert (found.channels, found.dtypes) == ({1: 1, 3: 3}, {"uint8": 3, "uint16": 1})
    text = "\n".join(found.lines)
    for part in (
        "4 pictures, 1 left out",
        "3 of 4 x 6",
        "cat (2)",
        "2 duplicates",
        "3 of one value",
        "0 to 19",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("spec", "low", "high"),
    [("-1000:2000", -1000, 2000), ("p1:p99", 40.95, 4054.05), ("type", 0, 65535)],
)
def test_a_range_is_given_by_values_percentiles_or_the_type(ramp, spec, low, high):
    chosen = choose_range(ramp, spec)
    assert (chosen.low, chosen.high) == pytest.approx((low, high), abs=1e-9)


@pytest.mark.parametrize("spec", ["", "5:5", "a:b", "p99:p1", "p1:p101", "nan:1"])
def test_what_is_no_range_is_refused(ramp, spec):
    """Also an empty one, and an endless one."""
    with pytest.raises(SettingsInvalid):
        choose_range(ramp, spec)


def test_floats_and_mixed_types_have_no_range_of_their_own(tmp_path):
    """A guess would be silent and wrong; the hint says what to give."""
    found = folder_of(tmp_path, a=np.zeros((4, 4), "f4"))
    with pytest.raises(SettingsInvalid, match="no range of its own") as caught:
        choose_range(found)
    assert "--range" in caught.value.hint
    found = folder_of(tmp_path, b=np.zeros((4, 4), "u1"))
    with pytest.raises(SettingsInvalid, match="several types"):
        choose_range(found)
