"""Two small models of volumes of grey noise, and such volumes."""

import io
from pathlib import Path

import numpy as np
import torch

from ddib_fed.models.bundle import Bundle, make_bundle, save_bundle
from ddib_fed.models.manifest import Manifest, PictureFormat
from ddib_fed.models.units import Normalisation
from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import LibraryConfig

SIDES = (12, 16, 8)
"""Depth, height and width: no two alike."""


def volume_model(
    domain: str, *, seed: int = 1, form: PictureFormat | None = None, sides: tuple[int, int, int] = SIDES
) -> Bundle:
    network = LibraryConfig(
        target="monai.networks.nets.DiffusionModelUNet",
        arguments={
            "spatial_dims": 3, "in_channels": 1, "out_channels": 1, "num_res_blocks": 1, "channels": [8, 8],
            "attention_levels": [False, False], "norm_num_groups": 4,
        },
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = build_network(network)
        with torch.no_grad():
            torch.nn.init.normal_(module.out[-1].conv.weight, std=0.02)
    manifest = Manifest(
        name=domain, domain=domain, sample_kind="volume", sample_shape=(1, *sides), network=network,
        normalisation=Normalisation(std=0.5), picture=form or PictureFormat(),
    )  # fmt: skip
    return make_bundle(manifest, module.state_dict())


def save_volume_model(folder: Path, domain: str, **options) -> None:
    bundle = volume_model(domain, **options)
    save_bundle(folder, bundle.manifest, bundle.state)


def voxels(*, seed: int = 0, sides: tuple[int, ...] = SIDES) -> np.ndarray:
    """Grey noise of 8 bits."""
    noise = np.random.default_rng(seed).standard_normal(sides) * 0.5
    return np.rint((noise.clip(-1, 1) + 1) * 127.5).astype(np.uint8)


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
