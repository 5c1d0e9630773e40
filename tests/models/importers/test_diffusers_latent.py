"""Latent pipelines and autoencoders of diffusers become models that compute what the library computes."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ddib_fed.diffusion.schedule import Level, LevelGrid, schedule_from_config
from ddib_fed.diffusion.solvers import ddim, integrate
from ddib_fed.errors import SettingsInvalid
from ddib_fed.importers import diffusers as importer
from ddib_fed.importers.diffusers import read_schedule
from ddib_fed.importing import ImportOptions
from ddib_fed.models.bundle import Bundle, load_bundle, make_bundle
from tests.models.importers.test_diffusers import TINY
from tests.models.importers.test_monai import (
    LEG_WITHIN,
    STEPS,
    STRIDE,
    WITHIN,
    close,
    decoded,
    encoded,
    noise,
)

pytestmark = pytest.mark.slow

UNET = {**TINY, "sample_size": 8, "in_channels": 4, "out_channels": 4, "norm_num_groups": 8}
VAE = {
    "block_out_channels": (8, 8), "down_block_types": ("DownEncoderBlock2D",) * 2, "latent_channels": 4,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 4, "sample_size": 16,
}  # fmt: skip
DIT = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2,
    "sample_size": 8, "num_embeds_ada_norm": 3, "norm_num_groups": 4,
}  # fmt: skip
ENCODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "kl": ("AutoencoderKL", {**VAE, "scaling_factor": 0.5, "mid_block_add_attention": True}),
    "shifted": ("AutoencoderKL", {**VAE, "scaling_factor": 0.5, "shift_factor": 0.25}),
    "moved": ("AutoencoderKL", {**VAE, "latents_mean": [0.1] * 4, "latents_std": [0.5, 1.0, 1.5, 2.0],
        "scaling_factor": 0.7}),
    "vq": ("VQModel", {**VAE, "num_vq_embeddings": 16, "vq_embed_dim": 4, "scaling_factor": 1.3}),
    "tiny": ("AutoencoderTiny", {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1), "latent_channels": 4, "scaling_factor": 0.9}),
}  # fmt: skip


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


def made(kind: type[nn.Module], settings: dict[str, Any], seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = kind(**settings).eval()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
    return network.requires_grad_(requires_grad=False)


def imported(folder: Path, out: Path, given: ImportOptions) -> Bundle:
    """What is read of a saved bundle."""
    found = importer.read(folder, given)
    found.save(out / "model")
    return load_bundle(out / "model")


def library_latents(name: str, encoder: Any, x: Tensor) -> Tensor:
    """As the library's pipelines and trainers make them."""
    z = encoder.encode(x)
    z = z.latents if hasattr(z, "latents") else z.latent_dist.mean
    settings = encoder.config
    if name == "moved":
        mean, deviation = (
            torch.tensor(settings[key]).reshape(1, -1, 1, 1) for key in ("latents_mean", "latents_std")
        )
        return (z - mean) * settings["scaling_factor"] / deviation
    return (z - (settings.get("shift_factor") or 0.0)) * settings["scaling_factor"]


