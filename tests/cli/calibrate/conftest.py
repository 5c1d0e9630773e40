"""Two nodes that run, and their operators."""

from __future__ import annotations

import pytest

from ddib_fed.models.bundle import make_bundle
from tests.cli.calibrate.operators import Operators
from tests.e2e.two_nodes import TwoNodes
from tests.node.picture_examples import pictures_model, save_pictures_model


@pytest.fixture(scope="module")
def open_nodes(tmp_path_factory):
    """Opens both nodes; `settings` are lines of both node.toml."""
    opened = []

    def open_them(**settings) -> Operators:
        folder = tmp_path_factory.mktemp("nodes")
        models = [pictures_model("scans", seed=1), pictures_model("drawings", seed=2)]
        nodes = TwoNodes(folder, *map(make_bundle, *zip(*models, strict=True)), **settings)
        opened.append(nodes)
        for name, domain, seed in (("north", "scans", 1), ("south", "drawings", 2)):
            save_pictures_model(folder / name / "model", domain, seed=seed)
        return Operators(nodes, folder)

    yield open_them
    for nodes in opened:
        nodes.close()


@pytest.fixture(scope="module")
def asking(open_nodes) -> Operators:
    return open_nodes(calibration='["rotation"]')


@pytest.fixture
def both(asking) -> Operators:
    asking.clear()
    return asking
