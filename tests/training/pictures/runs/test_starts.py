"""A run starts from a bundle's weights, also from RGB to grey and back, and refuses what does not fit."""

import pytest
import torch
from torch.nn import functional

from ddib_fed.errors import SettingsInvalid
from ddib_fed.networks.config import UNetConfig, build_network
from ddib_fed.training.run import train
from ddib_fed.training.sources import fitted, new_network, open_start
from tests.training.pictures.examples import spots_source


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Weights of RGB pictures whose last layer is no longer zero."""
    from ddib_fed.training.config import TrainConfig

    network = {
        "model_channels": 32,
        "channel_mult": (1,),
        "num_res_blocks": 1,
        "patch": 2,
        "global_mean": True,
        "spectral": False,
    }
    config = TrainConfig(
        kind="pictures", network=network, batch=8, steps=3, warmup=0, samples=1, dtype="float32", ema=0.0
    )
    out = tmp_path_factory.mktemp("begun")
    train(config, out, source=spots_source())
    return out


def network_from(config, source, seed=0):
    start = open_start(config, source)
    return new_network(start, seed).eval()


@pytest.fixture
def asked(tiny, begun):
    return tiny.model_copy(update={"network": {}, "init": begun})


@pytest.mark.slow
def test_grey_pictures_get_what_the_rgb_network_says_of_them_in_all_channels(asked, spots):
    times, x = torch.tensor([0.5]), torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    rgb, grey = (network_from(asked, spots_source(channels)) for channels in (3, 1))
    with torch.no_grad():
        expected = rgb(x.expand(2, 3, 8, 8), times).mean(1, keepdim=True)
        assert float(expected.abs().max()) > 1e-4
        assert torch.allclose(grey(x, times), expected, atol=1e-5)


@pytest.mark.slow
def test_rgb_pictures_get_the_grey_networks_answer_for_their_mean(asked, spots, tiny, tmp_path):
    plain = tiny.model_copy(update={"steps": 2, "ema": 0.0, "network": {**tiny.network, "spectral": False}})
    train(plain, tmp_path, source=spots_source(1))
    config = tiny.model_copy(update={"network": {}, "init": tmp_path})
    grey, rgb = (network_from(config, spots_source(channels)) for channels in (1, 3))
    times, x = torch.tensor([0.5]), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = grey(x.mean(1, keepdim=True), times).expand(2, 3, 8, 8)
        assert torch.allclose(rgb(x, times), expected, atol=1e-5)


@pytest.mark.parametrize("spectral", [False, True])
def test_the_first_layer_takes_grey_as_it_took_three_equal_channels(spectral):
    """Every part of what enters: patches of pixels, once or twice, then means."""
    fields = {"image_size": 8, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "patch": 2}
    configs = [
        UNetConfig(in_channels=c, out_channels=c, global_mean=True, spectral=spectral, **fields)
        for c in (3, 1)
    ]
    rgb, grey = (build_network(config).input_blocks[0][0] for config in configs)
    name = "input_blocks.0.0.weight"
    weight = fitted({name: rgb.weight.detach()}, {name: grey.weight.detach()}, configs[1])[name]
    parts = [torch.randn(2, size, 4, 4) for size in [4] * (1 + spectral) + [1]]
    expected = functional.conv2d(torch.cat([p for part in parts for p in [part] * 3], dim=1), rgb.weight)
    assert torch.allclose(functional.conv2d(torch.cat(parts, dim=1), weight), expected, atol=1e-5)


def test_classes_that_are_new_start_fresh(asked, spots):
    config = asked.model_copy(update={"classes": "given"})
    times, x = torch.tensor([0.5]), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    network = network_from(config, spots)
    with torch.no_grad():
        answer = network(x, times, y=torch.tensor([0, 1]))
    assert answer.shape == (2, 3, 8, 8)
    assert float(answer.abs().max()) > 0.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"network": {"model_channels": 64}}, "model_channels"),
        ({"predict": "eps"}, "parameterisation"),
        ({"noise_schedule": "linear"}, "schedule"),
        ({"init_digest": "0" * 64}, "digest"),
    ],
)
def test_what_contradicts_the_starting_weights_is_refused(asked, spots, change, said):
    with pytest.raises(SettingsInvalid, match=said):
        open_start(asked.model_copy(update=change), spots)


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ({"model_channels": 33}, "32"),
        ({"widths": 3}, "widths"),
        ({"channel_mult": (1, 1, 1, 1), "patch": 2}, "divide"),
    ],
)
def test_a_network_that_cannot_be_is_refused_with_the_reason(tiny, spots, network, said):
    config = tiny.model_copy(update={"network": {**tiny.network, **network}})
    with pytest.raises(SettingsInvalid, match=said):
        open_start(config, spots)
