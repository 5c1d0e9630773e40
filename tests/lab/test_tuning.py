"""Tuning: the differentiable leg is the solver's, a search never ends worse than it began, figures are held out."""

import numpy as np
import pytest
import torch

from ddib_fed import Model
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.engine.model import DomainModel
from ddib_fed.errors import InputError, SettingsInvalid
from ddib_fed.lab import tuning
from ddib_fed.lab.tuning import Effort, Steps, TuningLeg, learn
from ddib_fed.models.bundle import load_bundle, save_bundle
from tests.models.examples import manifest, state
from tests.runs.tiny_models import tiny

LITTLE = Effort(16, 8, 8, (3,), 8, 1, 1, 1)


def silent(*_):
    """No progress."""


def leg_of(model, stage="decode", counts=(24, 16, 16), sigma=0.0):
    generator = torch.Generator().manual_seed(1)
    starts = [torch.randn(n, *model.shape, generator=generator) for n in counts]
    return TuningLeg(model, stage, starts, sigma, 0, silent)


@pytest.mark.parametrize("stage", ["encode", "decode"])
@pytest.mark.parametrize(("whitened", "order"), [(False, 4), (True, 2)])
def test_the_differentiable_leg_is_what_the_solver_computes(stage, whitened, order, monkeypatch, tmp_path):
    """Gradients are of the very steps that are taken later."""
    monkeypatch.setattr(tuning, "REFERENCE", 8)
    made = tiny(channels=3, spectral=True)
    save_bundle(tmp_path / "m", made.manifest, made.state)
    model = Model.open(tmp_path / "m")
    leg = leg_of(model, stage, (2, 2, 2))
    steps = Steps(leg.grid("default", 6), order, whitened)
    lams = torch.tensor(steps.lams, dtype=torch.float64, requires_grad=True)
    found = leg.roll(steps, leg.fit, lams)
    found.square().mean().backward()
    assert torch.isfinite(lams.grad).all()
    model.put_steps([{**leg.measured(steps), "stage": each} for each in ("encode", "decode")])
    own = DomainModel(model.bundle)
    plan = own.plan(SolverSettings(grid="learned", evaluations=6))
    taken = own.integrate(leg.fit.x, plan.encoder if stage == "encode" else plan.decoder)
    assert torch.allclose(found, taken, atol=1e-4)


@pytest.mark.slow
def test_learning_lowers_the_error_on_rows_that_it_did_not_learn_from():
    """Eight evaluations of decoding moons, against the default grid at eight."""
    leg = leg_of(Model.open("moons"), counts=(256, 128, 512))
    steps = learn(leg, 8, Effort(256, 128, 512, (3,), 128, 10, 25, 1, 0.05), 0, (), silent)
    figures = leg.measured(steps)
    assert figures["error"]["median"] < 0.75 * figures["default_error"]["median"]
    assert figures["reference_gap"] < 0.1 * figures["error"]["mean"]


def test_a_tuned_bundle_translates_with_the_grid_learned(tmp_path, monkeypatch):
    """From the search to the plan that uses it; a file of points is split into three sets."""
    monkeypatch.setattr(tuning, "REFERENCE", 8)
    save_bundle(tmp_path / "m", manifest(), state())
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32))
    monkeypatch.setattr(tuning, "POINTS", LITTLE)
    tuned = tuning.tune(Model.open(tmp_path / "m"), (4,), data=tmp_path / "x.npy")
    assert [leg.held_out for leg in tuned.legs] == [8, 8]
    laid = DomainModel(load_bundle(tmp_path / "m")).plan(SolverSettings(evaluations=4, grid="learned"))
    assert laid.settings.evaluations == 4
    assert laid.learned is not None


def test_too_few_samples_and_numbers_that_cannot_be_learned_are_refused(tmp_path):
    """Beyond 64 the default grid is as good as exact."""
    save_bundle(tmp_path / "m", manifest(), state())
    np.save(tmp_path / "few.npy", np.zeros((5, 2), np.float32))
    with pytest.raises(InputError, match="at least 12"):
        tuning.tune(Model.open(tmp_path / "m"), (4,), data=tmp_path / "few.npy")
    with pytest.raises(SettingsInvalid, match="65 evaluations cannot be learned"):
        tuning.tune(Model.open(tmp_path / "m"), (65,))
