"""Questions and losses of pictures are those of the formulas, and of the public code where it has them."""

import math

import pytest
import torch

from ddib_fed.diffusion.denoiser import LAMBDA_SCALE
from ddib_fed.diffusion.schedule import ScheduleConfig, schedule_from_config
from ddib_fed.training.objective import Objective

HALF_BIN = torch.full((3,), 1 / 255)


def objective(parameterisation="v", time_input="scaled-lambda", *, learn_sigma=False, **schedule):
    made = schedule_from_config(ScheduleConfig(**{"name": "cosine", **schedule}))
    return Objective(made, parameterisation, time_input, learn_sigma=learn_sigma, half_bin=HALF_BIN), made


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand(4, 3, 4, 4, generator=generator) * 2 - 1
    return x0, torch.randn(4, 3, 4, 4, generator=generator)


def test_the_target_is_v_or_eps_and_the_network_is_told_the_level(drawn):
    x0, eps = drawn
    lams = torch.tensor([2.0, 0.5, -0.5, -3.0], dtype=torch.float64)
    alpha = torch.sigmoid(2 * lams).sqrt().float()[:, None, None, None]
    sigma = torch.sigmoid(-2 * lams).sqrt().float()[:, None, None, None]
    for parameterisation, target in (("v", alpha * eps - sigma * x0), ("eps", eps)):
        question = objective(parameterisation)[0].ask(x0, eps, lams)
        assert torch.allclose(question.x, alpha * x0 + sigma * eps)
        assert torch.allclose(question.target, target)
        assert torch.allclose(question.times, (LAMBDA_SCALE * lams).float())
    steps, schedule = objective("eps", "timestep", name="linear", steps=1000)
    assert torch.allclose(steps.ask(x0, eps, lams).times.double(), schedule.t_of_lam(lams), atol=1e-3)


def test_the_right_answer_has_no_loss_and_each_sample_its_own(drawn):
    x0, eps = drawn
    lams = torch.zeros(4, dtype=torch.float64)
    made = objective()[0]
    question = made.ask(x0, eps, lams)
    assert float(made.losses(question, question.target, x0, lams).max()) == 0.0
    answer = question.target.clone()
    answer[2] += 0.5
    assert torch.allclose(made.losses(question, answer, x0, lams), torch.tensor([0, 0, 0.25, 0]))


def public_bound(betas, step, x_t, x0, eps, variance):
    """The term of one integer step as guided-diffusion's GaussianDiffusion computes it, in float64, bits a number."""
    bars = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    posterior = betas * (1 - before) / (1 - bars)
    clipped = torch.cat([posterior[1:2], posterior[1:]]).log()[step]
    first = betas[step] * before[step].sqrt() / (1 - bars[step])
    second = (1 - before[step]) * (1 - betas[step]).sqrt() / (1 - bars[step])
    found = (x_t - (1 - bars[step]).sqrt() * eps) / bars[step].sqrt()
    log_variance = clipped + (variance + 1) / 2 * (betas[step].log() - clipped)
    true_mean, mean = (first * start + second * x_t for start in (x0, found))
    if step == 0:
        gap, half = x0 - mean, 1 / 255
        scale = torch.exp(-0.5 * log_variance)
        normal = torch.distributions.Normal(0.0, 1.0)
        mass = normal.cdf((gap + half) * scale) - normal.cdf((gap - half) * scale)
        return -mass.log().mean() / math.log(2)
    spread = torch.exp(clipped - log_variance)
    gap = (true_mean - mean) ** 2 * torch.exp(-log_variance)
    return 0.5 * (-1 + log_variance - clipped + spread + gap).mean() / math.log(2)


@pytest.mark.parametrize("step", [0, 1, 2, 20, 39])
def test_the_bound_of_an_integer_step_is_the_public_codes(drawn, step):
    x0, eps = drawn
    made, schedule = objective("eps", "timestep", learn_sigma=True, name="linear", steps=40)
    lams = schedule.lam(torch.full((4,), float(step), dtype=torch.float64))
    question = made.ask(x0, eps, lams)
    answer, variance = eps + 0.01, torch.full_like(eps, 0.3)
    found = made.bound(question, answer, variance, x0, lams).double()
    for i in range(4):
        parts = (part[i].double() for part in (question.x, x0, answer, variance))
        expected = public_bound(schedule.betas, step, *parts)
        assert float(found[i]) == pytest.approx(float(expected), rel=2e-3, abs=2e-4)


def test_the_variance_learns_from_the_bound_and_the_mean_does_not(drawn):
    x0, eps = drawn
    made = objective("v", learn_sigma=True)[0]
    lams = torch.tensor([5.2, 2.0, 0.0, -2.0], dtype=torch.float64)
    question = made.ask(x0, eps, lams)
    answer = torch.cat([question.target, torch.zeros_like(x0)], dim=1).requires_grad_()
    made.losses(question, answer, x0, lams).sum().backward()
    assert float(answer.grad[:, :3].abs().max()) == 0.0
    assert (answer.grad[:, 3:].abs().amax((1, 2, 3)) > 0).all()
