"""One running pair of institutions for tests that leave it as they found it; fresh ones for tests that do not."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddib_fed.testing import TwoNodes
from tests.e2e import impatience
from tests.e2e.harness import two_nodes
from tests.e2e.processes import PLANT


@pytest.fixture(scope="session")
def pair() -> Iterator[TwoNodes]:
    """North and south, serving."""
    with tempfile.TemporaryDirectory(prefix="ddib-e2e-") as folder, two_nodes(Path(folder)) as made:
        yield made


@pytest.fixture
def fresh_pair(tmp_path: Path) -> Iterator[TwoNodes]:
    """North and south, impatient, set up and not started."""
    made = two_nodes(tmp_path)
    for node in made.both:
        node.environment = {PLANT: impatience.PLANTED}
    yield made
    made.kill()
