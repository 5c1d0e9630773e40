import pytest

from ddib_fed.training.config import TrainConfig


@pytest.fixture
def tiny():
    """A run of a second."""
    return TrainConfig(
        kind="points",
        domain="moons",
        steps=40,
        batch=64,
        levels=16,
        reference=32,
        warmup=5,
        width=16,
        blocks=1,
        checkpoint_every=7,
        samples=200,
    )
