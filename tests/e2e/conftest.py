"""One running pair of institutions for tests that leave it as they found it; fresh ones for tests that do not."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Pair


@pytest.fixture(scope="session")
def pair() -> Iterator[Pair]:
    """North and south, serving."""
    with tempfile.TemporaryDirectory(prefix="ddib-e2e-") as folder:
        made = Pair.create(Path(folder))
        try:
            yield made.start()
        finally:
            made.stop()


@pytest.fixture
def fresh_pair(tmp_path: Path) -> Iterator[Pair]:
    """North and south, set up and not started."""
    made = Pair.create(tmp_path)
    try:
        yield made
    finally:
        made.stop()
