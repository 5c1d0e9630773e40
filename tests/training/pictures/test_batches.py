"""A sample depends on (seed, step, sample) alone; each picture comes once an epoch; held-out ones never."""

import numpy as np
import pytest
import torch

from ddib_fed.models.units import Normalisation
from ddib_fed.training.pictures import Batches
from ddib_fed.training.sources import array_source


@pytest.fixture
def batches(tiny, spots):
    config = tiny.model_copy(update={"classes": "given", "label_dropout": 0.5}).settled()
    return Batches(config, spots, Normalisation())


def test_a_batch_is_the_same_however_it_is_cut(batches):
    whole = batches.take(3, 0, 8)
    pieces = [batches.take(3, first, count) for first, count in ((0, 3), (3, 1), (4, 4))]
    for part in ("x0", "eps", "labels"):
        assert torch.equal(getattr(whole, part), torch.cat([getattr(piece, part) for piece in pieces]))


def test_every_picture_comes_once_an_epoch_in_an_order_of_its_own(tiny):
    numbers = np.arange(16, dtype=np.uint8).reshape(16, 1, 1, 1) * np.ones((1, 1, 8, 8), np.uint8)
    source = array_source("numbers", numbers, numbers[:1])
    config = tiny.model_copy(update={"dequantise": False, "flip": False}).settled()
    made = Batches(config, source, Normalisation())
    seen = [((made.take(step, 0, 8).x0[:, 0, 0, 0] + 1) * 127.5).round().int().tolist() for step in range(4)]
    epochs = [seen[0] + seen[1], seen[2] + seen[3]]
    assert [sorted(epoch) for epoch in epochs] == [list(range(16))] * 2
    assert epochs[0] != epochs[1]


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
