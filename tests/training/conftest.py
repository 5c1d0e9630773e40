import pytest

from tests.training.examples import spots_source, tiny_pictures, tiny_points


@pytest.fixture
def tiny():
    return tiny_points()


@pytest.fixture
def small():
    return tiny_pictures()


@pytest.fixture
def spots():
    return spots_source()
