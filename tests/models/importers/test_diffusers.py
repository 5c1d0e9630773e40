"""Pipelines of diffusers become bundles that compute what the library computes; the rest is refused by name."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ddib_fed.diffusion.schedule import Level, LevelGrid, schedule_from_config
from ddib_fed.diffusion.solvers import ddim, integrate
from ddib_fed.errors import BundleInvalid, FileMissing, SettingsInvalid
from ddib_fed.importers import diffusers as importer
from ddib_fed.importers.diffusers import read_schedule
from ddib_fed.importing import ImportOptions
from ddib_fed.models.bundle import load_bundle, make_bundle, save_bundle

pytestmark = pytest.mark.slow

SCHEDULER = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000}
TINY = {
    "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
}  # fmt: skip
# As google/ddpm-cifar10-32, but narrower: padding on two sides, one head, another epsilon, sines first.
GOOGLE = {
    **TINY, "block_out_channels": (32, 64, 64), "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": None,
    "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1, "norm_eps": 1e-6,
}  # fmt: skip
UNETS = {
    "google": GOOGLE, "odd parts": {**TINY, "block_out_channels": (24, 40), "norm_num_groups": 4,
    "time_embedding_dim": 50, "center_input_sample": True, "num_class_embeds": 5, "mid_block_scale_factor": 2.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def diffusers():
    """The library, imported only where a test needs it: that takes 3 s of CPU."""
    return pytest.importorskip("diffusers")


def unet(settings, seed=0):
    """A network with random weights, none at a value that hides a mistake (zero, or one in normalisations)."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    torch.manual_seed(seed)
    made = UNet2DModel(**settings).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


@pytest.fixture
def folder(tmp_path, diffusers):
    """Writes a pipeline's folder as the library does, and gives the network that it wrote."""

    def write(settings, scheduler=SCHEDULER):
        made = unet(settings)
        made.save_pretrained(tmp_path / "unet")
        (tmp_path / "scheduler").mkdir()
        (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
        return tmp_path, made

    return write


def agrees(bundle, theirs):
    """Two pictures at two steps, in one call and told once."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, *bundle.manifest.sample_shape, generator=generator)
    times = torch.tensor([3, 870])
    y = torch.tensor([4, 1]) if bundle.manifest.num_classes else None
    told = {} if y is None else {"y": y}
    network = bundle.network()
    with torch.no_grad():
        wanted = theirs(x, times, class_labels=y).sample
        found = network(x, times.float(), **told)
        merged = network(x, times.float().flip(0), rows=torch.tensor([1, 0]), **told)
    scale = wanted.abs().max()
    assert (found - wanted).abs().max() <= 1e-4 * scale
    assert (merged - wanted).abs().max() <= 1e-4 * scale


@pytest.mark.parametrize("named", ["google", "odd parts"])
def test_networks_compute_what_the_library_computes(named, folder, tmp_path):
    """Saved, loaded and asked beside the library's; tensors keep their names."""
    place, theirs = folder(UNETS[named])
    found = importer.read(place, ImportOptions("cats"))
    save_bundle(tmp_path / "bundle", found.manifest, found.state)
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.state.keys() == theirs.state_dict().keys()
    agrees(bundle, theirs)


def test_a_folder_of_the_flat_form_with_old_names_is_read_too(folder, tmp_path):
    """As google/ddpm-* lie: no unet/, attention stored as query, key, value, proj_attn, pickled."""
    place, theirs = folder(GOOGLE)
    flat = tmp_path / "flat"
    flat.mkdir()
    config = json.loads((place / "unet" / "config.json").read_text())
    for key in ("down_block_types", "up_block_types"):
        config[key] = [f"UNetRes{kind}" for kind in config[key]]
    (flat / "config.json").write_text(json.dumps(config))
    (flat / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in theirs.state_dict().items():
        for new, before in old.items():
            key = key.replace(f".{new}.", f".{before}.")  # noqa: PLW2901
        state[key] = value[..., None, None] if "proj_attn.weight" in key else value
    torch.save(state, flat / "diffusion_pytorch_model.bin")
    found = importer.read(flat, ImportOptions("cats"))
    agrees(make_bundle(found.manifest, found.state), theirs)


BETAS = {
    "linear": {},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "sigmoid": {"beta_schedule": "sigmoid"},
    "zero terminal": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
}


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        *(("DDPMScheduler", changes) for changes in BETAS.values()),
        ("HeunDiscreteScheduler", {}),
        ("HeunDiscreteScheduler", BETAS["squaredcos_cap_v2"]),
        ("KDPM2DiscreteScheduler", {}),
        ("KDPM2AncestralDiscreteScheduler", BETAS["scaled_linear"]),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # of the library's own code
def test_levels_are_those_of_the_librarys_scheduler(kind, changes, diffusers):
    """alpha_bar of every step, also where a file leaves the betas out."""
    theirs = getattr(diffusers, kind)(**changes)
    config = read_schedule({"_class_name": kind, **changes}, "it").schedule
    schedule = schedule_from_config(config)
    alphas = torch.tensor([level.alpha for level in schedule.at_steps(list(range(config.steps)))])
    assert torch.allclose(alphas.double() ** 2, theirs.alphas_cumprod.double(), atol=3e-6)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "UNet2DConditionModel"),
        ("sample_size", "32"),
        ("class_embed_type", "timestep"),
        ("time_embedding_type", "learned"),
        ("time_embedding_type", "fourier"),
        ("encoder_hid_dim", 64),
        ("in_channels", 4),
    ],
)
def test_what_cannot_be_computed_exactly_is_refused_by_its_key(key, value, folder):
    place, _ = folder(TINY)
    config = json.loads((place / "unet" / "config.json").read_text())
    config |= {key: value, **({"out_channels": 4} if key == "in_channels" else {})}
    (place / "unet" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingsInvalid, match=str(value) if key == "_class_name" else key) as caught:
        importer.read(place, ImportOptions("cats"))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("_class_name", {"_class_name": "ScoreSdeVeScheduler"}),
        ("trained_betas", {"trained_betas": [0.1, 0.2]}),
        ("prediction_type", {"prediction_type": "flow"}),
        ("rescale_betas_zero_snr", {"rescale_betas_zero_snr": True, "beta_schedule": "squaredcos_cap_v2"}),
        ("beta_end", {"beta_end": "large"}),
    ],
)
def test_schedules_that_are_not_known_are_refused_by_their_key(key, changes):
    with pytest.raises(SettingsInvalid) as caught:
        read_schedule({**SCHEDULER, **changes}, "scheduler_config.json")
    assert caught.value.facts["field"] == key


