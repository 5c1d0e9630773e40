"""Gradients of single samples are those of the samples alone, and none counts for more than the clip."""

import pytest
import torch
from torch import nn

from ddib_fed.errors import SettingsInvalid
from ddib_fed.lab.private import Draws, RunKey, SampleGradients, clipped_sums, refuse_layers
from ddib_fed.networks.config import MlpConfig, SyntheticConfig, UNetConfig, build_network

NETWORKS = {
    "points": (MlpConfig(width=16, blocks=2, embedding=8, features=4), (2,)),
    "public points": (SyntheticConfig(num_channels=32, num_res_blocks=1), (2,)),
    "pictures": (
        UNetConfig(
            image_size=16,
            in_channels=3,
            out_channels=3,
            model_channels=32,
            channel_mult=(1, 2),
            num_res_blocks=1,
            attention_resolutions=(2,),
            num_head_channels=32,
            norm_groups=8,
            use_scale_shift_norm=True,
            patch=2,
            global_mean=True,
            num_classes=2,
        ),
        (3, 16, 16),
    ),
    "guided-diffusion's": (
        UNetConfig(
            image_size=8,
            in_channels=1,
            out_channels=1,
            model_channels=32,
            channel_mult=(1, 1),
            num_res_blocks=1,
            attention_resolutions=(1,),
            resblock_updown=True,
        ),
        (1, 8, 8),
    ),
}


def network_of(name):
    """With weights in the layers that start at zero, so that every gradient is something."""
    torch.manual_seed(0)
    network = build_network(NETWORKS[name][0]).train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def draws_of(name, count=3, draws=2):
    shape = NETWORKS[name][1]
    labels = None
    if getattr(NETWORKS[name][0], "num_classes", None):
        labels = torch.arange(count * draws).reshape(count, draws) % 2
    full = (count, draws, *shape)
    return Draws(torch.randn(full), torch.rand(count, draws), torch.randn(full), labels)


@pytest.mark.parametrize("name", NETWORKS)
def test_they_are_the_gradients_of_each_sample_alone(name):
    """By the ordinary backward pass, one sample at a time, of the mean over its draws."""
    network, draws = network_of(name), draws_of(name)
    gradients, losses = SampleGradients(network)(draws)
    for i in range(3):
        extra = {} if draws.labels is None else {"y": draws.labels[i]}
        network.zero_grad()
        loss = (network(draws.x[i], draws.times[i], **extra) - draws.target[i]).square().mean()
        loss.backward()
        assert torch.allclose(losses[i], loss, rtol=1e-4)
        largest = max(float(parameter.grad.abs().max()) for parameter in network.parameters())
        for parameter, found in zip(network.parameters(), gradients, strict=True):
            assert torch.allclose(parameter.grad, found[i], rtol=1e-3, atol=1e-5 * largest)


@pytest.fixture
def sums():
    """Clipped sums for the network of points, without noise."""
    pytest.importorskip("opacus")
    network = network_of("points")
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    made = clipped_sums(optimizer, 0.0, 0.5, 1, RunKey(bytes(32)))
    return network, made


def norm_of(network):
    return float(torch.cat([parameter.grad.reshape(-1) for parameter in network.parameters()]).norm())


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6, 1e30])
def test_no_sample_counts_for_more_than_the_clip(sums, scale):
    """Also one whose gradient is larger than a float32's square root."""
    network, clipped = sums
    draws = draws_of("points", count=1)
    huge = Draws(draws.x, draws.times, draws.target * scale)
    clipped.add(SampleGradients(network)(huge)[0])
    clipped.finish(0)
    assert norm_of(network) <= 0.5 * (1 + 1e-5)


def test_a_planted_sample_moves_the_sum_by_the_clip_at_most(sums):
    network, clipped = sums
    draws, planted = draws_of("points", count=8), draws_of("points", count=1)
    each = SampleGradients(network)
    clipped.add(each(draws)[0])
    clipped.finish(0)
    without = [parameter.grad.clone() for parameter in network.parameters()]
    clipped.zero_grad(set_to_none=True)
    clipped.add(each(draws)[0])
    clipped.add(each(Draws(planted.x, planted.times, planted.target * 1e6))[0])
    clipped.finish(0)
    moved = [p.grad - before for p, before in zip(network.parameters(), without, strict=True)]
    assert float(torch.cat([part.reshape(-1) for part in moved]).norm()) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    "layer", [nn.BatchNorm2d(4), nn.Dropout(0.1), nn.InstanceNorm2d(4, track_running_stats=True)]
)
def test_layers_that_mix_samples_are_refused(layer):
    refuse_layers(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0), nn.GroupNorm(1, 2)))
    with pytest.raises(SettingsInvalid, match=type(layer).__name__):
        refuse_layers(nn.Sequential(nn.Linear(2, 2), layer))
