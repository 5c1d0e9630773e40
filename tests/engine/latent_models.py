"""Small models of latents, with random weights: an autoencoder of MONAI, and a network on its latents."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddib_fed.diffusion.schedule import ScheduleConfig
from ddib_fed.models.bundle import Bundle, make_bundle, save_bundle
from ddib_fed.models.manifest import LatentSpace, Manifest, PictureFormat
from ddib_fed.models.units import Normalisation
from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import LibraryConfig, UNetConfig

SIZE, FACTOR, CHANNELS = 32, 4, 4


def random_state(config: Any, seed: int) -> dict[str, Tensor]:
    """Weights of a network that are zero nowhere."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        state = build_network(config).state_dict()
        return {
            name: value + 0.05 * torch.randn_like(value) if value.is_floating_point() else value
            for name, value in state.items()
        }


def autoencoder(seed: int = 0, dims: int = 2, size: int = SIZE, channels: int = 1) -> Bundle:
    network = LibraryConfig(
        target="monai.networks.nets.AutoencoderKL",
        arguments={
            "spatial_dims": dims, "in_channels": channels, "out_channels": channels, "num_res_blocks": 1,
            "channels": [8, 8, 16], "attention_levels": [False] * 3, "latent_channels": CHANNELS,
            "norm_num_groups": 4, "with_encoder_nonlocal_attn": False, "with_decoder_nonlocal_attn": False,
        },
    )  # fmt: skip
    manifest = Manifest(
        name="autoencoder", domain="north", role="autoencoder", network=network,
        sample_kind="picture" if dims == 2 else "volume", sample_shape=(channels, *(size,) * dims),
        normalisation=Normalisation(mean=-1.0, std=2.0), picture=PictureFormat(),
    )  # fmt: skip
    return make_bundle(manifest, random_state(network, seed))


def latent_model(
    seed: int = 1, encoder: Bundle | None = None, name: str = "north", size: int = SIZE, **fields: Any
) -> Bundle:
    encoder = encoder or autoencoder(size=size)
    made, side = encoder.manifest, size // FACTOR
    dims = len(made.sample_shape) - 1
    network: Any = UNetConfig(
        image_size=side, in_channels=CHANNELS, model_channels=32, out_channels=CHANNELS, num_res_blocks=1,
        channel_mult=(1.0, 1.0), use_scale_shift_norm=True, norm_groups=8,
    )  # fmt: skip
    if dims == 3:
        network = LibraryConfig(
            target="monai.networks.nets.DiffusionModelUNet",
            arguments={
                "spatial_dims": 3, "in_channels": CHANNELS, "out_channels": CHANNELS, "num_res_blocks": 1,
                "channels": [8, 16], "attention_levels": [False, False], "norm_num_groups": 4,
            },
        )  # fmt: skip
    # A network that is no function of anything much: latents of a trained model are white, and so is its own noise.
    state = {key: 0.1 * value for key, value in random_state(network, seed).items()}
    shape = CHANNELS, *(side,) * dims
    z = encoder.network().encode(
        torch.randn(8, *made.sample_shape, generator=torch.Generator().manual_seed(3))
    )
    moved = z.transpose(0, 1).flatten(1)
    units = Normalisation(mean=tuple(moved.mean(1).tolist()), std=tuple(moved.std(1).tolist()))
    manifest = Manifest(
        name=name, domain=name, sample_kind=made.sample_kind, sample_shape=made.sample_shape, network=network,
        schedule=ScheduleConfig("cosine"), normalisation=made.normalisation, picture=PictureFormat(),
        latents=LatentSpace(shape=shape, autoencoder_sha256=made.autoencoder_sha256, normalisation=units),
        **fields,
    )  # fmt: skip
    return make_bundle(manifest, state, autoencoder=encoder)


def saved(bundle: Bundle, folder: Path) -> Path:
    """The bundle of a model of latents in a folder."""
    encoder = bundle.autoencoder
    assert encoder is not None
    save_bundle(folder.with_name(f"{folder.name}-autoencoder"), encoder.manifest, encoder.state)
    path = folder.with_name(f"{folder.name}-autoencoder")
    save_bundle(folder, bundle.manifest, bundle.state, autoencoder=path)
    return folder