def test_folders_that_are_not_whole_say_what_is_missing(folder):
    """Weights of another network, no scheduler, no weights, no config."""
    place, _ = folder(TINY)
    weights = place / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state.pop("conv_in.bias")
    save_file(state, weights)
    with pytest.raises(BundleInvalid, match=r"conv_in\.bias"):
        importer.read(place, ImportOptions("cats"))
    weights.write_bytes(b"broken")
    with pytest.raises(BundleInvalid, match="safetensors"):
        importer.read(place, ImportOptions("cats"))
    weights.unlink()
    with pytest.raises(FileMissing, match="diffusion_pytorch_model"):
        importer.read(place, ImportOptions("cats"))
    (place / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileMissing, match="scheduler_config"):
        importer.read(place, ImportOptions("cats"))
    (place / "unet" / "config.json").write_text("{")
    with pytest.raises(BundleInvalid, match="JSON"):
        importer.read(place, ImportOptions("cats"))


@pytest.fixture
def pipeline(tmp_path, diffusers):
    """Writes a pipeline of pixels as the library does; further arguments are `save_pretrained`'s."""

    def write(**how):
        made = unet(how.pop("settings", TINY))
        diffusers.DDPMPipeline(made, how.pop("scheduler", diffusers.DDPMScheduler())).save_pretrained(
            tmp_path / "p", **how
        )
        return tmp_path / "p"

    return write


def test_a_pipeline_with_more_than_a_denoiser_and_an_autoencoder_is_refused_by_its_parts(pipeline):
    """A network of latents without its pipeline too."""
    folder = pipeline()
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(
        json.dumps({**index, "text_encoder": ["transformers", "CLIPTextModel"]})
    )
    with pytest.raises(SettingsInvalid, match=r"text_encoder \(CLIPTextModel\) belongs to it"):
        importer.read(folder, ImportOptions("cats"))


def test_adapters_shards_and_variants_are_refused_by_their_name_with_what_to_do(pipeline):
    """An adapter must not be ignored: the pictures would be those of the model without it."""
    folder = pipeline()
    (folder / "unet" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(SettingsInvalid, match=r"adapter_model\.bin"):
        importer.read(folder, ImportOptions("cats"))
    (folder / "unet" / "adapter_model.bin").unlink()
    save_file({"down.lora_A.weight": torch.zeros(1)}, folder / "style.safetensors")
    with pytest.raises(SettingsInvalid, match=r"style\.safetensors"):
        importer.read(folder, ImportOptions("cats"))
    (folder / "style.safetensors").unlink()
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(FileMissing) as caught:
        importer.read(pipeline(variant="fp16"), ImportOptions("cats"))
    assert "save_pretrained" in caught.value.hint


@pytest.mark.parametrize("kind", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_computes_what_the_library_computes(kind, prediction, folder, diffusers):
    """Euler's steps from noise to data with EDM's preconditioning, in which data deviate by .4."""
    told = {"sigma_data": 0.4, "prediction_type": prediction, "sigma_max": 60.0}
    place, theirs = folder(UNETS["google"], {"_class_name": kind, **told})
    found = importer.read(place, ImportOptions("cats"))
    scheduler, bundle = diffusers.EDMEulerScheduler(**told), make_bundle(found.manifest, found.state)
    scheduler.set_timesteps(12)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    wanted = x * float(scheduler.sigmas[0] ** 2 + 0.4**2) ** 0.5
    with torch.no_grad():
        for t in scheduler.timesteps:
            asked = scheduler.scale_model_input(wanted, t)
            wanted = scheduler.step(theirs(asked, t).sample, t, wanted).prev_sample
    lams = [math.log(0.4 / sigma) for sigma in scheduler.sigmas[:-1].tolist()][::-1]
    assert (found.manifest.schedule.lambda_min, found.manifest.schedule.lambda_max) == pytest.approx(
        (lams[-1], lams[0])
    )
    grid = LevelGrid((Level(1.0, 0.0, 0.0), *map(bundle.schedule.level, lams)))
    ours = bundle.manifest.normalisation.undo(integrate(x, ddim(grid.reversed()), bundle.denoiser()).numpy())
    assert np.abs(ours - wanted.numpy()).max() <= 1e-4 * wanted.abs().max()
