"""Between two latents lies a latent: of their norm on the sphere, of a smaller one on the straight line."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from ddib_fed.diffusion.bridge import angle, interpolate
from ddib_fed.errors import SettingsInvalid, ShapeMismatch


@pytest.fixture
def pair():
    noise = torch.Generator().manual_seed(3)
    return torch.randn(3, 16, 16, generator=noise), torch.randn(3, 16, 16, generator=noise)


@pytest.mark.parametrize("way", ["slerp", "lerp"])
def test_the_ends_are_the_latents_themselves(pair, way):
    found = interpolate(*pair, [0.0, 1.0], way=way)
    assert torch.equal(found[0], pair[0])
    assert torch.equal(found[1], pair[1])


def test_the_sphere_keeps_the_spread_of_noise_and_the_line_does_not(pair):
    halfway = {way: interpolate(*pair, [0.5], way=way).std().item() for way in ("slerp", "lerp")}
    assert halfway["slerp"] == pytest.approx(1.0, abs=0.05)
    assert halfway["lerp"] == pytest.approx(math.sqrt(0.5), abs=0.05)


def test_equal_weights_are_equal_angles(pair):
    """Between latents of one norm the way is walked at constant speed."""
    start, end = (latent / latent.norm() for latent in pair)
    found = interpolate(start, end, [0.0, 0.25, 0.5, 0.75, 1.0])
    steps = [angle(a, b) for a, b in pairwise(found)]
    assert steps == pytest.approx([angle(start, end) / 4] * 4, abs=1e-6)


@pytest.mark.parametrize("factor", [1.0, 2.0, -1.0], ids=["same", "parallel", "opposite"])
def test_latents_on_one_line_are_joined_by_it(pair, factor):
    """Where the sphere gives no way, or none of its own, the result is still finite."""
    found = interpolate(pair[0], factor * pair[0], [0.25])
    assert torch.allclose(found[0], (0.75 + 0.25 * factor) * pair[0])


def test_angles_of_vectors_that_are_known():
    unit = torch.eye(3)
    assert angle(unit[0], unit[1]) == pytest.approx(math.pi / 2)
    assert angle(unit[0], -unit[0]) == pytest.approx(math.pi)
    assert angle(unit[0], unit[0] + 1e-6 * unit[1]) == pytest.approx(1e-6, rel=1e-3)


def test_refuses_what_has_no_way(pair):
    with pytest.raises(ShapeMismatch):
        interpolate(pair[0], pair[1][:1], [0.5])
    with pytest.raises(SettingsInvalid):
        interpolate(*pair, [1.5])
    with pytest.raises(SettingsInvalid):
        interpolate(*pair, [0.5], way="detour")