@pytest.mark.parametrize("name", ENCODERS)
def test_a_latent_diffusion_pipeline_computes_what_the_library_computes(name, diffusers, tmp_path):
    """Network, autoencoder, the units of the latents, and a leg of 20 steps each way."""
    kind, settings = ENCODERS[name]
    encoder, theirs = made(getattr(diffusers, kind), settings, 0), made(diffusers.UNet2DModel, UNET, 1)
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    diffusers.LDMPipeline(encoder, theirs, scheduler).save_pretrained(tmp_path / "ldm")
    bundle = imported(tmp_path / "ldm", tmp_path, ImportOptions("faces"))
    assert bundle.manifest.sample_shape == (3, 16, 16)
    x, z, times = noise(2, 3, 16, 16).clamp(-1, 1), noise(2, 4, 8, 8), torch.tensor([3.0, 870.0])
    with torch.no_grad():
        close(bundle.network()(z, times), theirs(z, times).sample, WITHIN)
        close(encoded(bundle, x), library_latents(name, encoder, x), WITHIN)
        units = bundle.manifest.latents.normalisation
        close(decoded(bundle, z), encoder.decode(torch.from_numpy(units.undo(z.numpy()))).sample, WITHIN)
        scheduler.set_timesteps(STEPS)
        assert scheduler.timesteps[0] == 1000 - STRIDE
        wanted = z
        for t in scheduler.timesteps:
            wanted = scheduler.step(theirs(wanted, t).sample, t, wanted).prev_sample
        levels = bundle.schedule.at_steps(list(range(0, 1000, STRIDE)))
        grid = LevelGrid((Level(1.0, 0.0, 0.0), *levels))
        close(integrate(z, ddim(grid.reversed()), bundle.denoiser()), wanted, LEG_WITHIN)
        inverse = diffusers.DDIMInverseScheduler(clip_sample=False, set_alpha_to_one=False)
        inverse.set_timesteps(STEPS)
        back = wanted
        for t in inverse.timesteps[1:]:  # the first would step from before the data
            back = inverse.step(theirs(back, t - STRIDE).sample, t, back).prev_sample
        there = LevelGrid(levels)
        close(integrate(wanted, ddim(there), bundle.denoiser()), back, LEG_WITHIN)


def test_latents_of_edm_are_in_its_units(diffusers, tmp_path):
    """Divide them by the deviation in its file, and take the levels of Euler's flow matching for Heun's."""
    encoder = made(diffusers.AutoencoderKL, ENCODERS["kl"][1], 0)
    theirs, scheduler = made(diffusers.UNet2DModel, UNET, 1), diffusers.EDMEulerScheduler(sigma_data=0.4)
    diffusers.LDMPipeline(encoder, theirs, scheduler).save_pretrained(tmp_path / "ldm")
    bundle, x = imported(tmp_path / "ldm", tmp_path, ImportOptions("faces")), noise(2, 3, 16, 16).clamp(-1, 1)
    with torch.no_grad():
        close(encoded(bundle, x), library_latents("kl", encoder, x) / 0.4, WITHIN)
    heun = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    schedule, prediction, _ = read_schedule(
        {**heun.config, "_class_name": "FlowMatchHeunDiscreteScheduler"}, "it"
    )
    assert prediction == "flow"
    for sigma, t in zip(heun.sigmas[::100].tolist(), heun.timesteps[::100].tolist(), strict=True):
        if sigma < 1:
            level = schedule_from_config(schedule).level(math.log((1 - sigma) / sigma))
            assert level.t == pytest.approx(t, rel=1e-5)


@pytest.mark.parametrize("flow", [False, True])
def test_a_class_conditional_transformer_computes_what_the_library_computes(flow, diffusers, tmp_path):
    """Its learned variance is split off; names of classes are those of the index; the null class guides."""
    settings = {**DIT, "out_channels": 4} if flow else DIT
    encoder = made(diffusers.AutoencoderKL, {**VAE, "scaling_factor": 0.5}, 0)
    theirs = made(diffusers.DiTTransformer2DModel, settings, 1)
    scheduler = (
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
        if flow
        else diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=True)
    )
    names = {0: "tench", 1: "goldfish, Carassius", 2: "shark"}
    diffusers.DiTPipeline(theirs, encoder, scheduler, id2label=names).save_pretrained(tmp_path / "dit")
    index = json.loads((tmp_path / "dit" / "model_index.json").read_text())
    (tmp_path / "dit" / "model_index.json").write_text(json.dumps({**index, "id2label": names}))
    bundle = imported(tmp_path / "dit", tmp_path, ImportOptions("imagenet"))
    assert bundle.manifest.classes == tuple(names.values())
    assert bundle.manifest.null_class == 3
    z, y = noise(2, 4, 8, 8), torch.tensor([1, 3])
    times = torch.tensor([3.0, 870.0])
    with torch.no_grad():
        answer = theirs(z, times, y).sample[:, :4]
        close(bundle.network()(z, times, y=y)[:, :4], answer, WITHIN)
        scheduler.set_timesteps(STEPS)
        wanted = z
        for t in scheduler.timesteps:
            told = torch.full((2,), float(t))
            wanted = scheduler.step(theirs(wanted, told, y).sample[:, :4], t, wanted).prev_sample
        if flow:
            grid = flow_levels_at([*scheduler.sigmas.tolist()][::-1])
        else:
            grid = LevelGrid((Level(1.0, 0.0, 0.0), *bundle.schedule.at_steps(list(range(0, 1000, STRIDE)))))
        close(integrate(z, ddim(grid.reversed()), bundle.denoiser(), cond={"y": y}), wanted, LEG_WITHIN)


