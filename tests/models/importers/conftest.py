"""The diffusers library, imported only where a test needs it: that takes 3 s of CPU."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def diffusers():
    return pytest.importorskip("diffusers")


@pytest.fixture(scope="session")
def pipelines(diffusers):
    return pytest.importorskip("tests.models.importers.pipelines")
