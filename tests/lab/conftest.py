import numpy as np
import pytest

from ddib_fed.lab.config import PrivateTrainConfig


@pytest.fixture
def points(tmp_path):
    path = tmp_path / "points.npy"
    np.save(path, np.random.default_rng(0).normal(3, 2, (600, 2)).astype(np.float32))
    return path


@pytest.fixture
def private(points):
    """A private run of a second."""
    return PrivateTrainConfig(
        data=points,
        steps=24,
        batch=54,
        levels=27,
        reference=0,
        warmup=5,
        width=16,
        blocks=1,
        checkpoint_every=7,
        samples=200,
        dp_epsilon=8.0,
        dp_delta=1e-4,
        dp_draws=2,
        dp_accountant="rdp",
    )
