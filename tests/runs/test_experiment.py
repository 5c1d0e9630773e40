"""An experiment keeps rows together, works in the models' units and reports those of the data."""

import dataclasses

import numpy as np
import pytest

from ddib_fed.datasets.synthetic import sample
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.models.bundle import make_bundle
from ddib_fed.models.shipped import pretrained
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.runs import experiment

FEW = SolverSettings("unipc", 3, 16)


@pytest.fixture(scope="module")
def moons():
    return pretrained("moons")


@pytest.fixture(scope="module")
def boards():
    return pretrained("checkerboards")


def scaled(bundle, mean, std):
    manifest = bundle.manifest.model_copy(update={"normalisation": Normalisation(mean=mean, std=std)})
    return make_bundle(manifest, bundle.state)


def test_batches_do_not_show(moons, boards, monkeypatch):
    points = sample("moons", 60, 0)
    whole = experiment.run(moons, boards, points, FEW, cycle=True)
    monkeypatch.setattr(experiment, "BATCH", 25)
    parts = experiment.run(moons, boards, points, FEW, cycle=True)
    for (name, one), (_, other) in zip(whole.named(), parts.named(), strict=True):
        assert np.allclose(one, other, atol=1e-4), name


def test_every_evaluation_is_told_once(moons, boards, monkeypatch):
    monkeypatch.setattr(experiment, "BATCH", 4)
    told = []
    experiment.run(
        moons, boards, sample("moons", 9, 0), FEW, cycle=False, on_step=lambda *now: told.append(now)
    )
    assert told == [(k, 96) for k in range(1, 97)]


@pytest.mark.slow
def test_points_in_other_units_take_the_same_way(moons, boards, tmp_path):
    """Scaling the source's data, and the target's, changes what is read and written, and nothing between."""
    points = sample("moons", 50, 0)
    plain = experiment.run(moons, boards, points, FEW, cycle=True)
    near, far = scaled(moons, 100.0, 7.0), scaled(boards, -3.0, 0.5)
    moved = experiment.run(near, far, points * 7 + 100, FEW, cycle=True)
    assert np.allclose(moved.latent, plain.latent, atol=1e-3)
    experiment.write(tmp_path, near, far, moved, experiment.figures(near, far, moved, FEW))
    assert np.allclose(np.load(tmp_path / "target.npy"), moved.target * 0.5 - 3, atol=1e-5)
    assert np.allclose(np.load(tmp_path / "source.npy"), points * 7 + 100, atol=1e-3)


def test_a_target_that_is_no_synthetic_domain_needs_points_to_be_measured_against(moons, boards):
    named = boards.manifest.model_copy(update={"domain": "cells"})
    cells = dataclasses.replace(boards, manifest=named)
    stages = experiment.run(moons, cells, sample("moons", 300, 0), FEW, cycle=False)
    assert experiment.figures(moons, cells, stages, FEW)["target_cloud"] is None
    held = sample("checkerboards", 300, 1, order="shuffled")
    found = experiment.figures(moons, cells, stages, FEW, reference=held)["target_cloud"]
    assert found["sliced_w2"] < 3 * found["sliced_w2_floor"]


def test_a_translation_one_way_has_no_cycle_error(moons, boards):
    stages = experiment.run(moons, boards, sample("moons", 30, 0), FEW, cycle=False)
    report = experiment.figures(moons, boards, stages, FEW)
    assert "cycle" not in report
    assert report["evaluations"] == {"per_leg": 16, "legs": 2, "per_point": 32}
