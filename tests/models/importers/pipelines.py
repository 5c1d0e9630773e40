"""Small pipelines of the diffusers library with random weights, as its `save_pretrained` writes them."""

from __future__ import annotations

import torch
from diffusers.models.unets.unet_2d import UNet2DModel

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
    "google": GOOGLE,
    "odd parts": {
        **TINY,
        "block_out_channels": (24, 40),
        "norm_num_groups": 4,
        "time_embedding_dim": 50,
        "center_input_sample": True,
        "num_class_embeds": 5,
        "mid_block_scale_factor": 2.0,
    },
}


def unet(settings, seed=0):
    """A network with random weights, none at a value that hides a mistake (zero, or one in normalisations)."""
    torch.manual_seed(seed)
    made = UNet2DModel(**settings).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made
