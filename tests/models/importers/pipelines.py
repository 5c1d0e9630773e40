"""Small pipelines of the diffusers library with random weights, as its `save_pretrained` writes them."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from ddib_fed.models.weights import Imported
from ddib_fed.networks.config import DiffusersDiTConfig, network_with

TINY = {
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
}
# As google/ddpm-cifar10-32, but narrower: padding on two sides, one head, another epsilon, sines first.
GOOGLE = {
    **TINY,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
}
UNETS = {
    "plain": TINY,
    "google": GOOGLE,
    "classes": {**TINY, "num_class_embeds": 5},
    "odd parts": {
        **TINY,
        "block_out_channels": (24, 40),
        "norm_num_groups": 4,
        "time_embedding_dim": 50,
        "center_input_sample": True,
        "mid_block_scale_factor": 2.0,
    },
}


# A transformer of pixels.
DIT = {
    "sample_size": 16,
    "in_channels": 3,
    "patch_size": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_embeds_ada_norm": 5,
}
TRANSFORMERS = {
    "grey with a learned variance": {**DIT, "in_channels": 1, "out_channels": 2},
    "other layers": {
        **DIT,
        "activation_fn": "geglu",
        "attention_bias": False,
        "norm_elementwise_affine": True,
        "norm_eps": 1e-3,
    },
}


def unet(settings, seed=0):
    return filled(UNet2DModel, settings, seed)


def transformer(settings, seed=0):
    return filled(DiTTransformer2DModel, settings, seed)


def filled(kind, settings, seed):
    """A network with random weights, none at a value that hides a mistake (zero, or one in normalisations)."""
    torch.manual_seed(seed)
    made = kind(**settings).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


def largest_difference(folder: Path, imported: Imported, *, pictures: int = 2, seed: int = 0) -> float:
    """Difference of the network's output from that of the diffusers library on noise, relative to its largest value."""
    inside = next((folder / name for name in ("unet", "transformer") if (folder / name).is_dir()), folder)
    manifest = imported.manifest
    is_transformer = isinstance(manifest.network, DiffusersDiTConfig)
    kind = DiTTransformer2DModel if is_transformer else UNet2DModel
    theirs = kind.from_pretrained(
        str(inside),
        local_files_only=True,
        use_safetensors=(inside / "diffusion_pytorch_model.safetensors").is_file(),
    )
    theirs = theirs.float().eval()
    ours = network_with(manifest.network, imported.state).eval()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(pictures, *manifest.sample_shape, generator=generator)
    steps = manifest.schedule.steps or 1000
    times = torch.randint(steps, (pictures,), generator=generator)
    classes = manifest.num_classes
    y = torch.randint(classes, (pictures,), generator=generator) if classes else None
    with torch.no_grad():
        wanted: Tensor = theirs(x, times, class_labels=y).sample
        found: Tensor = ours(x, times.float(), **({} if y is None else {"y": y}))
    return float((wanted - found).abs().max() / wanted.abs().max())
