"""Numbers of the tests of networks: the same whichever tests ran before."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
