import pytest

from ddib_fed.training.config import TrainConfig
from tests.training.pictures.examples import spots_source


@pytest.fixture
def spots():
    return spots_source()


@pytest.fixture
def tiny():
    """A run of about a second."""
    return TrainConfig(
        kind="pictures",
        network={"model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1},
        batch=8,
        steps=12,
        warmup=2,
        checkpoint_every=5,
        samples=2,
        flip=True,
        dtype="float32",
    )
