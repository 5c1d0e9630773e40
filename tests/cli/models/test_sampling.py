"""`ddib model interpolate`, and classes by number and name."""

from __future__ import annotations

import numpy as np
import pytest

from ddib_fed.cli.model import model
from ddib_fed.cli.options import Classes, parse_pairs
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import (
    UsageError,
)
from ddib_fed.models.bundle import save_bundle
from tests.runs.tiny_models import tiny


def test_a_way_between_two_pictures(ddib, tmp_path):
    made = tiny("north", seed=1, soften_sigma=0.02)
    save_bundle(tmp_path / "north", made.manifest, made.state)
    ends = [tmp_path / f"scan{number}.png" for number in range(2)]
    for number, path in enumerate(ends):
        path.write_bytes(encode_png(np.full((10, 8, 1), 60 * number + 40, np.uint8)))
    way = ("--source", tmp_path / "north", "--evaluations", "3", "--out", tmp_path / "way")
    assert "sheet.png" in ddib(model, "interpolate", *ends, *way).output
    assert (tmp_path / "way" / "frame_2.png").exists()


def test_classes_go_by_number_and_by_name():
    classes = Classes("pets", 2, ("cat", "7"))
    assert [classes.number(text) for text in ("cat", "7", "1", " 0 ")] == [0, 1, 1, 0]
    assert parse_pairs("cat:1, 1:cat", classes, classes) == ((0, 1), (1, 0))
    for wrong in ("2", "dog", "-1", ""):
        with pytest.raises(UsageError):
            classes.number(wrong)
    with pytest.raises(UsageError):
        parse_pairs("cat", classes, classes)
