"""Paths that corrections are learned along: exact ones show the local errors, linearised ones are the student's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddib_fed.bridge.model import DomainModel
from ddib_fed.diffusion.corrections import Corrections
from ddib_fed.diffusion.levels.grids import make_grid
from ddib_fed.diffusion.levels.learned import LearnedSteps
from ddib_fed.models.shipped import pretrained
from ddib_fed.training.tuning.legs import Rows, distances
from ddib_fed.training.tuning.paths import exact_paths, linearised
from tests.diffusion.test_corrections import some
from tests.training.tuning.test_tuning import leg_of

EVALUATIONS = 8


@pytest.fixture
def model():
    return DomainModel(pretrained("moons"))


def plain(model, stage="decode", evaluations=EVALUATIONS):
    grid = make_grid(model.bundle.schedule, "default", evaluations)
    return LearnedSteps(stage, evaluations, 0.0, 3, "angle", tuple(level.lam for level in grid.levels))


def test_exact_paths_end_where_the_reference_does(model):
    """And the defects are of the size that the error of the rule has."""
    leg = leg_of(model)
    paths = exact_paths(leg, plain(model), leg.choose)
    assert paths.points.shape == (EVALUATIONS + 1, len(leg.choose), 2)
    assert float(distances(paths.points[-1], leg.choose.end).mean()) < 1e-3
    error = float(distances(leg.learned_end(plain(model), leg.choose), leg.choose.end).mean())
    assert error / 10 < float(paths.defects.norm(dim=2).sum(0).mean()) < error * 100


def test_defects_vanish_as_the_order_says(model):
    """Half the step leaves 2^-4 of the predictor's, of order 3, and 2^-5 of the corrector's; in float64."""
    model = DomainModel(model.bundle, dtype=torch.float64)
    leg = leg_of(model)
    rows = Rows(leg.choose.x.double(), None, leg.choose.end.double())
    sizes = []
    for evaluations in (48, 96):
        defects = exact_paths(leg, plain(model, evaluations=evaluations), rows).defects[3:]
        sizes.append(defects.unflatten(2, (2, 2)).norm(dim=3).median(1).values.mean(0))
    ahead, behind = (sizes[0] / sizes[1]).tolist()
    assert ahead == pytest.approx(2**4, rel=0.15)
    assert behind == pytest.approx(2**5, rel=0.15)


def precise(size):
    """The shipped moons in float64, its leg, rows of it and steps with corrections of no meaning."""
    model = DomainModel(pretrained("moons"), dtype=torch.float64)
    leg = leg_of(model)
    rows = Rows(leg.choose.x.double(), None, leg.choose.end.double())
    return leg, rows, replace(plain(model), corrections=changed(some(size, evaluations=EVALUATIONS), 1.0))


def changed(corrections, factor):
    tensors = {name: tensor.double() for name, tensor in corrections.named().items()}
    return Corrections(**{**tensors, "size": tensors["size"] * factor})


def test_slopes_are_the_models_derivatives():
    """Against difference quotients, at each level where the student asks."""
    leg, rows, steps = precise(1e-3)
    along, denoiser = linearised(leg, steps, rows), leg.model.denoiser()
    for level, asked, v, slope in zip(
        leg.walked(steps).levels[:-1], along.asked, along.velocities, along.slopes, strict=True
    ):
        assert torch.equal(denoiser(asked, level, None), v)
        for d in range(2):
            push = torch.zeros(2, dtype=torch.float64)
            push[d] = 1e-4
            quotient = (denoiser(asked + push, level, None) - denoiser(asked - push, level, None)) / 2e-4
            torch.testing.assert_close(slope[:, :, d], quotient, atol=1e-4, rtol=1e-3)


def test_a_student_is_walked_exactly_where_it_was_linearised():
    """In any choice of rows; and its end is the solver's."""
    leg, rows, steps = precise(1e-3)
    along = linearised(leg, steps, rows)
    torch.testing.assert_close(along.end, leg.learned_end(steps, rows), atol=1e-10, rtol=0)
    which = torch.tensor([3, 0, 3])
    found = along.walked(leg, steps, rows.x[which], which)
    torch.testing.assert_close(found, along.end[which], atol=1e-10, rtol=0)


def test_a_changed_student_is_missed_by_the_square_of_the_change():
    """Half the change leaves a quarter of what the linearised path misses."""
    leg, rows, steps = precise(1e-3)
    along = linearised(leg, steps, rows)
    missed = []
    for by in (0.1, 0.05):
        student = replace(steps, corrections=changed(steps.corrections, 1.0 + by))
        found = along.walked(leg, student, rows.x, torch.arange(len(rows)))
        missed.append(distances(found, leg.learned_end(student, rows)))
    assert float((missed[0] / missed[1]).median()) == pytest.approx(4.0, rel=0.1)
    assert float(missed[1].max()) < 0.1 * float(distances(found, along.end).max())
