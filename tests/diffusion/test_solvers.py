"""Solvers against the exact map of Gaussian data: order, time reversal, what they ask, and their numbers."""

import pytest
import torch

from ddib_fed.diffusion import solvers
from ddib_fed.diffusion.denoiser import x0_from_v
from ddib_fed.diffusion.plans import SolverSettings, decode, plan
from ddib_fed.diffusion.schedule import LinearSchedule, PublicLevels, discrete_schedule, make_grid
from ddib_fed.diffusion.solvers import integrate
from tests.diffusion.gaussian_data import COVARIANCE, MEAN, gaussian_denoiser, gaussian_map, gaussian_samples

SCHEDULE = LinearSchedule()
CASES = [("unipc", 2), ("unipc", 3), ("ddim", 1)]


ACCURACY = {("unipc", 2): 3, ("unipc", 3): 4, ("ddim", 1): 1}


def error(name, order, intervals, decoding):
    """Largest distance to the exact map over 64 points, in float64."""
    steps = plan(SolverSettings(name, order, intervals), SCHEDULE)
    grid = steps.decode_grid if decoding else steps.encode_grid
    x = gaussian_samples(64, grid.levels[0])
    walk = steps.decoder if decoding else steps.encoder
    exact = gaussian_map(x, grid.levels[0], grid.levels[-1])
    return float((integrate(x, walk, gaussian_denoiser()) - exact).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("decoding", [False, True], ids=["encode", "decode"])
@pytest.mark.parametrize(("name", "order"), CASES)
def test_shows_its_order_of_accuracy(name, order, decoding):
    """The slope of log error over log intervals is the stated one, in both directions."""
    counts = (64, 128, 256)
    errors = torch.tensor([error(name, order, n, decoding) for n in counts]).log2()
    slope = float(errors[0] - errors[-1]) / 2
    assert slope == pytest.approx(ACCURACY[name, order], abs=0.15)


def test_ddim_is_the_papers_formula():
    """x_s = alpha_s x0 + sigma_s eps with the network's x0 and eps at t."""
    grid = make_grid(SCHEDULE, "default", 6)
    denoiser = gaussian_denoiser()
    x = papers = gaussian_samples(30, grid.levels[0])
    for t, s in zip(grid.levels, grid.levels[1:], strict=False):
        v = denoiser(papers, t)
        x0, eps = x0_from_v(v, papers, t.alpha, t.sigma), t.sigma * papers + t.alpha * v
        papers = s.alpha * x0 + s.sigma * eps
    assert torch.allclose(integrate(x, solvers.ddim(grid), denoiser), papers, atol=1e-12)


@pytest.mark.parametrize(("name", "order"), [*CASES, ("flow-map", 1)])
@pytest.mark.parametrize("leg", ["encoder", "decoder"])
def test_asks_for_the_class_at_every_evaluation(name, order, leg):
    """Without it a class-conditional model answers for no class, and the translation shows none."""
    cond, asked = {"y": torch.zeros(3, dtype=torch.long)}, 8
    laid = plan(SolverSettings(name, order, asked), SCHEDULE)
    found = []

    def answered(x, level, cond, to):
        found.append(cond)
        return torch.zeros_like(x)

    integrate(torch.ones(3, 2), getattr(laid, leg), answered, cond=cond)
    assert len(found) == asked
    assert all(each is cond for each in found)


@pytest.mark.parametrize("order", [2, 3])
def test_unipc_predicts_by_a_polynomial_and_corrects_by_the_next_value(order) -> None:
    """As two sums over the interval, and with as few velocities as they need."""
    grid = make_grid(SCHEDULE, "default", 12)
    found, axis = solvers.unipc(grid, order=order), [level.phi for level in grid.levels]
    assert {len(each) for each in found.weights} == {order + 1}
    assert len(solvers.unipc(make_grid(SCHEDULE, "default", 1)).weights[0]) == 1
    state = guess = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, asked, velocities = state, gaussian_denoiser(), []
    for i in range(12):
        velocities.insert(0, asked(guess, grid.levels[i]))
        if i:
            nodes = axis[max(0, i - order) : i + 1][::-1]
            state = state + summed(nodes, axis[i - 1], axis[i], velocities)
        nodes = axis[max(0, i + 1 - order) : i + 1][::-1]
        guess = state + summed(nodes, axis[i], axis[i + 1], velocities)
    torch.testing.assert_close(integrate(x, found, asked), guess, atol=1e-12, rtol=1e-12)


def summed(nodes, start, end, velocities):
    weights = solvers.integral_weights(torch.tensor(nodes, dtype=torch.float64), start, end)
    return sum(weight * v for weight, v in zip(weights, velocities, strict=False))


# Decoding that draws noise

LEVELS = PublicLevels("linear", 1000, "ddim250")


def noise(seed: int, shape):
    return lambda step: torch.randn(
        shape, generator=torch.Generator().manual_seed(1000 * seed + step), dtype=torch.float64
    )


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [{"eta": 0.5}, {"ancestral": True}], ids=["half", "ddpm"])
def test_noise_in_each_step_leaves_the_distribution_as_it_is(drawn):
    """Mean and covariance of Gaussian data, by the exact network, within what 20,000 points and 250 steps allow."""
    schedule = discrete_schedule("linear", 1000)
    settings = SolverSettings("ddim", evaluations=250, grid="ddib", levels=LEVELS, **drawn)
    z = noise(1, (20_000, 2))(0)
    network = gaussian_denoiser("eps", time_input="timestep", schedule=schedule)
    x = decode(z, network, schedule, settings, draw=noise(2, z.shape))
    assert torch.allclose(x.mean(0), MEAN, atol=0.03)
    assert torch.allclose(torch.cov(x.T), COVARIANCE, atol=0.04)
    plain = decode(z[:500], network, schedule, settings.of_the_ode())
    assert float((x[:500] - plain).square().mean()) > 0.1


def test_the_same_noise_gives_the_same_sample_and_eta_0_takes_none():
    """What is drawn is what `draw` gives, and nothing else."""
    schedule, z = LinearSchedule(), noise(1, (5, 2))(0)
    network = gaussian_denoiser("v")
    settings = SolverSettings("ddim", evaluations=20, eta=0.3)
    one, same, other = (
        decode(z, network, schedule, settings, draw=noise(seed, z.shape)) for seed in (2, 2, 3)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)

    def never(step):
        raise AssertionError(step)

    decode(z, network, schedule, SolverSettings("ddim", evaluations=20), draw=never)
