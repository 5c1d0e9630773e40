"""Numbers of the tests of networks: the same whichever tests ran before."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Weights and inputs are random, and bounds are met by these."""
    torch.manual_seed(0)
