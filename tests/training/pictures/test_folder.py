"""A folder becomes pictures to train on only in units that the range is of."""

import numpy as np
import pytest

from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import ImageUnreadable, KindMismatch, PictureMisfit
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.sources import folder_source

DTYPES = {"uint8": 1.0, "uint16": 257.0, "float32": 1 / 255}


def fill(root, dtype, count=16, channels=1):
    """Pictures of 32 x 32 of all that 8 bits hold, brought to a type; as .npy."""
    root.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (32, 32, channels)) * DTYPES[dtype]
        np.save(root / f"{dtype}-{number:02}.npy", pixels.astype(dtype))
    return root


def source(root, **settings):
    said = []
    return folder_source(TrainConfig(kind="pictures", images=root, **settings), say=said.append), said


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_a_range_of_8_bits_is_refused_for_other_types(tmp_path, dtype):
    """Named before anything is trained, with the range that would fit, and left out with skip_bad."""
    root = fill(tmp_path / "in", dtype, count=3)
    with pytest.raises(PictureMisfit) as caught:
        source(root, range="0:255")
    assert f"{dtype}-00.npy" in caught.value.detail
    assert f"--range {'0:65535' if dtype == 'uint16' else '0:1'}" in caught.value.hint
    fill(root, "uint8")
    found, said = source(root, range="0:255", skip_bad=True)
    assert len(found.train) + len(found.held_out) == 16
    assert sum(dtype in line and "takes 0 to 255" in line for line in said) == 3


def test_colours_that_are_dropped_are_said(tmp_path):
    """Training may convert colour to grey on request; it says how many pictures that is."""
    fill(fill(tmp_path / "in", "uint8"), "uint8", count=4, channels=3)
    (tmp_path / "in" / "grey.png").write_bytes(
        encode_png(np.arange(1024, dtype=np.uint16).reshape(32, 32, 1) % 256)
    )
    _, said = source(tmp_path / "in", channels=1, range="0:255")
    assert any(line.startswith("4 RGB pictures are made grey") for line in said)


def test_a_folder_of_points_is_no_folder_of_pictures(tmp_path):
    """A file alone is named with what it holds; in a folder it is one of the bad files."""
    np.save(tmp_path / "points.npy", np.zeros((50, 2)))
    with pytest.raises(KindMismatch, match=r"points\.npy holds points, 50 x 2"):
        source(tmp_path / "points.npy")
    fill(tmp_path, "uint8")
    with pytest.raises(ImageUnreadable, match=r"(?s)1 of 17 .*points\.npy: .*holds points"):
        source(tmp_path)
