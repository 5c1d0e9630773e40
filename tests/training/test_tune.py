"""Tuning: the differentiable leg is the solver's, a search never ends worse than it began, figures are held out."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ddib_fed import Model
from ddib_fed.diffusion.schedule import LearnedSteps, make_grid
from ddib_fed.engine.model import DomainModel
from ddib_fed.models.bundle import load_bundle, pretrained, save_bundle
from ddib_fed.training import tune
from ddib_fed.training.tune import Effort, TuningLeg, learn
from tests.models.examples import manifest, state
from tests.runs.tiny_models import tiny

LITTLE = Effort(16, 8, 8, (3,), 8, 1, 1, 1)


def silent(*_):
    """No progress."""


def leg_of(model, stage="decode", counts=(24, 16, 16), dtype=torch.float32, sigma=0.0):
    generator = torch.Generator().manual_seed(1)
    starts = [torch.randn(n, *model.sample_shape, generator=generator).to(dtype) for n in counts]
    return TuningLeg(model, stage, starts, sigma, 0, silent)


@pytest.mark.parametrize("stage", ["encode", "decode"])
@pytest.mark.parametrize(("coordinates", "order"), [("angle", 4), ("spectrum", 2)])
def test_the_differentiable_leg_is_what_the_solver_computes(stage, coordinates, order, monkeypatch):
    """Gradients are of the very steps that are taken later."""
    monkeypatch.setattr(tune, "REFERENCE", 8)
    leg = leg_of(
        DomainModel(tiny(channels=3, spectral=True), dtype=torch.float64), stage, (2, 2, 2), torch.float64
    )
    lams = tuple(level.lam for level in make_grid(leg.schedule, "default", 6).levels)
    steps = LearnedSteps(stage, 6, 0.0, order, coordinates, lams)
    found = leg.roll(steps, leg.fit, torch.tensor(lams, dtype=torch.float64))
    assert torch.allclose(found, leg.learned_end(steps, leg.fit), atol=1e-9)


@pytest.mark.slow
def test_learning_lowers_the_error_on_rows_that_it_did_not_learn_from():
    """Eight evaluations of decoding moons, against the default grid at eight."""
    leg = leg_of(DomainModel(pretrained("moons")), counts=(256, 128, 512))
    steps = learn(leg, 8, Effort(256, 128, 512, (3,), 128, 10, 25, 1, 0.05), 0, (), silent)
    figures = leg.measured(steps)
    assert figures.error.median < 0.75 * figures.default_error.median
    assert figures.reference_gap < 0.1 * figures.error.mean


def test_a_tuned_bundle_translates_with_the_grid_learned(tmp_path, monkeypatch):
    """From the search to the plan that uses it; a file of points is split into three sets."""
    monkeypatch.setattr(tune, "REFERENCE", 8)
    save_bundle(tmp_path / "m", manifest(), state())
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32))
    monkeypatch.setattr(tune, "POINTS", LITTLE)
    tuned = Model.open(tmp_path / "m").tune((4,), data=tmp_path / "x.npy")
    assert [leg.held_out for leg in tuned.legs] == [8, 8]
    laid = DomainModel(load_bundle(tmp_path / "m")).plan(
        replace(tune.YARDSTICK, evaluations=4, grid="learned")
    )
    assert laid.settings.evaluations == 4
    assert laid.learned is not None
