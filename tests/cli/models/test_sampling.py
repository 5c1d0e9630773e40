"""`ddib model sample` and `interpolate`, and `ddib try`."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from ddib_fed.cli.model import model
from ddib_fed.cli.options import Classes, parse_pairs
from ddib_fed.data.pictures import encode_png
from ddib_fed.errors import (
    UsageError,
)
from ddib_fed.models.bundle import save_bundle
from tests.runs.tiny_models import tiny, tiny_classifier

FEW = ("--evaluations", "3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two models, one with classes, a classifier, and two pictures."""
    root = tmp_path_factory.mktemp("place")
    models = {
        "north": tiny("north", seed=1, soften_sigma=0.02),
        "south": tiny("south", seed=2, soften_sigma=0.02),
        "classy": tiny("classy", num_classes=3),
        "classifier": tiny_classifier(3),
    }
    for name, made in models.items():
        save_bundle(root / name, made.manifest, made.state)
    (root / "in" / "0").mkdir(parents=True)
    for number in range(2):
        pixels = np.full((10, 8, 1), 60 * number + 40, np.uint8)
        (root / "in" / "0" / f"scan{number}.png").write_bytes(encode_png(pixels))
    return root


def call(group, *arguments):
    return CliRunner().invoke(
        group, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False
    )


def test_a_way_between_two_pictures(place, tmp_path):
    ends = [place / "in" / "0" / f"scan{number}.png" for number in (0, 1)]
    said = call(model, "interpolate", *ends, "--source", place / "north", *FEW, "--out", tmp_path)
    assert (tmp_path / "frame_2.png").exists()
    assert "sheet.png" in said.output


def test_classes_go_by_number_and_by_name():
    classes = Classes("pets", 2, ("cat", "7"))
    assert [classes.number(text) for text in ("cat", "7", "1", " 0 ")] == [0, 1, 1, 0]
    assert parse_pairs("cat:1, 1:cat", classes, classes) == ((0, 1), (1, 0))
    for wrong in ("2", "dog", "-1", ""):
        with pytest.raises(UsageError):
            classes.number(wrong)
    with pytest.raises(UsageError):
        parse_pairs("cat", classes, classes)
