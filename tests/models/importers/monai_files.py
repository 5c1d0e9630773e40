"""Tiny MONAI models with random weights, written as MONAI's tools write them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

KL = {
    "_target_": "monai.networks.nets.AutoencoderKL", "spatial_dims": "@spatial_dims", "in_channels": 1,
    "out_channels": 1, "channels": [8, 16], "num_res_blocks": 1, "attention_levels": [False, True],
    "latent_channels": "@latent_channels", "norm_num_groups": 4, "with_encoder_nonlocal_attn": False,
    "with_decoder_nonlocal_attn": False,
}  # fmt: skip
VQ = {
    "_target_": "monai.networks.nets.VQVAE", "spatial_dims": "@spatial_dims", "in_channels": 1, "out_channels": 1,
    "channels": [8, 8], "num_res_channels": [8, 8], "num_res_layers": 1, "embedding_dim": "@latent_channels",
    "downsample_parameters": [[2, 4, 1, 1]] * 2, "upsample_parameters": [[2, 4, 1, 1, 0]] * 2, "num_embeddings": 16,
}  # fmt: skip
UNET = {
    "_target_": "monai.networks.nets.DiffusionModelUNet", "spatial_dims": "@spatial_dims", "in_channels": "@channels",
    "out_channels": "@channels", "channels": [8, 16], "num_res_blocks": 1, "attention_levels": [False, True],
    "num_head_channels": [0, 8], "norm_num_groups": 4,
}  # fmt: skip
DDIM = {
    "_target_": "monai.networks.schedulers.DDIMScheduler", "num_train_timesteps": 1000, "clip_sample": False,
    "schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195,
}  # fmt: skip
RFLOW = {"_target_": "monai.networks.schedulers.RFlowScheduler", "num_train_timesteps": 1000}
MAISI_UNET = {
    **{key: value for key, value in UNET.items() if key != "channels"},
    "_target_": "monai.apps.generation.maisi.networks.diffusion_model_unet_maisi.DiffusionModelUNetMaisi",
    "num_channels": [8, 16], "include_spacing_input": True, "num_class_embeds": 12, "use_flash_attention": True,
    "include_top_region_index_input": "@include_body_region",
    "include_bottom_region_index_input": "@include_body_region",
}  # fmt: skip
MAISI_KL = {
    **{key: value for key, value in KL.items() if key != "channels"},
    "_target_": "monai.apps.generation.maisi.networks.autoencoderkl_maisi.AutoencoderKlMaisi",
    "num_channels": [8, 16], "num_res_blocks": [1, 1], "attention_levels": [False, False], "norm_float16": True,
    "num_splits": 1, "dim_split": 1,
}  # fmt: skip


def made(
    kind: type[nn.Module], config: Mapping[str, Any], names: Mapping[str, Any], seed: int = 0, **more: Any
) -> Any:
    """A network of the library, its weights random and zero nowhere; `names` are what its references stand for."""
    arguments = {
        key: names[value[1:]] if isinstance(value, str) and value[:1] == "@" else value
        for key, value in config.items()
        if key not in {"_target_", "use_flash_attention", "norm_float16"}
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = kind(**{**arguments, **more}).eval()
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.15)
    return network.requires_grad_(requires_grad=False)


def write(
    folder: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Any],
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """A bundle's folder; `weights` are the contents of its checkpoints."""
    (folder / "configs").mkdir(parents=True, exist_ok=True)
    (folder / "models").mkdir(exist_ok=True)
    (folder / "configs" / "inference.json").write_text(json.dumps(config))
    (folder / "configs" / "metadata.json").write_text(json.dumps(metadata or {}))
    for name, content in weights.items():
        torch.save(content, folder / "models" / name)
    return folder


def old_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as the package before MONAI 1.4 calls them, with the layer that it makes and never applies."""
    found = {}
    for key, value in state.items():
        old = key.replace(".attn.to_", ".to_").replace("postconv", "conv")
        found[old] = value
        if old.endswith(".to_q.weight"):
            found[old.replace("to_q", "proj_attn")] = torch.full_like(value, 7.0)
            found[old.replace("to_q.weight", "proj_attn.bias")] = torch.full_like(value[0], 7.0)
    return found


def blobs(count: int, seed: int, channels: int = 1) -> np.ndarray:
    """Pictures (N, C, 16, 16) in [-1, 1]."""
    rng, axis = np.random.default_rng(seed), np.linspace(-1, 1, 16)
    centres, widths = rng.uniform(-0.7, 0.7, (count, 4, 2, 1)), rng.uniform(0.1, 0.4, (count, 4, 1, 1))
    down, across = np.moveaxis(np.exp(-((axis - centres) ** 2) / (2 * widths**2)), 2, 0)
    drawn = np.einsum("ncd,nce->nde", down, across).clip(0, 1)
    return np.repeat((2 * drawn[:, None] - 1).astype(np.float32), channels, axis=1)


def train_on_blobs(
    network: nn.Module, reconstruct: Callable[[Tensor], Tensor], data: Tensor, steps: int = 160
) -> None:
    """Some seconds, after which blobs are reconstructed at more than 20 dB."""
    network.requires_grad_().train()
    optimiser = torch.optim.Adam(network.parameters(), 5e-3)
    for step in range(steps):
        x = data[16 * step % len(data) :][:16]
        loss = (reconstruct(x) - x).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    network.eval().requires_grad_(requires_grad=False)


def trained_autoencoder() -> Any:
    """An autoencoder of blobs in [0, 1]."""
    from monai.networks.nets import AutoencoderKL

    network = made(AutoencoderKL, KL, {"spatial_dims": 2, "latent_channels": 3})
    data = torch.from_numpy((blobs(64, 0) + 1) / 2)
    train_on_blobs(network, lambda x: network.decode(network.encode(x)[0]), data)
    return network
