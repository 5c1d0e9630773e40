"""A client of a source node's double."""

import pytest

from ddib_fed.client.client import Client
from ddib_fed.client.profile import Profile


@pytest.fixture
def alice(north):
    with Client(Profile.load(north.profile_path), patience_s=10) as client:
        yield client
