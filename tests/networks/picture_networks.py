"""Small picture networks with weights that are nowhere zero."""

import torch

from ddib_fed.models.manifest import Manifest, PictureFormat
from ddib_fed.models.units import Normalisation
from ddib_fed.networks.config import ClassifierConfig, UNetConfig
from ddib_fed.networks.unet import NoisyClassifier, UNet

TINY = UNetConfig(
    image_size=16, in_channels=1, model_channels=32, out_channels=1, num_res_blocks=1, attention_resolutions=(2,),
    channel_mult=(1, 2),
)  # fmt: skip
TINY_CLASSIFIER = ClassifierConfig(
    image_size=16, in_channels=1, model_channels=32, out_channels=3, num_res_blocks=1, channel_mult=(1, 2),
    num_head_channels=32,
)  # fmt: skip


def unet(**changes) -> UNet:
    return filled(UNet(TINY.model_copy(update=changes)))


def classifier(**changes) -> NoisyClassifier:
    return filled(NoisyClassifier(TINY_CLASSIFIER.model_copy(update=changes)))


def filled(network):
    generator = torch.Generator().manual_seed(0)
    for name, parameter in network.named_parameters():
        fan = max(1, parameter[0].numel()) ** 0.5
        noise = torch.randn(parameter.shape, generator=generator) / fan
        one = parameter.ndim == 1 and name.endswith("weight")
        parameter.data = 1.0 + 0.1 * noise if one else noise
    return network.eval()


def manifest(network=TINY, **changes) -> Manifest:
    fields = {
        "name": "tiny", "domain": "t1", "sample_kind": "picture", "sample_shape": (network.in_channels, 16, 16),
        "network": network, "role": "classifier" if network.kind == "classifier" else "generator",
        "picture": PictureFormat(), "normalisation": Normalisation(mean=(0.1,) * network.in_channels),
    }  # fmt: skip
    return Manifest.model_validate(fields | changes)
