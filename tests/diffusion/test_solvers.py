"""Solvers against the exact map of Gaussian data: order, time reversal, reversibility, and the generator's manners."""

from __future__ import annotations

import contextlib

import pytest
import torch

from ddib_fed.data.synthetic import DOMAINS, sample
from ddib_fed.diffusion import solvers
from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.denoiser import x0_from_v
from ddib_fed.diffusion.grids import make_grid
from ddib_fed.diffusion.plans import SOLVERS, SolverSettings, plan
from ddib_fed.diffusion.schedule import LinearSchedule
from ddib_fed.models.bundle import pretrained
from tests.diffusion.gaussian_data import gaussian_denoiser, gaussian_map, gaussian_samples

SCHEDULE = LinearSchedule()
CASES = [(spec.name, order) for spec in SOLVERS.values() if not spec.distilled for order in spec.orders]


ACCURACY = {("unipc", 2): 3, ("unipc", 3): 4, ("ddim", 1): 1, ("rk4", 4): 4, ("alf", 2): 2}


def evaluations(name, intervals):
    spec = SOLVERS[name]
    return spec.evaluations_at_start + spec.evaluations_per_step * intervals


def error(name, order, intervals, decoding):
    """Largest distance to the exact map over 64 points, in float64."""
    steps = plan(SolverSettings(name, order, evaluations(name, intervals)), SCHEDULE)
    grid = steps.decode_grid if decoding else steps.encode_grid
    x = gaussian_samples(64, grid.levels[0])
    start = steps.decoder(x) if decoding else steps.encoder(x)
    exact = gaussian_map(x, grid.levels[0], grid.levels[-1])
    return float((integrate(start, gaussian_denoiser()) - exact).abs().max())


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
    assert torch.allclose(integrate(solvers.ddim(x, grid), denoiser), papers, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "order"), CASES)
def test_time_reversal_gives_the_start_back(name, order):
    """Encoding then decoding on the same grid returns, within the solver's error."""
    steps = plan(SolverSettings(name, order, evaluations(name, 200)), SCHEDULE)
    denoiser = gaussian_denoiser()
    x = gaussian_samples(30, steps.encode_grid.levels[0])
    back = integrate(steps.decoder(integrate(steps.encoder(x), denoiser)), denoiser)
    assert float((back - x).abs().max()) <= 3 * error(name, order, 200, decoding=False) + 1e-10


def there_and_back(x, denoiser, grid):
    z, aux = integrate(solvers.alf_pair(x, grid), denoiser)
    back, _ = integrate(solvers.alf_pair(z, grid.reversed(), aux=aux), denoiser)
    return (back - x).norm(dim=1), (z - x).norm(dim=1)


@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize(
    ("dtype", "mean", "largest"), [(torch.float32, 1e-6, 1e-4), (torch.float64, 1e-11, 1e-11)]
)
def test_alf_is_the_identity_on_the_shipped_models(domain, dtype, mean, largest):
    """With its auxiliary carried it returns to rounding, having gone somewhere in between."""
    bundle = pretrained(domain)
    x = torch.from_numpy(sample(domain, 250, 0)).to(dtype)
    distance, way = there_and_back(x, bundle.denoiser(dtype), make_grid(bundle.schedule, "default", 47))
    assert float(distance.mean()) <= mean
    assert float(distance.max()) <= largest
    assert float(way.mean()) > 0.1


@pytest.mark.parametrize(("name", "order"), CASES)
def test_asks_exactly_as_often_as_the_settings_say(name, order):
    """`evaluations` is what one leg costs."""
    wanted = evaluations(name, 11)
    told = []
    solver = plan(SolverSettings(name, order, wanted), SCHEDULE).encoder(
        torch.ones(3, 2, dtype=torch.float64)
    )
    integrate(solver, gaussian_denoiser(), on_step=lambda done, _: told.append(done))
    assert told == list(range(1, wanted + 1))


def conditions_of(solver):
    """What the network is conditioned on at each evaluation."""
    found = []
    with contextlib.suppress(StopIteration):
        query = next(solver)
        while True:
            found.append(query.cond)
            query = solver.send(torch.zeros_like(query.x))
    return found


@pytest.mark.parametrize(("name", "order"), [*CASES, ("flow-map", 1)])
@pytest.mark.parametrize("leg", ["encoder", "decoder"])
def test_asks_for_the_class_at_every_evaluation(name, order, leg):
    """Without it a class-conditional model answers for no class, and the translation shows none."""
    cond, asked = {"y": torch.zeros(3, dtype=torch.long)}, evaluations(name, 8)
    laid = plan(SolverSettings(name, order, asked), SCHEDULE)
    found = conditions_of(getattr(laid, leg)(torch.ones(3, 2), cond))
    assert len(found) == asked
    assert all(each is cond for each in found)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_drawing_asks_for_the_class_at_every_evaluation(eta):
    """As without noise."""
    cond = {"y": torch.zeros(3, dtype=torch.long)}
    laid = plan(SolverSettings("ddim", evaluations=8, eta=eta), SCHEDULE)
    found = conditions_of(laid.decoder(torch.ones(3, 2), cond, lambda _: torch.ones(3, 2)))
    assert len(found) == 8
    assert all(each is cond for each in found)
