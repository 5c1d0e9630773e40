"""A trajectory is a whole piece of work: in ranges of rows, pickled, on the calling thread or beside it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.batcher import Batcher
from ddib_fed.engine.executors import CallingThread
from ddib_fed.engine.model import DomainModel
from ddib_fed.engine.party import Control
from ddib_fed.engine.stack import Trajectory
from ddib_fed.engine.streams import submit_ranges
from ddib_fed.errors import Cancelled
from tests.runs.tiny_models import tiny

SETTINGS = SolverSettings(evaluations=6)


@pytest.fixture(scope="module")
def model() -> DomainModel:
    return DomainModel(tiny("north", seed=1, num_classes=3))


def trajectory(model: DomainModel, rows: int = 5, **changes) -> Trajectory:
    x = torch.randn(rows, *model.sample_shape, generator=torch.Generator().manual_seed(rows))
    return Trajectory("decode", x, SETTINGS, **{"label": np.arange(rows) % 3, **changes})


def ended(model: DomainModel, work: Trajectory, rows: int = 100) -> torch.Tensor:
    return CallingThread(model, rows).submit(work).result()


def test_ranges_of_rows_are_joined_to_the_whole(model) -> None:
    """With each row's own class, on the calling thread and beside it."""
    work = trajectory(model)
    whole = ended(model, work)
    assert not torch.allclose(ended(model, trajectory(model, label=np.zeros(5, np.int64))), whole)
    batcher = Batcher(model, rows=2)
    for executor in (CallingThread(model, 2), batcher):
        steps: list[tuple[int, int]] = []
        found = submit_ranges(
            executor, work, control=None, on_step=lambda *at, steps=steps: steps.append(at)
        ).result(20)
        torch.testing.assert_close(found, whole, atol=1e-5, rtol=1e-5)
        assert steps == [(step, 18) for step in range(1, 19)]
    batcher.close()


def test_a_ranges_noise_is_that_of_its_own_rows(model) -> None:
    """Decoding that draws noise is the same in ranges as whole."""
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((6, 5, *model.sample_shape)).astype(np.float32)
    settings = SolverSettings("ddim", 0, 6, eta=0.5)
    x = torch.from_numpy(noise[0].copy())
    work = Trajectory(
        "decode", x, settings, label=np.zeros(5, np.int64), draw=lambda step, rows: noise[step][rows]
    )
    parts = [ended(model, work.part(start, stop)) for start, stop in ((0, 2), (2, 5))]
    torch.testing.assert_close(torch.cat(parts), ended(model, work), atol=1e-5, rtol=1e-5)


def test_the_first_error_of_a_range_is_the_wholes(model) -> None:
    control = Control()
    work = trajectory(model)
    found = submit_ranges(CallingThread(model, 2), work, control=control, on_step=lambda *_: control.cancel())
    with pytest.raises(Cancelled):
        found.result()
    batcher = Batcher(model, rows=2)
    beside = submit_ranges(batcher, work, control=control, on_step=None)
    with pytest.raises(Cancelled):
        beside.result(10)
    batcher.close()
