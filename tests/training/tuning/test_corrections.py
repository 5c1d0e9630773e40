"""Learned corrections lower the error of rows that they were not learned from, and nothing gets worse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddib_fed.bridge.model import DomainModel
from ddib_fed.diffusion.levels.grids import make_grid
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.models.shipped import pretrained
from ddib_fed.training.tuning import run
from ddib_fed.training.tuning.corrections import CorrectionEffort, corrected
from ddib_fed.training.tuning.legs import distances
from ddib_fed.training.tuning.run import Wanted, tune_bundle
from ddib_fed.training.tuning.samples import Counts
from tests.training.tuning.test_paths import EVALUATIONS, plain
from tests.training.tuning.test_tuning import leg_of, silent

LITTLE = CorrectionEffort(hidden=16, fits=100, batch=256, rounds=1, rolls=10, every=5)


@pytest.fixture
def model():
    return DomainModel(pretrained("moons"))


@pytest.mark.slow
def test_corrections_lower_the_error_of_rows_they_were_not_learned_from(model):
    """Of decoding at eight evaluations, both statistics."""
    leg = leg_of(model, counts=Counts(1_500, 300, 500))
    steps = plain(model)
    better = corrected(leg, steps, replace(LITTLE, fits=120, rounds=2, rolls=20, every=20), tell=silent)
    assert better.corrections is not None
    errors = [distances(leg.learned_end(each, leg.held_out), leg.held_out.end) for each in (steps, better)]
    assert float(errors[1].mean()) < 0.8 * float(errors[0].mean())
    assert float(errors[1].median()) < 0.8 * float(errors[0].median())


def test_corrections_that_do_not_help_are_dropped(model):
    """A rate that ruins them costs time, not accuracy."""
    leg = leg_of(model)
    steps = plain(model)
    ruined = replace(LITTLE, fits=3, rolls=2, rate=1e3, roll_rate=1e3, every=1)
    assert corrected(leg, steps, ruined, tell=silent) is steps


@pytest.mark.long
def test_tuning_again_with_kept_levels_learns_corrections_of_them(tmp_path, model, monkeypatch):
    """They lie half-way to the default grid, once; the model's digest stays, the format's version says what is in."""
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
    third = tune_bundle(folder, replace(only, corrections=True, keep_levels=True, seed=1), say=silent)
    assert third.legs[0].lams == again.legs[0].lams
    assert third.legs[0].corrections != again.legs[0].corrections
    assert (first.format_version, again.format_version) == (1, 2)
    assert max(each.legs[0].error.mean for each in (again, third)) < first.legs[0].error.mean
    loaded = load_bundle(folder)
    assert loaded.digest == before
    # What was measured is what the file holds, rounded to float16.
    leg = leg_of(DomainModel(loaded), evaluations=64)
    ends = [leg.learned_end(each.steps(), leg.choose) for each in (third.legs[0], loaded.tuned.legs[0])]
    assert torch.equal(*ends)
