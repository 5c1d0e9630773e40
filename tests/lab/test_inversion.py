"""Surrogates read what there is to read, and nothing from noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ddib_fed.lab.report import fit_inverter
from ddib_fed.networks.spectrum import cosines
from ddib_fed.networks.spectrum import pictures as from_cosines

SIZE = 8


def drawn(count, seed=0):
    noise = torch.randn(count, 2, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
    places = torch.arange(float(SIZE))
    return (from_cosines(noise / (1.0 + torch.hypot(*torch.meshgrid(places, places, indexing="ij"))))).numpy()


def share_left(inverter, latents, originals):
    return float(np.square(inverter.inverse(latents) - originals).mean() / originals.var())


def test_a_whitened_picture_is_read():
    """A linear map by frequency, with the channels turned: the first surrogate finds it from few pairs."""
    turn = torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
    places = torch.arange(float(SIZE))
    gain = 1.0 + torch.hypot(*torch.meshgrid(places, places, indexing="ij"))

    def whiten(x):
        white = from_cosines(gain * cosines(torch.from_numpy(x)))
        return torch.einsum("ij,njhw->nihw", turn, white).numpy()

    known, other = drawn(64), drawn(32, seed=1)
    inverter = fit_inverter(whiten(known), known, steps=0)
    assert inverter.name == "frequency"
    assert share_left(inverter, whiten(other), other) < 0.01


@pytest.mark.slow
def test_the_network_reads_what_is_not_linear():
    """Cubes of a picture's numbers; and it is the same for a seed."""
    known, other = 4 * drawn(96), 4 * drawn(32, seed=1)
    linear, found, again = (fit_inverter(known**3, known, steps=steps) for steps in (0, 80, 80))
    assert found.name == "network"
    assert share_left(found, other**3, other) < 0.8 * share_left(linear, other**3, other)
    assert np.array_equal(found.inverse(other**3), again.inverse(other**3))
