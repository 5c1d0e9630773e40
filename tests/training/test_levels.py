"""Levels cover the range; importance sampling follows the losses and keeps the expectation."""

import pytest
import torch

from ddib_fed.diffusion.schedule import ScheduleConfig, schedule_from_config
from ddib_fed.training.objective import BINS, HISTORY, level_sampler

EVEN = (torch.arange(4096, dtype=torch.float64) + 0.5) / 4096


@pytest.fixture(
    params=[{"name": "cosine"}, {"name": "linear", "steps": 1000}], ids=["continuous", "discrete"]
)
def schedule(request):
    return schedule_from_config(ScheduleConfig(**request.param))


@pytest.mark.parametrize("name", ["grid", "uniform", "loss-second-moment"])
def test_levels_cover_the_range_with_equal_weights(schedule, name):
    lams, weights = level_sampler(name, schedule).draw(EVEN)
    assert torch.isfinite(lams).all()
    assert float(lams.max()) == pytest.approx(schedule.lambda_max, abs=0.15)
    assert float(lams.min()) == pytest.approx(schedule.lambda_min, abs=0.6)
    assert torch.allclose(weights, torch.ones_like(weights))


def test_uniform_levels_are_uniform_in_time(schedule):
    lams, _ = level_sampler("uniform", schedule).draw(EVEN)
    t = schedule.t_of_lam(lams)
    assert float(torch.diff(t).max() - torch.diff(t).min()) < 0.01 * float(t.max() - t.min())


@pytest.fixture
def taught(schedule):
    """A sampler that has seen losses ten times larger in the second half of the times."""
    sampler = level_sampler("loss-second-moment", schedule)
    places = (torch.arange(BINS, dtype=torch.float64) + 0.5) / BINS
    for _ in range(HISTORY):
        sampler.learn(sampler.lambdas(places), torch.where(places < 0.5, 0.1, 1.0))
    return sampler


def test_larger_losses_are_drawn_more_often_and_weigh_less(taught, schedule):
    lams, weights = taught.draw(EVEN)
    later = lams < taught.lambdas(torch.tensor([0.5], dtype=torch.float64))
    assert float(later.double().mean()) == pytest.approx(10 / 11, abs=0.01)
    assert float(weights[~later].mean() / weights[later].mean()) == pytest.approx(10, rel=0.03)


def test_the_weighted_mean_stays_that_of_uniform_levels(taught, schedule):
    lams, weights = taught.draw(EVEN)
    uniform, _ = level_sampler("uniform", schedule).draw(EVEN)
    means = [float((torch.tanh(part) * w).mean()) for part, w in ((lams, weights), (uniform, 1.0))]
    assert means[0] == pytest.approx(means[1], abs=5e-3)


def test_what_was_learned_comes_back(taught, schedule):
    again = level_sampler("loss-second-moment", schedule)
    again.restore(taught.state())
    assert torch.equal(again.shares(), taught.shares())
