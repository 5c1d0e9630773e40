"""Corrections: they add to the multistep rule, know the point alone, and fit the leg that they were learned for."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ddib_fed.bridge.model import DomainModel
from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.corrections import Corrections, corrections_of, features_of
from ddib_fed.diffusion.levels.learned import LearnedLegs
from ddib_fed.diffusion.plans import plan
from ddib_fed.diffusion.solvers import unipc, unipc_corrected
from ddib_fed.errors import SettingsInvalid
from tests.diffusion.gaussian_data import gaussian_denoiser
from tests.diffusion.levels.test_learned import LEARNED, SCHEDULE, steps

STEPS = 12


def some(size=1e-3, *, seed=0, dimension=2, hidden=4, evaluations=STEPS):
    """Corrections with weights of no meaning."""
    generator = torch.Generator().manual_seed(seed)
    wide, double = 5 * dimension, 2 * dimension
    shapes = {
        "first": (wide, hidden),
        "first_bias": (1, hidden),
        "second": (hidden, hidden),
        "second_bias": (1, hidden),
        "last": (hidden, double),
        "last_bias": (1, double),
    }
    weights = {name: torch.randn(evaluations, *shape, generator=generator) for name, shape in shapes.items()}
    return Corrections(
        centre=torch.zeros(evaluations, 1, wide),
        spread=torch.ones(evaluations, 1, wide),
        size=torch.full((evaluations, 1, double), size),
        **weights,
    )


def points(count=5):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(3))


def corrected_legs(corrections):
    both = (replace(steps(stage), corrections=corrections) for stage in ("encode", "decode"))
    return LearnedLegs("south", tuple(both))


def test_corrections_of_size_zero_leave_the_rule_as_it_is():
    """The rule stays consistent whatever was learned."""
    laid = plan(LEARNED, SCHEDULE, learned=corrected_legs(some(0.0)))
    found = integrate(laid.encoder(points()), gaussian_denoiser())
    wanted = integrate(unipc(points(), laid.encode_grid), gaussian_denoiser())
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-6)


def test_both_corrections_are_added_where_the_module_says():
    """Two steps by hand, with a velocity that does not depend on the point."""
    grid = plan(replace(LEARNED, grid="default", evaluations=2), SCHEDULE).encode_grid
    corrections, x, v = some(0.1, evaluations=2), points(), torch.ones(5, 2)
    solver = unipc_corrected(corrections, x, grid)
    first = next(solver)
    second = solver.send(v)
    with pytest.raises(StopIteration) as stop:
        solver.send(v)
    phis = grid.phis
    ahead, _ = corrections.at(0, features_of(phis, 0, x, [v]))
    guess = x + (phis[1] - phis[0]) * v + ahead
    later, behind = corrections.at(1, features_of(phis, 1, guess, [v, v]))
    end = x + behind + (phis[2] - phis[0]) * v + later
    assert torch.equal(first.x, x)
    torch.testing.assert_close(second.x, guess, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stop.value.value, end, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("power", [1, 2, 3])
def test_features_are_divided_differences_by_powers_of_the_step(power):
    """Of phi^k the k-th divided difference is 1 on any nodes; where there are too few values the feature is 0."""
    phis = (0.1, 0.25, 0.6, 0.7, 1.2)
    history = [torch.full((1, 2), phi**power, dtype=torch.float64) for phi in phis[3::-1]]
    x = torch.zeros(1, 2, dtype=torch.float64)
    found = features_of(phis, 3, x, history).unflatten(1, (5, 2))
    assert float(found[0, 1 + power, 0]) == pytest.approx(0.5**power)
    assert found[0, 2 + power :].abs().max() < 1e-12 if power < 3 else True
    early = features_of(phis, 0, x, history[-1:]).unflatten(1, (5, 2))
    assert bool((early[0, 2:] == 0).all())


def test_a_row_is_corrected_by_itself():
    """Rows of many requests are merged; none may change another."""
    laid = plan(LEARNED, SCHEDULE, learned=corrected_legs(some(0.1)))
    together = integrate(laid.decoder(points()), gaussian_denoiser())
    alone = integrate(laid.decoder(points()[2:3]), gaussian_denoiser())
    torch.testing.assert_close(together[2:3], alone, atol=1e-5, rtol=1e-5)


def test_corrected_steps_follow_no_recurrence():
    """What they add depends on the point; read as a recurrence, it would be lost."""
    for corrections, follows in ((None, True), (some(), False)):
        laid = plan(LEARNED, SCHEDULE, learned=corrected_legs(corrections))
        model = SimpleNamespace(plan=lambda *_, laid=laid: laid)
        for encoding in (True, False):
            assert (DomainModel._make_recurrence(model, LEARNED, 0.0, encoding) is not None) == follows


def test_steps_walked_in_reverse_are_not_corrected():
    """A correction belongs to its direction."""
    legs = LearnedLegs("south", (replace(steps("decode"), corrections=some()),))
    assert legs.find("decode", STEPS).corrections is not None
    assert legs.find("encode", STEPS).corrections is None


def test_points_of_another_dimension_are_refused():
    """Before the model is asked."""
    laid = plan(LEARNED, SCHEDULE, learned=corrected_legs(some()))
    with pytest.raises(SettingsInvalid, match="dimension 2"):
        laid.encoder(torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("first", torch.zeros(STEPS, 10, 5), "first_bias"),
        ("second", torch.full((STEPS, 4, 4), torch.nan), "second"),
        ("spread", torch.zeros(STEPS, 1, 10), "spread"),
        ("last", torch.zeros(STEPS + 1, 4, 4), "last"),
        ("size", torch.zeros(STEPS, 1, 3), "two results"),
        ("size", torch.zeros(()), "three dimensions"),
        ("first", torch.zeros(STEPS, 10, 1_000), "128"),
        ("more", torch.zeros(()), "are the tensors"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name, tensor, message):
    """They come from a file that anybody may have written."""
    assert corrections_of(some().named(), STEPS).dimension == 2
    with pytest.raises(ValueError, match=message):
        corrections_of({**some().named(), name: tensor}, STEPS)
