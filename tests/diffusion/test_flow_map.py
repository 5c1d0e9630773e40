"""Steps of a network that knows the mean velocity between two levels, with the exact one of Gaussian data."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ddib_fed.diffusion.bridge import Rotated, decode, encode
from ddib_fed.diffusion.denoiser import Denoiser, LevelTable, Places
from ddib_fed.diffusion.plans import SolverSettings
from ddib_fed.diffusion.schedule import CosineSchedule
from ddib_fed.errors import SettingsInvalid
from tests.diffusion.gaussian_data import (
    GaussianNetwork,
    gaussian_denoiser,
    gaussian_map,
    gaussian_samples,
    merged,
)

SCHEDULE = CosineSchedule()
DATA, NOISE = SCHEDULE.level(SCHEDULE.lambda_max), SCHEDULE.level(SCHEDULE.lambda_min)
HALF = SCHEDULE.level(0.0)


class ExactMap(nn.Module):
    """The mean velocity of Gaussian data from `times` to `to`, in closed form; their velocity without `to`."""

    flow_map = True

    def __init__(self):
        super().__init__()
        self.still = GaussianNetwork("v")

    def forward(self, x, times, rows=None, to=None):
        times = times if rows is None else times[rows]
        to = times if to is None else (to if rows is None else to[rows])
        out = self.still(x, times).clone()
        for k in range(len(x)):
            start, end = (SCHEDULE.level(float(t[k % len(t)])) for t in (times, to))
            if abs(end.phi - start.phi) > 1e-9:
                moved = gaussian_map(x[k : k + 1], start, end)[0]
                out[k] = (moved - x[k]) / (end.phi - start.phi)
        return out


@pytest.fixture
def exact():
    return Denoiser(ExactMap(), "v", "lambda")


@pytest.mark.parametrize("evaluations", [1, 2, 5])
def test_an_exact_map_is_exact_with_any_number_of_steps(exact, evaluations):
    """Encoding ends at the exact latent, and decoding takes it back."""
    settings = SolverSettings("flow-map", evaluations=evaluations)
    x = gaussian_samples(6, DATA)
    z = encode(x, exact, SCHEDULE, settings)
    assert torch.allclose(z, gaussian_map(x, DATA, NOISE), atol=1e-6)
    assert torch.allclose(decode(z, exact, SCHEDULE, settings), x, atol=1e-5)


def test_merged_requests_get_what_each_gets_alone(exact):
    """One call answers a step, another step and a velocity."""
    x = gaussian_samples(6, HALF)
    levels, to = [DATA, NOISE, HALF], [HALF, DATA, None]
    together = merged(exact, x, levels, [2, 3, 1], None, to)
    alone = [
        exact(part, *pair) for part, *pair in zip(x.split([2, 3, 1]), levels, [None] * 3, to, strict=True)
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


def test_rows_that_are_chosen_or_doubled_keep_their_targets(exact):
    """Tiles and classifier-free guidance rearrange the rows of a call."""
    x = gaussian_samples(3, HALF)
    table = torch.tensor([HALF, NOISE], dtype=torch.float64)
    to = torch.tensor([DATA, HALF], dtype=torch.float64)
    places = Places.by_row(x, LevelTable(table, to), torch.tensor([0, 1, 0]))
    whole = exact.at(x, places)
    which = torch.tensor([2, 1])
    assert torch.allclose(exact.at(x[which], places.chosen(which)), whole[which])
    assert torch.allclose(exact.at(torch.cat([x, x]), places.twice()), torch.cat([whole, whole]))


def test_a_basis_turns_the_means_too(exact):
    """In a rotated basis the step is the rotated step."""
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    x = gaussian_samples(4, NOISE)
    found = Rotated(exact, turn)(x @ turn.T, NOISE, None, DATA)
    assert torch.allclose(found, exact(x, NOISE, None, DATA) @ turn.T, atol=1e-6)


def test_a_network_of_velocities_is_refused():
    """It does not know the mean over an interval, and must not be taken for a flow map."""
    settings = SolverSettings("flow-map", evaluations=4)
    with pytest.raises(SettingsInvalid, match="velocities at one level alone"):
        encode(gaussian_samples(2, DATA), gaussian_denoiser(), SCHEDULE, settings)
