"""The ADM UNet: sizes of public checkpoints, times and classes by row, precisions, memory."""

import pytest
import torch

from ddib_fed.diffusion.plans import SolverSettings, plan
from ddib_fed.diffusion.solvers import integrate
from ddib_fed.importers.guided import parse_flags, settle
from ddib_fed.models.bundle import pretrained
from ddib_fed.networks.build import network_shapes
from ddib_fed.networks.config import UNetConfig
from ddib_fed.networks.unet import TimeEmbed, timestep_embedding
from tests.networks.picture_networks import classifier, unet

VARIANTS = [
    {},
    {"num_classes": 3, "class_dropout": True, "use_scale_shift_norm": True, "out_channels": 2},
    {"resblock_updown": True, "use_new_attention_order": True, "num_head_channels": 32},
    {"patch": 2, "in_channels": 3, "out_channels": 6, "conv_resample": False, "num_heads_upsample": 2},
    {"patch": 2, "norm_groups": 8, "global_mean": True, "use_scale_shift_norm": True},
]
ADM_256 = {
    "image_size": 256, "model_channels": 256, "out_channels": 6, "num_res_blocks": 2,
    "attention_resolutions": (8, 16, 32), "channel_mult": (1, 1, 2, 2, 4, 4), "num_head_channels": 64,
    "use_scale_shift_norm": True, "resblock_updown": True,
}  # fmt: skip

FLAGS_256 = (
    "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --image_size 256 "
    "--noise_schedule linear --num_channels 256 --num_head_channels 64 --num_res_blocks 2 "
    "--learn_sigma True --resblock_updown True --use_fp16 True --use_scale_shift_norm True"
)


def picture(changes, rows=4):
    return torch.randn(rows, changes.get("in_channels", 1), 16, 24)


def classes(changes, rows=4):
    return {"y": torch.arange(rows)} if "num_classes" in changes else {}


@pytest.mark.slow
def test_the_published_256_pixel_network_has_its_size_and_is_imported_by_the_public_readmes_flags():
    """The class-conditional one, built without memory."""
    config = UNetConfig(**ADM_256, num_classes=1000)
    shapes = network_shapes(config)
    assert sum(value.numel() for value in shapes.values()) == 553_838_086
    assert all(value.is_meta for value in shapes.values())
    found = settle(shapes, parse_flags(FLAGS_256), classifier=False, source="it")
    assert found.network == config
    assert (found.schedule.name, found.schedule.steps) == ("linear", 1000)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_rows_do_not_touch_one_another(changes):
    """One time, one a row and pointed-to times agree with each row alone, classes too."""
    network, x = unet(**changes), picture(changes)
    times, rows = torch.tensor([0.5, 300.0]), torch.tensor([0, 1, 1, 0])
    y = classes(changes).get("y")
    with torch.no_grad():
        pointed = network(x, times, rows=rows, y=y)
        for_each = network(x, times[rows], y=y)
        alone = [
            network(x[i : i + 1], times[rows[i] : rows[i] + 1], y=None if y is None else y[i : i + 1])
            for i in range(4)
        ]
    assert pointed.shape == (4, changes.get("out_channels", 1), 16, 24)
    assert torch.allclose(pointed, for_each, atol=1e-4)
    assert torch.allclose(pointed, torch.cat(alone), atol=1e-4)
    assert not torch.allclose(pointed, network(x, times[1 - rows], y=y), atol=1e-2)


@pytest.mark.parametrize("pool", ["adaptive", "attention"])
def test_rows_do_not_touch_one_another_in_a_classifier(pool):
    """Pointed-to times agree with each row alone."""
    network = classifier(pool=pool)
    x, times, rows = torch.randn(3, 1, 16, 16), torch.tensor([0.5, 300.0]), torch.tensor([1, 0, 1])
    together = network(x, times, rows=rows)
    alone = torch.cat([network(x[i : i + 1], times[rows[i] : rows[i] + 1]) for i in range(3)])
    assert together.shape == (3, 3)
    assert torch.allclose(together, alone, atol=1e-4)


# Layers compute what torch's kernels compute, and keep in float32 what half precision would lose


HALF = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""Types, and their largest relative rounding error."""


@pytest.mark.parametrize("dtype", HALF)
def test_features_of_times_are_made_before_they_are_rounded(dtype):
    """In bfloat16 the times 999 and 1000 are one number."""
    embed = TimeEmbed(32).to(dtype)
    seen = []
    embed[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    embed(torch.tensor([999.0, 1000.0]))
    exact = timestep_embedding(torch.tensor([999.0, 1000.0], dtype=torch.float64), 32)
    assert seen[0].dtype == dtype
    assert float((seen[0].double() - exact).abs().max().detach()) < 2 * HALF[dtype]


@pytest.mark.slow
def test_a_leg_of_points_in_bfloat16_is_as_exact_as_documented():
    """docs/operating.md: 2e-3 in the latent, 6e-4 in the sample, of deviation 1; the integrated state is float32."""
    bundle = pretrained("moons")
    laid = plan(SolverSettings(), bundle.schedule)
    exact, rounded = bundle.denoiser(), bundle.denoiser(torch.bfloat16)
    x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
    for steps, bound in ((laid.decoder, 2e-3), (laid.encoder, 5e-3)):
        ends = [integrate(x, steps, each) for each in (exact, rounded)]
        assert ends[1].dtype == torch.float32
        error = float((ends[0] - ends[1]).square().mean(1).sqrt().median())
        assert 1e-6 < error < bound
