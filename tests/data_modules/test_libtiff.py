"""A damaged TIFF is an error that is raised, and nothing on stderr."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from PIL import Image

from ddib_fed.data.pictures import decode_image
from ddib_fed.errors import ImageUnreadable


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "group4"])
def test_libtiff_writes_nothing_past_pythons_logging(
    compression: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its own error handler writes to file descriptor 2, where a node's log lines are."""
    file, pixels = io.BytesIO(), np.random.default_rng(1).integers(0, 256, (64, 64), dtype=np.uint8)
    picture = Image.fromarray(pixels).convert("1" if compression == "group4" else "L")
    picture.save(file, "TIFF", compression=compression)
    content = bytearray(file.getvalue())
    content[200:240] = b"\xff\x00\xaa\x13" * 10
    with contextlib.suppress(ImageUnreadable):
        decode_image(bytes(content))
    assert capfd.readouterr().err == ""
