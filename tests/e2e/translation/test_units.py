"""Files whose numbers or kind are not the model's, sent to the two nodes that ship with the package."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import png
import pytest
import tifffile
from PIL import Image

from ddib_fed.cli.main import run
from ddib_fed.data.shipped import load_shipped
from tests.e2e.harness import Pair, moons

pytestmark = pytest.mark.e2e

TARGET = "south.example/relief"


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """North's satellite pictures become south's relief; both models are the shipped ones, of 8 bits."""
    with tempfile.TemporaryDirectory(prefix="ddib-units-") as name:
        made = Pair.create(Path(name), "relief", domain="satellite")
        try:
            yield made.start()
        finally:
            made.stop()


def photograph() -> np.ndarray:
    return np.rint((load_shipped("satellite").held_out[5].transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)


def write(folder: Path, name: str, pixels: np.ndarray) -> Path:
    path = folder / name
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix == ".tif":
        tifffile.imwrite(path, pixels)
    elif pixels.dtype == np.uint16:
        with path.open("wb") as file:
            png.Writer(width=32, height=32, greyscale=False, bitdepth=16).write(file, pixels.reshape(32, -1))
    else:
        Image.fromarray(pixels).save(path)
    return path


def translate(pair: Pair, path: Path, out: Path) -> int:
    words = ["translate", str(path), "--to", TARGET, "--cycle", "--steps", "12", "--out", str(out)]
    return run([*words, "--profile", str(pair.profile)])


@pytest.mark.parametrize("name", ["deep.png", "deep.tif", "unit.npy", "points.npy"])
def test_what_is_not_in_the_models_units_is_refused_by_name(pair: Pair, tmp_path: Path, name: str, capsys):
    """16-bit colour (8 bits x 257), floats of [0, 1] and points end with 3, name the file, and become no job."""
    pixels = {
        "deep.png": photograph().astype(np.uint16) * 257,
        "deep.tif": photograph().astype(np.uint16) * 257,
        "unit.npy": photograph().astype(np.float32) / 255,
        "points.npy": moons(40),
    }[name]
    assert translate(pair, write(tmp_path, name, pixels), tmp_path / "out") == 3
    said = capsys.readouterr().err
    assert name in said
    assert "north.example/satellite" in said
    assert not list((tmp_path / "out").glob("*.png"))


def test_the_same_picture_in_its_own_units_is_translated(pair: Pair, tmp_path: Path) -> None:
    """As 8 bits, and as 8-bit numbers in a 16-bit file."""
    for number, pixels in enumerate((photograph(), photograph().astype(np.uint16))):
        path = write(tmp_path, f"good-{number}.png", pixels)
        assert translate(pair, path, tmp_path / "out") == 0
