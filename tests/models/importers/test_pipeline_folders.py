"""What lies in a pipeline's folder beside the network is read, refused or named; every layout of weights is read."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ddib_fed.errors import BundleInvalid, FileMissing, SettingsInvalid
from ddib_fed.models.import_diffusers import import_diffusers

pytestmark = pytest.mark.slow

NAME = "diffusion_pytorch_model"


@pytest.fixture
def pipeline(tmp_path, diffusers, pipelines):
    """Writes a pipeline of pixels as the library does; further arguments are `save_pretrained`'s."""

    def write(**how):
        made = pipelines.unet(how.pop("settings", pipelines.TINY))
        diffusers.DDPMPipeline(made, how.pop("scheduler", diffusers.DDPMScheduler())).save_pretrained(
            tmp_path / "p", **how
        )
        return tmp_path / "p"

    return write


def read(folder, **how):
    return import_diffusers(folder, domain="cats", **how)


def index(folder, **changes):
    path = folder / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_latent_diffusion_pipeline_is_not_imported_as_a_pixel_model(tmp_path, diffusers, pipelines):
    """UNet2DModel and VQModel: what CompVis/ldm-celebahq-256 is. The autoencoder is named."""
    vqvae = diffusers.VQModel(block_out_channels=(32,), norm_num_groups=32)
    diffusers.LDMPipeline(vqvae, pipelines.unet(pipelines.TINY), diffusers.DDIMScheduler()).save_pretrained(
        tmp_path
    )
    with pytest.raises(SettingsInvalid, match=r"LDMPipeline.*latent.*vqvae \(VQModel\)") as caught:
        read(tmp_path)
    assert "UNet2DModel" in caught.value.hint
    (tmp_path / "model_index.json").unlink()
    with pytest.raises(SettingsInvalid, match=r"vqvae \(VQModel\)"):
        read(tmp_path)


def test_a_transformer_of_latents_is_not_imported_as_a_pixel_model(tmp_path, diffusers, pipelines):
    """DiT as the library writes it; its folder has no unet/ at all."""
    vae = diffusers.AutoencoderKL(block_out_channels=(32,), norm_num_groups=32)
    made = pipelines.transformer(pipelines.DIT)
    diffusers.DiTPipeline(made, vae, diffusers.DDIMScheduler(), id2label={0: "cat"}).save_pretrained(tmp_path)
    with pytest.raises(SettingsInvalid, match=r"DiTPipeline.*latent.*vae \(AutoencoderKL\)"):
        read(tmp_path)
    with pytest.raises(SettingsInvalid, match="AutoencoderKL"):
        read(tmp_path / "transformer")


