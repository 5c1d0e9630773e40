"""Between two latents lies a latent of their norm."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.diffusion.bridge import interpolate
from ddib_fed.errors import SettingsInvalid, ShapeMismatch


@pytest.fixture
def pair():
    noise = torch.Generator().manual_seed(3)
    return torch.randn(3, 16, 16, generator=noise), torch.randn(3, 16, 16, generator=noise)


def test_the_ends_are_the_latents_themselves_and_the_way_keeps_the_spread_of_noise(pair):
    found = interpolate(*pair, [0.0, 1.0, 0.5])
    assert torch.equal(found[0], pair[0])
    assert torch.equal(found[1], pair[1])
    assert found[2].std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0], ids=["same", "parallel", "opposite"])
def test_latents_on_one_line_are_joined_by_it(pair, factor):
    """Where the sphere gives no way, or none of its own, the result is still finite."""
    found = interpolate(pair[0], factor * pair[0], [0.25])
    assert torch.allclose(found[0], (0.75 + 0.25 * factor) * pair[0])


def test_refuses_what_has_no_way(pair):
    with pytest.raises(ShapeMismatch):
        interpolate(pair[0], pair[1][:1], [0.5])
    with pytest.raises(SettingsInvalid):
        interpolate(*pair, [1.5])
