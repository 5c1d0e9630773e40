"""A source node's double, whose profile the commands use."""

from __future__ import annotations

import pytest

from tests.client.scripted_source import SourceNodeDouble


@pytest.fixture
def north(tmp_path):
    node = SourceNodeDouble(tmp_path)
    yield node
    node.stop()
