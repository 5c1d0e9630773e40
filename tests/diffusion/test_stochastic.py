"""Decoding with eta above 0, and as DDPM: the right distribution, noise that is given, and no way to encode so."""

from __future__ import annotations

import pytest
import torch

from ddib_fed.diffusion.bridge import decode, encode
from ddib_fed.diffusion.grids import PublicLevels
from ddib_fed.diffusion.plans import SolverSettings, plan
from ddib_fed.diffusion.schedule import CosineSchedule, LinearSchedule, discrete_schedule
from ddib_fed.errors import SettingsInvalid
from tests.diffusion.gaussian_data import COVARIANCE, MEAN, gaussian_denoiser

LEVELS = PublicLevels("linear", 1000, "ddim250")


def noise(seed: int, shape):
    return lambda step: torch.randn(
        shape, generator=torch.Generator().manual_seed(1000 * seed + step), dtype=torch.float64
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "drawn", [{"eta": 0.5}, {"eta": 1.0}, {"ancestral": True}], ids=["half", "one", "ddpm"]
)
def test_noise_in_each_step_leaves_the_distribution_as_it_is(drawn):
    """Mean and covariance of Gaussian data, by the exact network, within what 20,000 points and 250 steps allow."""
    schedule = discrete_schedule("linear", 1000)
    settings = SolverSettings("ddim", evaluations=250, grid="ddib", levels=LEVELS, **drawn)
    z = noise(1, (20_000, 2))(0)
    x = decode(
        z,
        gaussian_denoiser("eps", time_input="timestep", schedule=schedule),
        schedule,
        settings,
        draw=noise(2, z.shape),
    )
    assert torch.allclose(x.mean(0), MEAN, atol=0.03)
    assert torch.allclose(torch.cov(x.T), COVARIANCE, atol=0.04)
    plain = decode(
        z, gaussian_denoiser("eps", time_input="timestep", schedule=schedule), schedule, settings.of_the_ode()
    )
    assert float((x - plain).square().mean()) > 0.1


def test_the_same_noise_gives_the_same_sample_and_eta_0_takes_none():
    """What is drawn is what `draw` gives, and nothing else."""
    schedule, z = LinearSchedule(), noise(1, (5, 2))(0)
    network = gaussian_denoiser("v")
    settings = SolverSettings("ddim", evaluations=20, eta=0.3)
    one, same, other = (
        decode(z, network, schedule, settings, draw=noise(seed, z.shape)) for seed in (2, 2, 3)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)

    def never(step):
        raise AssertionError(step)

    decode(z, network, schedule, SolverSettings("ddim", evaluations=20), draw=never)


@pytest.mark.parametrize("drawn", [{"eta": 0.1}, {"ancestral": True, "grid": "ddib"}], ids=str)
def test_encoding_refuses_to_draw_noise_and_decoding_refuses_to_invent_it(drawn):
    """The public code asserts eta 0 in encoding; here it is an error with a next step."""
    settings = SolverSettings("ddim", evaluations=30, **drawn)
    x = torch.zeros(3, 2, dtype=torch.float64)
    with pytest.raises(SettingsInvalid, match="encoding follows the ODE"):
        encode(x, gaussian_denoiser("v"), LinearSchedule(), settings)
    with pytest.raises(SettingsInvalid, match="draws noise, and there is none"):
        decode(x, gaussian_denoiser("v"), LinearSchedule(), settings)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        (SolverSettings("ddim", eta=1.5), "outside"),
        (SolverSettings("ddim", eta=-0.1), "outside"),
        (SolverSettings("unipc", eta=0.5), "follows the ODE"),
        (SolverSettings("ddim", ancestral=True), "public code's levels"),
        (SolverSettings("ddim", levels=LEVELS), "public code's levels"),
        (SolverSettings("ddim", grid="ddib", eta=0.5, ancestral=True), "variance of its own"),
        (SolverSettings("ddim", evaluations=48, grid="ddib", levels=LEVELS), "keeps 250, not 48"),
        (SolverSettings("ddim", grid="ddib", levels=PublicLevels(respacing="ddim")), "not of the form"),
        (SolverSettings("ddim", grid="ddib", levels=PublicLevels(diffusion_steps=20_000)), "outside"),
        (SolverSettings("ddim", grid="ddib", levels=PublicLevels("cosine", 4000)), "trained from"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_refused(settings, word):
    with pytest.raises(SettingsInvalid, match=word):
        plan(settings, LinearSchedule())


@pytest.mark.parametrize("own", [("linear", 1000), ("cosine", 1000)])
@pytest.mark.parametrize(
    "asked", [("linear", 1000), ("cosine", 1000), ("linear", 4000), ("", 0), ("cosine", 0)]
)
def test_a_model_keeps_the_steps_that_it_was_trained_on(own, asked):
    """Options may repeat them or leave them open; others are refused by name."""
    settings = SolverSettings("ddim", evaluations=50, grid="ddib", levels=PublicLevels(*asked, "50"))
    if asked[0] in ("", own[0]) and asked[1] in (0, own[1]):
        assert len(plan(settings, discrete_schedule(*own)).decode_grid) == 50
        return
    with pytest.raises(SettingsInvalid, match="the model was trained"):
        plan(settings, discrete_schedule(*own))


def test_a_schedule_of_other_ends_is_not_the_one_of_that_name():
    """`linear` between betas of one's own is distinguished from the public one."""
    own = discrete_schedule("linear", 1000, ends=(1e-3, 0.03))
    with pytest.raises(SettingsInvalid, match="noise schedule"):
        plan(SolverSettings("ddim", grid="ddib", levels=PublicLevels("linear")), own)
    with pytest.raises(SettingsInvalid, match="none of its own"):
        PublicLevels(respacing="ddim50").kept(CosineSchedule())
