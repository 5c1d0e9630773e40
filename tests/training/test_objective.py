"""Questions about pictures are those of the formulas."""

import pytest
import torch

from ddib_fed.diffusion.denoiser import LAMBDA_SCALE
from ddib_fed.diffusion.schedule import ScheduleConfig, schedule_from_config
from ddib_fed.training.objective import ask


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(4, 3, 4, 4, generator=generator) * 2 - 1
    return x0, torch.randn(4, 3, 4, 4, generator=generator)


def test_the_target_is_v_or_eps_and_the_network_is_told_the_level(drawn):
    x0, eps = drawn
    cosine, linear = (schedule_from_config(ScheduleConfig(*each)) for each in (("cosine",), ("linear", 1000)))
    lams = torch.tensor([2.0, 0.5, -0.5, -3.0], dtype=torch.float64)
    alpha = torch.sigmoid(2 * lams).sqrt().float()[:, None, None, None]
    sigma = torch.sigmoid(-2 * lams).sqrt().float()[:, None, None, None]
    for parameterisation, target in (("v", alpha * eps - sigma * x0), ("eps", eps)):
        question = ask(cosine, parameterisation, "scaled-lambda", x0, eps, lams)
        assert torch.allclose(question.x, alpha * x0 + sigma * eps)
        assert torch.allclose(question.target, target)
        assert torch.allclose(question.times, (LAMBDA_SCALE * lams).float())
    times = ask(linear, "eps", "timestep", x0, eps, lams).times
    assert torch.allclose(times.double(), linear.t_of_lam(lams), atol=1e-3)
