"""North and south, each admitted at the other, and a listening server of south."""

from pathlib import Path

import pytest

from tests.node.institutions import Institution
from tests.node.listening import Listening


@pytest.fixture
def north(tmp_path: Path) -> Institution:
    return Institution("north.example", tmp_path / "north")


@pytest.fixture
def south(tmp_path: Path) -> Institution:
    return Institution("south.example", tmp_path / "south")


@pytest.fixture
def node(north: Institution, south: Institution):
    south.admit(north)
    listening = Listening(south)
    north.admit(south, listening.address)
    yield listening
    listening.close()
