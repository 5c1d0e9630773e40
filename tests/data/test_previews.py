"""What a browser shows of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ddib_fed.data.pictures import decode_image, encode_png
from ddib_fed.data.previews import SIZE, preview


def saved(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_values_of_16_bits_fill_the_range_of_the_screen(tmp_path: Path, suffix: str) -> None:
    """A scan with values from 1000 to 1255 is not black."""
    pixels = (1000 + np.arange(256, dtype=np.uint16)).reshape(16, 16, 1)
    path = tmp_path / f"scan{suffix}"
    if suffix == ".png":
        path.write_bytes(encode_png(pixels))
    else:
        saved(path, pixels[..., 0])
    content, media = preview(path)
    seen = decode_image(content).pixels
    assert media == "image/png"
    assert (seen.min(), seen.max()) == (0, 255)
    assert seen.shape == (16, 16, 1)
    assert np.all(np.diff(seen.ravel().astype(int)) >= 0)


def test_points_are_drawn(tmp_path: Path) -> None:
    """Dark where they are, upwards is up."""
    points = np.array([[-1.0, -1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]], np.float32)
    seen = decode_image(preview(saved(tmp_path / "p.npy", points))[0]).pixels[..., 0]
    assert seen.shape == (SIZE, SIZE)
    upper_right, lower_left = seen[: SIZE // 2, SIZE // 2 :], seen[SIZE // 2 :, : SIZE // 2]
    assert upper_right.min() < lower_left.min() < 255
    assert seen[: SIZE // 2, : SIZE // 2].min() == 255
