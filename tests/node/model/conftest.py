"""The configuration of a source node with a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddib_fed.node.config import NodeConfig
from tests.node.tiny_nodes import make_config, save_model


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    made = make_config(tmp_path / "north", "north.example", "source")
    save_model(made)
    return made
