"""White noise passes, whatever its size; constants, halved noise, correlated and smooth fields do not."""

import pytest
import torch

from ddib_fed.diffusion.gaussianity import LatentStatistics, check, examine, measure
from ddib_fed.errors import LatentNotGaussian


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth_field(n: int) -> torch.Tensor:
    coarse = noise(n, 3, 6, 6)
    field = torch.nn.functional.interpolate(coarse, size=(48, 48), mode="bilinear")
    return (field - field.mean()) / field.std()


@pytest.mark.parametrize(
    "shape",
    [
        (1, 2),
        (3, 2),
        (64, 2),
        (10_000, 2),
        (500, 3),
        (1, 3, 32, 32),
        (8, 1, 48, 48),
        (1, 4, 4, 4),
        (1, 1, 32, 32, 32),
        (1, 4, 24, 6, 8),
    ],
)
def test_noise_passes_at_every_size(shape):
    """Few numbers scatter, and the bounds allow for it."""
    for seed in range(5):
        check(measure(noise(*shape, seed=seed)))


def smooth_volume() -> torch.Tensor:
    field = torch.nn.functional.interpolate(noise(1, 1, 4, 4, 4), size=(32, 32, 32), mode="trilinear")
    return (field - field.mean()) / field.std()


REFUSED = {
    "constant points": torch.full((1000, 2), 0.3),
    "half the noise": 0.5 * noise(1000, 2),
    "one coordinate twice": noise(1000, 1).expand(-1, 2),
    "not a number": torch.full((1000, 2), float("nan")),
    "smooth pictures": smooth_field(4),
    "a smooth volume": smooth_volume(),
}


@pytest.mark.parametrize("latent", REFUSED.values(), ids=REFUSED)
def test_refuses_what_is_not_noise(latent):
    """Each is refused, and the figure that gave it away is named."""
    with pytest.raises(LatentNotGaussian) as caught:
        check(measure(latent))
    assert caught.value.facts


@pytest.mark.parametrize(
    "far", [torch.full((1, 2), 9.0), 40 * noise(100, 2), torch.full((3, 2), float("nan"))]
)
def test_points_that_noise_never_reaches_are_refused(far):
    """One point among many is enough; the number of them and the bound are named."""
    with pytest.raises(LatentNotGaussian) as caught:
        examine(torch.cat([noise(500, 2), far]))
    assert caught.value.facts["points"] == str(500 + len(far))


def _figures(count: int = 10**10, **changes: float) -> LatentStatistics:
    return LatentStatistics(
        **{"mean": 0.0, "std": 1.0, "kurtosis": 0.0, "correlation": 0.0, "count": count, **changes}
    )


# The last value that passes and the first that does not.
EDGES = [
    ("mean", 0.149, 0.151), ("mean", -0.149, -0.151), ("std", 9.9, 10.1), ("std", 0.572, 0.570),
    ("kurtosis", 29.9, 30.1), ("kurtosis", -0.59, -0.61), ("correlation", 0.199, 0.201),
]  # fmt: skip


@pytest.mark.parametrize(("name", "inside", "outside"), EDGES)
def test_each_figure_has_its_bound(name, inside, outside):
    check(_figures(**{name: inside}))
    with pytest.raises(LatentNotGaussian) as caught:
        check(_figures(**{name: outside}))
    assert list(caught.value.facts) == [name]


@pytest.mark.parametrize(
    ("count", "inside", "outside"), [(1, 7.3, 7.5), (10_000, 8.6, 8.8)], ids=["alone", "among 10,000"]
)
def test_a_point_may_be_as_far_out_as_one_set_of_noise_in_5e8(count, inside, outside):
    """By the tail bound of the module, in two dimensions."""
    points = torch.zeros(count, 2)
    points[0, 0] = inside
    examine(points)
    points[0, 0] = outside
    with pytest.raises(LatentNotGaussian):
        examine(points)
