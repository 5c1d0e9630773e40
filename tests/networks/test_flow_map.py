"""Networks of two levels: what they start from, and the linear estimate that a spectrum gives them."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.diffusion.denoiser import LAMBDA_SCALE
from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import MlpConfig, UNetConfig
from ddib_fed.networks.spectrum import Spectrum

UNET = {
    "image_size": 8, "model_channels": 32, "out_channels": 3, "num_res_blocks": 1, "channel_mult": (1,),
    "norm_groups": 8, "spectral": True,
}  # fmt: skip
CONFIGS = [MlpConfig(), UNetConfig(**UNET), UNetConfig(**UNET, num_classes=3)]


def inputs(config):
    generator = torch.Generator().manual_seed(0)
    shape = (2,) if isinstance(config, MlpConfig) else (3, 8, 8)
    x = torch.randn(4, *shape, generator=generator)
    extra = {"y": torch.tensor([0, 1, 2, 0])} if getattr(config, "num_classes", None) else {}
    return x, torch.tensor([-4.0, 3.0]), torch.tensor([0, 1, 1, 0]), extra


def networks(config):
    """A network with weights that are nowhere zero, and a flow map that starts from them."""
    torch.manual_seed(1)
    plain = build_network(config)
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_(std=0.1)
    mapped = build_network(config.model_copy(update={"flow_map": True}))
    missing = mapped.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing
    assert all("span" in name for name in missing)
    return plain.eval(), mapped.eval()


@pytest.mark.parametrize("config", CONFIGS, ids=["mlp", "unet", "classes"])
def test_starts_from_the_velocities_of_the_network_it_is_made_of(config):
    """With the weights of a network of velocities, u(x, t, t) is its v."""
    plain, mapped = networks(config)
    x, times, rows, extra = inputs(config)
    with torch.no_grad():
        expected = plain(x, times, rows=rows, **extra)
        assert torch.allclose(mapped(x, times, rows=rows, **extra), expected, atol=1e-5)
        assert torch.allclose(mapped(x, times, rows=rows, to=times, **extra), expected, atol=1e-5)


@pytest.mark.parametrize("config", CONFIGS, ids=["mlp", "unet", "classes"])
def test_rows_have_their_own_spans(config):
    """A batch with a step of its own for each row gives what each row gets alone."""
    _, mapped = networks(config)
    with torch.no_grad():
        for parameter in mapped.parameters():
            parameter.normal_(std=0.1)
        x, times, rows, extra = inputs(config)
        to = torch.tensor([5.0, -6.0])
        whole = mapped(x, times, rows=rows, to=to, **extra)
        for k in range(len(x)):
            own = {name: value[k : k + 1] for name, value in extra.items()}
            here, there = times[rows[k], None], to[rows[k], None]
            alone = mapped(x[k : k + 1], here, to=there, **own)
            assert torch.allclose(alone, whole[k : k + 1], atol=1e-4)
        assert not torch.allclose(whole, mapped(x, times, rows=rows, **extra), atol=1e-2)


@pytest.fixture
def spectrum():
    torch.manual_seed(0)
    found = Spectrum(3, 8).double()
    found.mean.copy_(torch.randn(3, 8, 8))
    found.log_variance.copy_(2 * torch.randn(3, 8, 8))
    return found


def phi(times):
    return torch.atan(torch.exp(-times / LAMBDA_SCALE))


def test_the_estimate_of_the_mean_is_what_the_linear_ode_gives(spectrum):
    """Integrated in 400 midpoint steps, the estimate of the velocity ends where the estimate of the mean says."""
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    start, end = (torch.tensor(t, dtype=torch.float64) for t in ([3, -2, 10, -15], [-12, 8, -16, 14]))
    step, y = (phi(end) - phi(start)) / 400, x.clone()
    for k in range(400):
        half = y
        for there, length in ((phi(start) + k * step, step / 2), (phi(start) + (k + 0.5) * step, step)):
            v = spectrum.ask(half, -LAMBDA_SCALE * torch.log(torch.tan(there))).expected()
            half = y + length[:, None, None, None] * v
        y = half
    mean = (y - x) / (phi(end) - phi(start))[:, None, None, None]
    assert torch.allclose(spectrum.ask(x, start, None, end).expected(), mean, atol=1e-4)