@pytest.mark.parametrize(
    ("kind", "parts", "said"),
    [
        ("StableDiffusionPipeline", {"vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}, "text_encoder"),
        ("StableDiffusionXLPipeline", {"text_encoder_2": "CLIPTextModelWithProjection"}, "text_encoder_2"),
        ("FluxPipeline", {"transformer": "FluxTransformer2DModel", "unet": None}, "FluxTransformer2DModel"),
        ("PixArtAlphaPipeline", {"transformer": "PixArtTransformer2DModel", "unet": None}, "PixArtTransformer2DModel"),
        ("StableDiffusionPipeline", {"unet": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ("IFPipeline", {"safety_checker": "IFSafetyChecker"}, "safety_checker"),
    ],
)  # fmt: skip
def test_pipelines_that_are_no_pixel_models_say_what_they_are(pipeline, kind, parts, said):
    """As their model_index.json reads on the hub."""
    folder = pipeline()
    entries = {name: ["diffusers", cls] if cls else [None, None] for name, cls in parts.items()}
    index(folder, _class_name=kind, **entries)
    with pytest.raises(SettingsInvalid, match=kind) as caught:
        read(folder)
    assert said in caught.value.detail


@pytest.mark.parametrize(
    "place", ["pytorch_lora_weights.safetensors", "unet/pytorch_lora_weights.bin", "adapter_model.safetensors",
              "My-LoRA.safetensors", "unet/adapter_config.json"],
)  # fmt: skip
def test_a_lora_beside_a_pipeline_is_refused_by_its_name(pipeline, place):
    """It was ignored, and the pictures were those of the model without it."""
    folder = pipeline()
    (folder / place).write_bytes(b"")
    with pytest.raises(SettingsInvalid, match=place.split("/")[-1]):
        read(folder)


@pytest.mark.parametrize(
    "place",
    ["watercolour.safetensors", "unet/style.safetensors", "lora/weights.safetensors", "extra/x.safetensors"],
)
@pytest.mark.parametrize(
    "tensor",
    [
        "unet.down_blocks.0.lora.up.weight",
        "lora_unet_down.lora_down.weight",
        "base.q.lora_A.weight",
        "x.hada_w1_a",
    ],
)
def test_a_lora_of_another_name_is_known_by_its_tensors(pipeline, place, tensor):
    """Most are called by their style; kohya's, peft's and LyCORIS's. Before, only names of files were looked at."""
    folder = pipeline()
    (folder / place).parent.mkdir(exist_ok=True)
    save_file({tensor: torch.zeros(2, 2)}, folder / place)
    with pytest.raises(SettingsInvalid, match=place.split("/")[-1]):
        read(folder)


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("shard", ["10GB", "100KB"], ids=["whole", "sharded"])
def test_every_layout_of_weights_is_read(pipeline, pipelines, safe, variant, shard):
    """As `save_pretrained` writes them; a variant that is alone is read without being asked for, and named."""
    folder = pipeline(safe_serialization=safe, variant=variant, max_shard_size=shard)
    found = read(folder)
    assert pipelines.largest_difference(folder, found) <= 1e-4
    assert any("fp16" in remark for remark in found.remarks) == (variant is not None)


def test_full_weights_come_before_a_variant_that_can_be_asked_for(pipeline, pipelines):
    """Both lie on the hub side by side; the other one is named."""
    folder = pipeline()
    halves = {
        key: value.half() * 2 for key, value in load_file(folder / "unet" / f"{NAME}.safetensors").items()
    }
    save_file(halves, folder / "unet" / f"{NAME}.fp16.safetensors")
    full, half = read(folder), read(folder, variant="fp16")
    assert any("fp16.safetensors" in remark and "--variant fp16" in remark for remark in full.remarks)
    assert any("float16" in remark for remark in half.remarks)
    assert torch.equal(full.state["out.2.bias"].half() * 2, half.state["out.2.bias"].half())
    assert pipelines.largest_difference(folder, half, variant="fp16") <= 1e-4
    with pytest.raises(FileMissing, match=r"bf16.*fp16") as caught:
        read(folder, variant="bf16")
    assert "--variant fp16" in caught.value.hint
    with pytest.raises(SettingsInvalid):
        read(folder, variant="../x")


def sharded(pipeline):
    inside = pipeline(max_shard_size="100KB") / "unet"
    path = inside / f"{NAME}.safetensors.index.json"
    return inside, path, json.loads(path.read_text())


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".hidden.safetensors",
                                  "x.bin", 7])  # fmt: skip
def test_an_index_names_plain_files_of_its_own_folder(pipeline, name):
    """Nothing else on the disk is opened."""
    inside, path, said = sharded(pipeline)
    said["weight_map"]["conv_in.bias"] = name
    path.write_text(json.dumps(said))
    with pytest.raises(BundleInvalid, match=r"conv_in\.bias"):
        read(inside.parent)


def test_shards_that_are_missing_doubled_or_incomplete_are_named(pipeline):
    """A tensor that is in two, in none, in a shard that the index does not know, and an index that is none."""
    inside, path, said = sharded(pipeline)
    home = said["weight_map"]["conv_in.bias"]
    other = next(name for name in said["weight_map"].values() if name != home)
    tensors = {name: load_file(inside / name) for name in (home, other)}
    save_file({**tensors[other], "conv_in.bias": tensors[home]["conv_in.bias"]}, inside / other)
    with pytest.raises(BundleInvalid, match=rf"{other}.*conv_in\.bias"):
        read(inside.parent)
    save_file(tensors[other], inside / other)
    save_file({k: v for k, v in tensors[home].items() if k != "conv_in.bias"}, inside / home)
    with pytest.raises(BundleInvalid, match=rf"{home}.*conv_in\.bias"):
        read(inside.parent)
    save_file(tensors[home], inside / home)
    shutil.copy(inside / home, inside / f"{NAME}-00099-of-00099.safetensors")
    with pytest.raises(BundleInvalid, match="00099-of-00099"):
        read(inside.parent)
    (inside / f"{NAME}-00099-of-00099.safetensors").unlink()
    (inside / home).unlink()
    with pytest.raises(FileMissing, match=home):
        read(inside.parent)
    path.write_text(json.dumps({"weight_map": []}))
    with pytest.raises(BundleInvalid, match="weight_map"):
        read(inside.parent)


@pytest.mark.parametrize(
    ("key", "value"),
    [("use_flow_sigmas", True), ("timestep_type", "continuous"), ("num_train_timesteps", 1000.5),
     ("rescale_betas_zero_snr", "yes")],
)  # fmt: skip
def test_settings_that_change_the_process_are_refused(pipeline, key, value):
    """They were passed over."""
    folder = pipeline()
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(SettingsInvalid, match=key):
        read(folder)


def test_networks_that_are_no_pictures_are_refused_by_their_channels(pipeline, pipelines):
    """Four channels are latents', as in Stable Diffusion."""
    settings = {**pipelines.TINY, "in_channels": 4, "out_channels": 4}
    with pytest.raises(SettingsInvalid, match=r"in_channels.*latent"):
        read(pipeline(settings=settings))
