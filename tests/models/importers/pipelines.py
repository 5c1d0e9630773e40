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
# Those that our own UNet computes.
ADM = {
    "plain": TINY,
    "sines first": {**TINY, "flip_sin_to_cos": False},
    "classes": {**TINY, "num_class_embeds": 5},
    "grey with a learned variance": {**TINY, "in_channels": 1, "out_channels": 2},
    "scale and shift": {**TINY, "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32},
    "residual blocks resample": {
        **TINY,
        "block_out_channels": (32, 64, 96),
        "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "attention everywhere": {
        **TINY,
        "layers_per_block": 2,
        "down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D"),
    },
}
# Those that only the network of diffusers' kind computes.
OWN = {
    "google": GOOGLE,
    "attention on one way": {**TINY, "up_block_types": ("UpBlock2D", "UpBlock2D"), "attention_head_dim": 16},
    "no norm before attention": {**TINY, "resnet_time_scale_shift": "scale_shift", "num_class_embeds": 5},
    "mixed resampling": {
        **TINY,
        "block_out_channels": (32, 64, 64),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D", "UpBlock2D"),
        "downsample_type": "resnet",
    },
    "odd parts": {
        **TINY,
        "block_out_channels": (24, 40),
        "norm_num_groups": 4,
        "time_embedding_dim": 50,
        "center_input_sample": True,
        "mid_block_scale_factor": 2.0,
    },
    "no middle": {**TINY, "mid_block_type": None},
    "a middle without attention": {**TINY, "add_attention": False},
}


def unet(settings, seed=0):
    torch.manual_seed(seed)
    made = UNet2DModel(**settings).eval()
    for parameter in made.parameters():
        # Normalisations begin as identities, which would hide a wrong order of scale and shift.
        torch.nn.init.normal_(parameter, std=0.1)
    return made
