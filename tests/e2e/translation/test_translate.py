"""Two real processes over real mutual TLS: what a researcher at north does, and what goes wrong with a file."""

from __future__ import annotations

import io

import numpy as np
import pytest

from ddib_fed.errors import DdibError, NotFinite, PointsTooMany, PointsUnreadable, ShapeMismatch
from tests.e2e.harness import Pair, moons

pytestmark = pytest.mark.e2e

TARGET = "south.example/checkerboards"


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (npy(np.array([[0.0, np.nan]], np.float32)), NotFinite),
        (npy(np.zeros((5, 3), np.float32)), ShapeMismatch),
        (npy(np.zeros((100_001, 2), np.float32)), PointsTooMany),
        (npy(np.zeros((2, 2), np.float32))[:-3], PointsUnreadable),
    ],
    ids=["nan", "shape", "many", "torn"],
)
def test_a_bad_file_is_named_and_the_node_lives_on(
    pair: Pair, content: bytes, error: type[DdibError]
) -> None:
    """Each bad file is refused with its own error naming the item, and the next good one goes through."""
    good = npy(moons(10))
    with pair.client() as client:
        with pytest.raises(error) as caught:
            client.submit([good, content], TARGET)
        assert caught.value.facts["item"] == "1"
        assert client.translate([good], TARGET)[0].translation


def test_the_logs_hold_no_traceback_and_no_warning(pair: Pair) -> None:
    """Nodes for which every Python warning is an error translate, and refuse a bad file, without a trace of one."""
    with pair.client() as client:
        client.translate([npy(moons(50))], TARGET, cycle=True)
        with pytest.raises(NotFinite):
            client.submit([npy(np.full((3, 2), np.nan, np.float32))], TARGET)
    for node in (pair.north, pair.south):
        log = (node.folder / "log.txt").read_text()
        assert "serving" in log
        assert not [line for line in log.splitlines() if "Traceback" in line or "Warning:" in line]
