"""Learned weights: the walk is the solver's, learning lowers the error elsewhere, nothing gets worse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ddib_fed.bridge.model import DomainModel
from ddib_fed.diffusion.levels.grids import make_grid
from ddib_fed.diffusion.levels.learned import LearnedSteps
from ddib_fed.models.bundle import load_bundle, save_bundle
from ddib_fed.models.tuned import LearnedWeights
from ddib_fed.training.tuning import run
from ddib_fed.training.tuning.legs import errors, tuning_leg
from ddib_fed.training.tuning.run import Wanted, tune_bundle
from ddib_fed.training.tuning.samples import Counts
from ddib_fed.training.tuning.search import Effort
from ddib_fed.training.tuning.weights import Place, Walk, WeightEffort, weighted
from tests.runs.tiny_models import tiny

STEPS = 6


def silent(*_):
    """No progress."""


@pytest.fixture
def model():
    return DomainModel(tiny(channels=3, spectral=True), dtype=torch.float64)


def leg_of(model, stage="decode", rows=(6, 4, 8)):
    generator = torch.Generator().manual_seed(3)
    starts = [torch.randn(n, *model.sample_shape, generator=generator, dtype=torch.float64) for n in rows]
    return tuning_leg(model, stage, tuple(starts), (None,) * 3, sigma=0.0, evaluations=48, tell=silent)


def plain(model, stage="decode", coordinates="angle", order=2):
    grid = make_grid(model.bundle.schedule, "default", STEPS)
    lams = tuple(level.lam for level in grid.levels)
    return LearnedSteps(stage, STEPS, 0.0, order, coordinates, lams)


@pytest.mark.parametrize("stage", ["encode", "decode"])
@pytest.mark.parametrize(("coordinates", "order"), [("angle", 3), ("spectrum", 2)])
def test_the_walk_is_what_the_solver_computes(model, stage, coordinates, order):
    """With the weights of the levels, and with others."""
    leg, steps = leg_of(model, stage), plain(model, stage, coordinates, order)
    walk = Walk.of(leg, steps)
    _, missed = walk.linearised(leg.fit, silent)
    end = leg.learned_end(steps, leg.fit)
    expected = (leg.fit.end - end).flatten(1)
    found = missed.reshape(len(leg.fit), -1)
    torch.testing.assert_close(
        found / found.norm(dim=1, keepdim=True), expected / expected.norm(dim=1, keepdim=True)
    )
    named = replace(steps, weights=walk.weights)
    torch.testing.assert_close(leg.learned_end(named, leg.fit), end)
    other = replace(steps, weights=walk.moved(*_solvable(walk), 1.0))
    assert float((leg.learned_end(other, leg.fit) - end).abs().max()) > 1e-4


def _solvable(walk):
    count = len(walk.places)
    return torch.eye(count, dtype=torch.float64), torch.full((count,), 0.05, dtype=torch.float64)


@pytest.mark.parametrize("place", [Place(0, 0, 0), Place(0, 4, 1), Place(1, 2, 2), Place(0, STEPS - 1, 0)])
def test_a_quotient_is_the_change_of_the_end(model, place):
    """Through the solver with one weight changed by a small part of its interval."""
    leg, steps = leg_of(model), plain(model)
    walk = Walk.of(leg, steps)
    quotients, _ = walk.linearised(leg.fit, silent)
    size = 1e-3 * abs(walk.grid.phis[place.step + 1] - walk.grid.phis[place.step])
    rows = [list(map(list, each)) for each in walk.weights]
    rows[place.kind][place.step][place.value] += size
    changed = replace(steps, weights=tuple(tuple(map(tuple, each)) for each in rows))
    end = leg.learned_end(steps, leg.fit)
    share = 1.0 / ((leg.fit.end - end).flatten(1).square().mean(1).sqrt() + 1e-5)
    expected = ((leg.learned_end(changed, leg.fit) - end).flatten(1) / 1e-3 * share[:, None]).flatten()
    found = quotients[walk.places.index(place)]
    assert float((found - expected).norm() / expected.norm()) < 0.02


def test_weights_lower_the_error_of_rows_they_were_not_learned_from(model):
    """By more than a tenth, with two rounds over six pictures."""
    leg, steps = leg_of(model), plain(model)
    found = weighted(leg, steps, WeightEffort(pictures=6, batch=4, rounds=2), tell=silent)
    assert found.weights is not None
    before, after = (errors(leg.learned_end(each, leg.held_out), leg.held_out.end) for each in (steps, found))
    assert after.mean < 0.9 * before.mean


def test_weights_that_do_not_help_are_dropped(model):
    """Where the rows that decide end elsewhere than those that were learned from."""
    leg, steps = leg_of(model), plain(model)
    elsewhere = replace(leg.choose, end=leg.learned_end(steps, leg.choose))
    found = weighted(
        replace(leg, choose=elsewhere), steps, WeightEffort(pictures=6, batch=6, rounds=1), tell=silent
    )
    assert found == steps


def test_pictures_are_tuned_with_weights_that_a_bundle_keeps(tmp_path, monkeypatch):
    """From tuning to the steps of the loaded bundle; kept levels are learned from again."""
    bundle = tiny(channels=3, spectral=True)
    save_bundle(tmp_path / "model", bundle.manifest, bundle.state)
    counts = Counts(fit=4, choose=3, held_out=3)
    monkeypatch.setattr(run, "PICTURES", (counts, Effort((2,), 2, 1, 1, 1)))
    monkeypatch.setattr(run, "WEIGHTS", WeightEffort(pictures=4, batch=2, rounds=1))
    monkeypatch.setattr(run, "own_samples", lambda manifest, *_: _pictures(manifest, counts))
    wanted = Wanted((4,), stages=("decode",))
    first = tune_bundle(tmp_path / "model", wanted, say=silent)
    again = tune_bundle(tmp_path / "model", replace(wanted, keep_levels=True), say=silent)
    assert first.legs[0].lams == again.legs[0].lams
    kept = load_bundle(tmp_path / "model").learned.find("decode", 4)
    assert LearnedWeights.of(kept.weights) == again.legs[0].weights


def _pictures(manifest, counts):
    generator = torch.Generator().manual_seed(5)
    return tuple(
        (255.0 * torch.rand(n, *manifest.sample_shape, generator=generator)).numpy()
        for n in (counts.fit, counts.choose, counts.held_out)
    )


@pytest.mark.parametrize("stages", [("encode", "decode"), ("decode",)])
def test_decoding_is_learned_from_latents_beside_noise(monkeypatch, stages):
    """What a node decodes are latents of pictures; they are the same whether encoding is tuned too or not."""
    monkeypatch.setattr(run, "own_samples", lambda manifest, *_: _pictures(manifest, Counts(4, 2, 2)))
    monkeypatch.setattr(run, "REFERENCE", 8)
    model = DomainModel(tiny(channels=3, spectral=True))
    legs = run._legs(model, Wanted((4,), soften=0.1, stages=stages), Counts(4, 2, 2), silent)
    (encode,) = run._legs(model, Wanted((4,), soften=0.1, stages=("encode",)), Counts(4, 2, 2), silent)
    for decoded, encoded in ((legs[-1].fit, encode.fit), (legs[-1].held_out, encode.held_out)):
        torch.testing.assert_close(decoded.x[::2], encoded.end[::2])
        assert not torch.allclose(decoded.x[1::2], encoded.end[1::2])
