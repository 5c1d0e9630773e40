"""Tuning: the differentiable leg is the solver's, a search never ends worse than it began, figures are held out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.grids import LearnedSteps, make_grid
from ddib_fed.diffusion.plans import learned_solver
from ddib_fed.engine.model import DomainModel
from ddib_fed.errors import InputError, SettingsInvalid, UsageError
from ddib_fed.models.bundle import load_bundle, make_bundle, pretrained
from ddib_fed.models.manifest import DataNote
from ddib_fed.models.units import Normalisation
from ddib_fed.training import tune as run
from ddib_fed.training.own_samples import Counts, own_samples
from ddib_fed.training.tune import (
    Effort,
    Rule,
    Wanted,
    learn,
    roll,
    tune,
    tuning_leg,
)
from tests.models.examples import manifest, state
from tests.runs.tiny_models import tiny

FEW = Counts(fit=24, choose=16, held_out=16)


def silent(*_):
    """No progress."""


@pytest.fixture
def model():
    return DomainModel(pretrained("moons"))


def leg_of(model, stage="decode", *, counts=FEW, evaluations=64):
    generator = torch.Generator().manual_seed(1)
    starts = [
        torch.randn(n, *model.sample_shape, generator=generator)
        for n in (counts.fit, counts.choose, counts.held_out)
    ]
    return tuning_leg(
        model, stage, tuple(starts), (None,) * 3, sigma=0.0, evaluations=evaluations, tell=silent
    )


@pytest.mark.parametrize("stage", ["encode", "decode"])
@pytest.mark.parametrize(("coordinates", "order"), [("angle", 3), ("angle", 4), ("spectrum", 2)])
def test_the_differentiable_leg_is_what_the_solver_computes(stage, coordinates, order):
    """Gradients are of the very steps that are taken later."""
    model = DomainModel(tiny(channels=3, spectral=True), dtype=torch.float64)
    schedule, frame = model.bundle.schedule, model.frame()
    grid = make_grid(schedule, "default", 6)
    lams = tuple(level.lam for level in grid.levels)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    steps = LearnedSteps(stage, 6, 0.0, order, coordinates, lams)
    walked = grid if stage == "encode" else grid.reversed()
    wanted = integrate(learned_solver(steps, x, walked, None, frame), model.denoiser())
    rule = Rule(stage, order, coordinates, model.denoiser(), schedule, frame)
    found = roll(rule, x, torch.tensor(lams, dtype=torch.float64))
    assert torch.allclose(found, wanted, atol=1e-9)


@pytest.mark.slow
def test_learning_lowers_the_error_on_rows_that_it_did_not_learn_from(model):
    """Eight evaluations of decoding moons, against the default grid at eight."""
    leg = leg_of(model, counts=Counts(256, 128, 512))
    steps = learn(leg, 8, Effort((3,), 128, 10, 40, 1, 0.05), tell=silent)
    figures = run.measured(leg, steps)
    assert figures.error.median < 0.75 * figures.default_error.median
    assert figures.reference_gap < 0.1 * figures.error.mean


def _pictures(bundle):
    generator = np.random.default_rng(0)
    shape = bundle.manifest.sample_shape
    return tuple(generator.uniform(-1, 1, (n, *shape)).astype(np.float32) for n in (4, 2, 2))


def test_decoding_is_learned_from_latents_beside_noise(monkeypatch):
    """What a node decodes are latents of pictures."""
    bundle = tiny(channels=3, spectral=True)
    monkeypatch.setattr(run, "own_samples", lambda *_: _pictures(bundle))
    monkeypatch.setattr(run, "REFERENCE", 8)
    encode, decode = run._legs(DomainModel(bundle), Wanted((4,), soften=0.1), Counts(4, 2, 2), silent)
    for decoded, encoded in ((decode.fit, encode.fit), (decode.held_out, encode.held_out)):
        torch.testing.assert_close(decoded.x[::2], encoded.end[::2])
        assert not torch.allclose(decoded.x[1::2], encoded.end[1::2])


def test_own_samples_are_of_three_sets_without_a_common_point():
    """What decides was not learned from."""
    sets = own_samples(manifest(), None, Counts(20, 10, 10))
    assert [len(each) for each in sets] == [20, 10, 10]
    assert len(np.unique(np.concatenate(sets), axis=0)) == 40


def test_a_file_of_points_is_split_too(tmp_path):
    """A user's own points, and too few of them."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32))
    sets = own_samples(manifest(), tmp_path / "x.npy", Counts(80, 40, 40))
    assert [len(each) for each in sets] == [20, 10, 10]
    np.save(tmp_path / "few.npy", np.zeros((5, 2), np.float32))
    with pytest.raises(InputError, match="at least 12"):
        own_samples(manifest(), tmp_path / "few.npy", Counts(80, 40, 40))


def test_a_domain_that_does_not_ship_needs_data():
    """The error names the option."""
    with pytest.raises(UsageError, match="data that do not ship") as refused:
        own_samples(manifest().model_copy(update={"domain": "mine"}), None, FEW)
    assert "--data" in str(refused.value.hint)


def test_a_users_own_data_are_not_taken_for_those_of_a_domain_of_the_same_name():
    """`--data moons.npy` names a model moons, and a folder called brain-t1 one of pictures."""
    points = manifest().model_copy(update={"normalisation": Normalisation(mean=5.0, std=2.0)})
    assert points.domain == "moons"
    pictures = pretrained("brain-t1").manifest
    pictures = pictures.model_copy(update={"data": DataNote(source="90 pictures of a user's folder")})
    for own in (points, pictures):
        with pytest.raises(UsageError, match="data that do not ship"):
            own_samples(own, None, FEW)


def test_numbers_that_cannot_be_learned_are_refused_before_anything_is_computed():
    """Beyond 64 the default grid is as good as exact."""
    with pytest.raises(SettingsInvalid, match="65 evaluations cannot be learned"):
        tune(make_bundle(manifest(), state()), Wanted((65,)), say=silent)


def test_a_tuned_bundle_translates_with_the_grid_learned(tmp_path, monkeypatch):
    """From the command that learns to the plan that uses it."""
    from ddib_fed.models.bundle import save_bundle

    monkeypatch.setattr(run, "POINTS", (Counts(16, 8, 8), Effort((3,), 8, 1, 1, 1)))
    monkeypatch.setattr(run, "REFERENCE", 8)
    save_bundle(tmp_path / "m", manifest(), state())
    run.tune_bundle(tmp_path / "m", Wanted((4,)), say=silent)
    bundle = load_bundle(tmp_path / "m")
    laid = DomainModel(bundle).plan(replace(run.YARDSTICK, evaluations=4, grid="learned"))
    assert laid.evaluations == 4
    assert laid.learned is not None
