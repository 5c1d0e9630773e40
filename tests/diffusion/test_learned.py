"""Learned steps: what was learned is laid as it was learned, and what was not is refused with what there is."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.grids import LearnedLegs, LearnedSteps, make_grid
from ddib_fed.diffusion.plans import SolverSettings, plan
from ddib_fed.diffusion.schedule import LinearSchedule
from ddib_fed.diffusion.solvers import unipc
from ddib_fed.errors import SettingsInvalid
from tests.diffusion.gaussian_data import gaussian_denoiser

SCHEDULE = LinearSchedule()
LEARNED = SolverSettings(evaluations=12, grid="learned")


def steps(stage, evaluations=12, sigma=0.0, *, order=3, coordinates="angle"):
    start = None if sigma == 0.0 else -math.log(sigma)
    grid = make_grid(SCHEDULE, "default", evaluations, lambda_max=start)
    lams = tuple(level.lam for level in grid.levels)
    return LearnedSteps(stage, evaluations, sigma, order, coordinates, lams)


def legs(*more):
    return LearnedLegs("south", (steps("encode"), steps("decode"), *more))


def test_each_direction_steps_by_the_rule_that_was_learned_for_it():
    """Encoding by order 1 and decoding by order 3: a translation by the other's rule is silently worse."""
    known = LearnedLegs("south", (steps("encode", order=1), steps("decode", order=3)))
    laid, x = plan(LEARNED, SCHEDULE, learned=known), torch.ones(2, 2, dtype=torch.float64)
    for found, grid, order in (
        (laid.encoder(x), laid.encode_grid, 1),
        (laid.decoder(x), laid.decode_grid, 3),
    ):
        wanted = integrate(unipc(x, grid, order=order), gaussian_denoiser())
        assert torch.equal(integrate(found, gaussian_denoiser()), wanted)


def test_data_that_are_not_softened_may_be_encoded_along_the_way_of_decoding():
    """The way back to a latent needs no steps of its own; softened data do."""
    soft = steps("encode", sigma=0.1)
    known = LearnedLegs("south", (soft, steps("decode", order=4)))
    assert known.find("encode", 12).order == 4
    assert known.find("encode", 12, 0.1) is soft
    with pytest.raises(SettingsInvalid, match=r"softening 0\.1, not from 0\.2") as refused:
        known.find("encode", 12, 0.2)
    assert "ddib model tune MODEL --evaluations 12 --soften-sigma 0.2" in str(refused.value.hint)


def test_a_number_that_was_not_learned_is_refused_with_those_that_were():
    """And with the command that learns it."""
    with pytest.raises(
        SettingsInvalid, match=r"south has learned steps of 12, 16 evaluations, not of 20"
    ) as refused:
        plan(replace(LEARNED, evaluations=20), SCHEDULE, learned=legs(steps("decode", 16)))
    assert (
        refused.value.hint
        == "--evaluations 12, or on the model's node: ddib model tune MODEL --evaluations 20"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [({"depth": 0.7}, "not to a depth of 0.7"), ({"solver": "ddim"}, "is of unipc, not of ddim")],
)
def test_depth_and_other_solvers_are_refused(change, words):
    """Steps were learned for the whole way, and for one solver."""
    with pytest.raises(SettingsInvalid, match=words):
        plan(replace(LEARNED, **change), SCHEDULE, learned=legs())


def test_steps_for_other_ends_are_refused():
    """A schedule whose range differs cannot use them."""
    short = replace(steps("decode"), lams=tuple(lam + 0.01 for lam in steps("decode").lams))
    with pytest.raises(SettingsInvalid, match="the learned steps go from lambda"):
        plan(LEARNED, SCHEDULE, learned=LearnedLegs("south", (short,)))


def test_whitened_steps_need_a_model_with_a_spectrum():
    """At another size, or for a network without, they are refused and not integrated otherwise."""
    known = LearnedLegs("south", (steps("decode", coordinates="spectrum"),))
    with pytest.raises(SettingsInvalid, match="whitened by its spectrum"):
        plan(LEARNED, SCHEDULE, learned=known).decoder(torch.zeros(1, 2))