def flow_levels_at(sigmas: list[float]) -> LevelGrid:
    """Levels of flow matching at these times in [0, 1], told in thousandths."""
    lengths = [float(np.hypot(1 - t, t)) for t in sigmas]
    found = zip(sigmas, lengths, strict=True)
    return LevelGrid(tuple(Level((1 - t) / length, t / length, 1000 * t) for t, length in found))


@pytest.mark.parametrize("name", ["kl", "vq", "tiny"])
def test_an_autoencoder_alone_is_a_bundle_of_its_own(name, diffusers, tmp_path):
    kind, settings = ENCODERS[name]
    encoder = made(getattr(diffusers, kind), settings, 0)
    encoder.save_pretrained(tmp_path / "vae")
    found = importer.read(tmp_path / "vae", ImportOptions("faces", size=(32, 32)))
    bundle, x = make_bundle(found.manifest, found.state), noise(1, 3, 32, 32)
    assert (bundle.manifest.role, bundle.manifest.sample_shape) == ("autoencoder", (3, 32, 32))
    with torch.no_grad():
        z = encoder.encode(x)
        z = z.latents if hasattr(z, "latents") else z.latent_dist.mean
        close(bundle.network().encode(x), z, WITHIN)
        close(bundle.network().decode(z), encoder.decode(z).sample, WITHIN)


def test_what_moves_the_latents_is_said_and_what_contradicts_is_refused(diffusers, tmp_path):
    """The pipelines themselves leave a shift out."""
    encoder = made(diffusers.AutoencoderKL, ENCODERS["shifted"][1], 0)
    theirs, scheduler = made(diffusers.UNet2DModel, UNET, 1), diffusers.FlowMatchEulerDiscreteScheduler()
    diffusers.LDMPipeline(encoder, theirs, scheduler).save_pretrained(tmp_path)
    found = importer.read(tmp_path, ImportOptions("faces"))
    assert "shift_factor, which LDMPipeline itself leaves out" in found.warnings[0]
    assert (found.manifest.schedule.name, found.manifest.parameterisation) == ("flow", "flow")

    def change(name: str, **changes: Any) -> None:
        place = next(tmp_path.glob(name))
        place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))

    change("scheduler/*.json", invert_sigmas=True)
    with pytest.raises(SettingsInvalid, match="invert_sigmas"):
        importer.read(tmp_path, ImportOptions("faces"))
    change("scheduler/*.json", invert_sigmas=False)
    change("vqvae/config.json", latents_mean=[0.1] * 4)
    with pytest.raises(SettingsInvalid, match="shift_factor"):
        importer.read(tmp_path, ImportOptions("faces"))
    change("vqvae/config.json", latents_mean=None, scaling_factor=None)
    with pytest.raises(SettingsInvalid, match="scale_factor") as caught:
        importer.read(tmp_path, ImportOptions("faces"))
    assert "--scale-factor" in caught.value.hint
