"""A sample depends on (seed, step, sample) alone; each picture comes once an epoch; held-out ones never."""

import numpy as np
import pytest
import torch

from ddib_fed.models.units import Normalisation
from ddib_fed.training.pictures import Batches
from ddib_fed.training.sources import array_source, normalisation, open_source
from tests.training.pictures.examples import blobs


@pytest.fixture
def batches(tiny, spots):
    config = tiny.model_copy(update={"classes": "given", "label_dropout": 0.5}).settled()
    return Batches(config, spots, Normalisation())


def test_a_batch_is_the_same_however_it_is_cut(batches):
    whole = batches.take(3, 0, 8)
    pieces = [batches.take(3, first, count) for first, count in ((0, 3), (3, 1), (4, 4))]
    for part in ("x0", "eps", "labels"):
        assert torch.equal(getattr(whole, part), torch.cat([getattr(piece, part) for piece in pieces]))


def test_steps_and_seeds_differ(batches, tiny, spots):
    other = Batches(tiny.model_copy(update={"seed": 1}).settled(), spots, Normalisation())
    first = batches.take(0, 0, 8).eps
    assert not torch.equal(first, batches.take(1, 0, 8).eps)
    assert not torch.equal(first, other.take(0, 0, 8).eps)


def test_noise_is_standard_normal(batches):
    eps = torch.cat([batches.take(step, 0, 8).eps for step in range(200)]).double()
    assert float(eps.mean()) == pytest.approx(0, abs=0.01)
    assert float(eps.std()) == pytest.approx(1, abs=0.01)
    flat = eps.flatten(1)
    assert float((flat[1:] * flat[:-1]).mean()) == pytest.approx(0, abs=0.01)


def test_every_picture_comes_once_an_epoch_in_an_order_of_its_own(tiny):
    numbers = np.arange(16, dtype=np.uint8).reshape(16, 1, 1, 1) * np.ones((1, 1, 8, 8), np.uint8)
    source = array_source("numbers", numbers, numbers[:1])
    config = tiny.model_copy(update={"dequantise": False, "flip": False}).settled()
    made = Batches(config, source, Normalisation())
    seen = [((made.take(step, 0, 8).x0[:, 0, 0, 0] + 1) * 127.5).round().int().tolist() for step in range(4)]
    epochs = [seen[0] + seen[1], seen[2] + seen[3]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(16))] * 2
    assert epochs[0] != epochs[1]


def test_levels_are_spread_evenly_and_differ_from_step_to_step(batches):
    u = batches.levels(0)
    assert torch.equal((u * 8).long(), torch.arange(8))
    assert not torch.equal(u, batches.levels(1))


def test_the_noise_of_dequantisation_stays_within_a_step(tiny, spots):
    pair = [
        Batches(tiny.model_copy(update={"dequantise": on}).settled(), spots, Normalisation()).take(0, 0, 8)
        for on in (True, False)
    ]
    moved = (pair[0].x0 - pair[1].x0) * 255 / 2
    assert 0.45 < float(moved.abs().max()) <= 0.5 + 1e-4
    assert torch.equal(pair[0].eps, pair[1].eps)


def test_half_of_the_pictures_are_mirrored_and_labels_withheld_as_often_as_asked(batches, tiny, spots):
    plain = Batches(
        tiny.model_copy(update={"flip": False, "classes": "given"}).settled(), spots, Normalisation()
    )
    turned = kept = dropped = 0
    for step in range(40):
        mine, theirs = batches.take(step, 0, 8), plain.take(step, 0, 8)
        same = [torch.allclose(a, b) for a, b in zip(mine.x0, theirs.x0, strict=True)]
        turned += same.count(False)
        kept += int((mine.labels == theirs.labels).sum())
        dropped += int((mine.labels == 2).sum())
    assert turned == pytest.approx(160, abs=30)
    assert dropped == pytest.approx(160, abs=30)
    assert kept + dropped == 320


def test_pictures_are_brought_to_unit_moments_channel_by_channel(tiny, spots):
    normal = normalisation(tiny, spots)
    made = Batches(tiny.settled(), spots, normal)
    x0 = torch.cat([made.take(step, 0, 8).x0 for step in range(7)])
    assert torch.allclose(x0.mean((0, 2, 3)), torch.zeros(3), atol=0.01)
    assert torch.allclose(x0.std((0, 2, 3)), torch.ones(3), atol=0.01)


def test_windows_have_the_networks_size_and_differ(tiny):
    large = blobs(12, size=10)
    source = array_source("large", large[:10], large[10:], size=8)
    made = Batches(tiny.settled(), source, Normalisation())
    assert made.take(0, 0, 8).x0.shape == (8, 3, 8, 8)
    assert made.held_out(2).x0.shape == (2, 3, 8, 8)
    assert source.shape == (3, 8, 8)


def test_held_out_pictures_have_the_same_noise_each_time(batches):
    first, again = batches.held_out(8), batches.held_out(8)
    assert torch.equal(first.x0, again.x0)
    assert torch.equal(first.eps, again.eps)
    assert first.labels.tolist() == [0, 1] * 4


def test_the_pictures_given_are_those_of_the_run(tiny, spots):
    assert open_source(tiny, spots) is spots
