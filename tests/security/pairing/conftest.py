"""North dials, south waits."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ddib_fed.security.peers import Peer
from tests.node.institutions import Institution
from tests.security.pairing.sides import Side, Waiting


@pytest.fixture(scope="module")
def peers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Peer, Peer]:
    made = [
        Institution(f"{name}.example", tmp_path_factory.mktemp(name)).peer() for name in ("north", "south")
    ]
    return made[0], made[1]


@pytest.fixture
def north(peers: tuple[Peer, Peer]) -> Side:
    return Side(peers[0])


@pytest.fixture
def south(peers: tuple[Peer, Peer]) -> Side:
    return Side(peers[1])


@pytest.fixture
def waiting(south: Side) -> Iterator[Waiting]:
    made = Waiting(south)
    yield made
    made.close()
