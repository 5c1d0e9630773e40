"""What lies in a pipeline's folder beside the network is read, refused or named; every layout of weights is read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from ddib_fed.errors import FileMissing, SettingsInvalid
from ddib_fed.models.import_diffusers import import_diffusers

pytestmark = pytest.mark.slow


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


@pytest.mark.parametrize(
    ("kind", "parts", "said"),
    [
        ("StableDiffusionPipeline", {"vae": "AutoencoderKL", "text_encoder": "CLIPTextModel"}, "text_encoder"),
        ("FluxPipeline", {"transformer": "FluxTransformer2DModel", "unet": None}, "FluxTransformer2DModel"),
        ("DiTPipeline", {"transformer": "DiTTransformer2DModel", "unet": None}, "DiTTransformer2DModel"),
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
    "place", ["pytorch_lora_weights.safetensors", "unet/adapter_model.bin", "unet/adapter_config.json"]
)
def test_a_lora_beside_a_pipeline_is_refused_by_its_name(pipeline, place):
    """It was ignored, and the pictures were those of the model without it."""
    folder = pipeline()
    (folder / place).write_bytes(b"")
    with pytest.raises(SettingsInvalid, match=place.split("/")[-1]):
        read(folder)


@pytest.mark.parametrize(
    ("place", "tensor"),
    [
        ("watercolour.safetensors", "unet.down_blocks.0.lora.up.weight"),
        ("extra/x.safetensors", "base.q.lora_A.weight"),
        ("x.safetensors", "x.hada_w1_a"),
    ],
)
def test_a_lora_of_another_name_is_known_by_its_tensors(pipeline, place, tensor):
    """Most are called by their style; peft's and LyCORIS's."""
    folder = pipeline()
    (folder / place).parent.mkdir(exist_ok=True)
    save_file({tensor: torch.zeros(2, 2)}, folder / place)
    with pytest.raises(SettingsInvalid, match=place.split("/")[-1]):
        read(folder)


def test_shards_and_variants_are_refused_with_what_to_do(pipeline):
    with pytest.raises(FileMissing) as caught:
        read(pipeline(variant="fp16"))
    assert "save_pretrained" in caught.value.hint
