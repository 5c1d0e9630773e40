"""Models of small pictures with random weights: all that a bridge does, in milliseconds."""

import numpy as np
import torch

from ddib_fed.models.bundle import Bundle, make_bundle
from ddib_fed.models.manifest import Manifest, PictureFormat, StructureThresholds
from ddib_fed.models.units import Normalisation
from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import ClassifierConfig, UNetConfig

PLAIN, EIGHT_BITS = Normalisation(), PictureFormat()

SIZE = 8


def tiny(
    name: str = "tiny",
    *,
    seed: int = 0,
    channels: int = 1,
    size: int = SIZE,
    soften_sigma: float = 0.0,
    normalisation: Normalisation = PLAIN,
    picture: PictureFormat | None = EIGHT_BITS,
    structure: StructureThresholds | None = None,
    **network,
) -> Bundle:
    """A generator of (channels, size, size) pictures; further arguments are the network's."""
    config = UNetConfig(
        image_size=size, in_channels=channels, model_channels=32, out_channels=channels, num_res_blocks=1,
        channel_mult=(1.0,), use_scale_shift_norm=True, **network,
    )  # fmt: skip
    manifest = Manifest(
        name=name, domain=name, sample_kind="picture", sample_shape=(channels, size, size), network=config,
        soften_sigma=soften_sigma, normalisation=normalisation, picture=picture, structure=structure,
        time_input="scaled-lambda" if config.spectral else "lambda",
    )  # fmt: skip
    return make_bundle(manifest, state(config, seed))


def tiny_classifier(
    classes: int = 3,
    *,
    channels: int = 1,
    size: int = SIZE,
    seed: int = 9,
    normalisation: Normalisation = PLAIN,
) -> Bundle:
    """A classifier of noisy pictures."""
    config = ClassifierConfig(
        image_size=size, in_channels=channels, model_channels=32, out_channels=classes, num_res_blocks=1,
        channel_mult=(1.0,), use_scale_shift_norm=True,
    )  # fmt: skip
    manifest = Manifest(
        name="tiny-classifier", domain="tiny", sample_kind="picture", sample_shape=(channels, size, size),
        network=config, role="classifier", normalisation=normalisation,
    )  # fmt: skip
    return make_bundle(manifest, state(config, seed))


def state(config: UNetConfig | ClassifierConfig, seed: int) -> dict[str, torch.Tensor]:
    """Fresh weights, and small random ones where networks begin with zeros."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = build_network(config).state_dict()
        return {
            key: value if value.any() or value.ndim < 2 else 0.05 * torch.randn(value.shape)
            for key, value in made.items()
        }


def pictures(count: int, *, channels: int = 1, size: int = SIZE, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform(-1, 1, (count, channels, size, size)).astype(np.float32)
