"""A source node's double, and a client of it."""

from __future__ import annotations

import pytest

from ddib_fed.client.client import Client
from ddib_fed.client.profile import Profile
from tests.client.scripted_source import SourceNodeDouble


@pytest.fixture
def north(tmp_path):
    node = SourceNodeDouble(tmp_path)
    yield node
    node.stop()


@pytest.fixture
def alice(north):
    with Client(Profile.load(north.profile_path), patience_s=10) as client:
        yield client
