import pytest

from ddib_fed.evaluation import sheets
from tests.training.examples import spots_source, tiny_pictures, tiny_points


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """A blank in place of the curve of the loss, which takes half of a short run and is drawn by tests/cli."""
    monkeypatch.setattr(sheets, "loss_curve", lambda training, path, **_: path.write_bytes(b""))


@pytest.fixture
def tiny():
    return tiny_points()


@pytest.fixture
def small():
    return tiny_pictures()


@pytest.fixture
def spots():
    return spots_source()
