"""Learned corrections: exact paths show the local errors, learning lowers them elsewhere, nothing gets worse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddib_fed.bridge.model.domain_model import DomainModel
from ddib_fed.diffusion.levels.grids import make_grid
from ddib_fed.diffusion.levels.learned import LearnedSteps
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.models.shipped import pretrained
from ddib_fed.training.tuning import run
from ddib_fed.training.tuning.corrections import CorrectionEffort, corrected, exact_paths
from ddib_fed.training.tuning.legs import Rows, distances
from ddib_fed.training.tuning.run import Wanted, tune_bundle
from ddib_fed.training.tuning.samples import Counts
from tests.training.tuning.test_tuning import leg_of, silent

EVALUATIONS = 8
LITTLE = CorrectionEffort(hidden=16, fits=150, fit_batch=256, rolls=10, roll_batch=64, every=5)


@pytest.fixture
def model():
    """The shipped moons."""
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


@pytest.mark.slow
def test_corrections_lower_the_error_of_rows_they_were_not_learned_from(model):
    """Of decoding at eight evaluations, both statistics."""
    leg = leg_of(model, counts=Counts(3_000, 300, 500))
    steps = plain(model)
    better = corrected(leg, steps, replace(LITTLE, fits=800, rolls=40, every=10), tell=silent)
    assert better.corrections is not None
    errors = [distances(leg.learned_end(each, leg.held_out), leg.held_out.end) for each in (steps, better)]
    assert float(errors[1].mean()) < 0.8 * float(errors[0].mean())
    assert float(errors[1].median()) < 0.8 * float(errors[0].median())


def test_corrections_that_do_not_help_are_dropped(model):
    """A rate that ruins them costs time, not accuracy."""
    leg = leg_of(model)
    steps = plain(model)
    ruined = replace(LITTLE, fits=3, rolls=2, rate=1e3, every=1)
    assert corrected(leg, steps, ruined, tell=silent) is steps


@pytest.mark.long
def test_tuning_again_with_kept_levels_learns_corrections_of_them(tmp_path, model, monkeypatch):
    """They lie half-way to the default grid; the model's digest stays, the format's version says what is in."""
    folder = tmp_path / "moons"
    bundle = replace(model.bundle, tuned=None)
    save_bundle(folder, bundle.manifest, bundle.state)
    before = load_bundle(folder).digest
    monkeypatch.setattr(
        run, "POINTS", (Counts(1_000, 200, 200), replace(run.POINTS[1], looks=1, iterations=1))
    )
    monkeypatch.setattr(run, "CORRECTIONS", LITTLE)
    only = Wanted((EVALUATIONS,), stages=("decode",), corrections=False)
    first = tune_bundle(folder, only, say=silent)
    again = tune_bundle(folder, replace(only, corrections=True, keep_levels=True), say=silent)
    grid = make_grid(bundle.schedule, "default", EVALUATIONS)
    between = [0.5 * (a + level.lam) for a, level in zip(first.legs[0].lams, grid.levels, strict=True)]
    assert list(again.legs[0].lams) == between
    assert (first.format_version, again.format_version) == (1, 2)
    assert again.legs[0].error.mean < first.legs[0].error.mean
    loaded = load_bundle(folder)
    assert loaded.digest == before
    # What was measured is what the file holds, rounded to float16.
    leg = leg_of(DomainModel(loaded), evaluations=64)
    ends = [leg.learned_end(each.steps(), leg.choose) for each in (again.legs[0], loaded.tuned.legs[0])]
    assert torch.equal(*ends)
