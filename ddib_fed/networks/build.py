"""The networks that configurations describe, with random weights, with none, or with those of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, cast

import torch
from torch import Tensor, nn

from ddib_fed.errors import SettingsInvalid, extra
from ddib_fed.networks.config import (
    AnyConfig,
    ClassifierConfig,
    LibraryConfig,
    MlpConfig,
    SyntheticConfig,
    UNetConfig,
)
from ddib_fed.networks.mlp import ResidualMLP, SyntheticModel
from ddib_fed.networks.unet import NoisyClassifier, UNet


def build_network(config: AnyConfig) -> nn.Module:
    if isinstance(config, UNetConfig):
        return UNet(config)
    if isinstance(config, ClassifierConfig):
        return NoisyClassifier(config)
    if isinstance(config, LibraryConfig):
        return _library_network(config)
    arguments = config.model_dump(exclude={"kind"})
    if isinstance(config, MlpConfig):
        return ResidualMLP(**arguments)
    if isinstance(config, SyntheticConfig):
        return SyntheticModel(**arguments)
    return _diffusers_unet(**arguments)


def _diffusers_unet(*, image_size: int, mid_block: bool, **arguments: Any) -> nn.Module:
    """`UNet2DModel` of a large library, which need not be installed, called as the networks here."""
    with extra("diffusers", "diffusers", "networks of diffusers need the diffusers library"):
        from diffusers.models.unets.unet_2d import UNet2DModel

    class DiffusersUNet(UNet2DModel):  # type: ignore[misc]
        to = nn.Module.to  # the library's logs a warning whenever a dtype is given

        def forward(
            self, x: Tensor, times: Tensor, rows: Tensor | None = None, y: Tensor | None = None
        ) -> Tensor:
            return cast("Tensor", super().forward(x, _each(x, times, rows), y, return_dict=False)[0])

    middle = "UNetMidBlock2D" if mid_block else None
    return DiffusersUNet(sample_size=image_size, mid_block_type=middle, **arguments)


def _each(x: Tensor, times: Tensor, rows: Tensor | None) -> Tensor:
    return times.expand(len(x)) if rows is None else times.index_select(0, rows)


def _library_network(config: LibraryConfig) -> nn.Module:
    """A network of a library, called as the networks here; an autoencoder has `encode`, `posterior` and `decode`."""
    package, (module, _, name) = config.target.partition(".")[0], config.target.rpartition(".")
    with extra("node" if package == "monai" else package, package, f"{name} is a network of {package}"):
        kind = getattr(import_module(module), name)
    make = _autoencoder if config.is_autoencoder else _denoiser
    try:
        network: nn.Module = make(kind, config)(**config.arguments)
    except (TypeError, ValueError, RuntimeError, AttributeError, ZeroDivisionError) as error:
        why = str(error).partition("\n")[0]
        raise SettingsInvalid(
            f"{name} of {package} cannot be made of these arguments: {why}",
            hint="its arguments are those of the release that the model was trained with",
            facts={"target": config.target},
        ) from error
    return network


def _denoiser(kind: Any, config: LibraryConfig) -> Any:
    plain = config.target.startswith("monai.")

    class LibraryDenoiser(kind):  # type: ignore[misc]
        to = nn.Module.to  # diffusers logs a warning whenever a dtype is given

        def forward(
            self, x: Tensor, times: Tensor, rows: Tensor | None = None, y: Tensor | None = None
        ) -> Tensor:
            further: dict[str, Any] = {} if plain else {"return_dict": False}
            for name, value in config.fixed.items():
                number = name == "class_labels"
                row = torch.tensor([value], device=x.device, dtype=torch.int64 if number else x.dtype)
                further[name] = row.expand(len(x), *row.shape[1:])
            if y is not None:
                further["class_labels"] = y
            found = super().forward(x, _each(x, times, rows), **further)
            return cast("Tensor", found if plain else found[0])

    return LibraryDenoiser


def _autoencoder(kind: Any, config: LibraryConfig) -> Any:
    quantises, plain = config.name == "VQVAE", config.target.startswith("monai.")

    class LibraryAutoencoder(kind):  # type: ignore[misc]
        to = nn.Module.to

        def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
            """Mean and deviation of the latent; for training."""
            return cast("tuple[Tensor, Tensor]", super().encode(x))

        def encode(self, x: Tensor) -> Tensor:
            """The mean of the latent, of which nothing is drawn."""
            found = super().encode(x)
            if quantises:
                return cast("Tensor", self.quantize(found)[0])
            if plain:
                return cast("Tensor", found[0])
            return cast("Tensor", found.latent_dist.mean if hasattr(found, "latent_dist") else found.latents)

        def decode(self, z: Tensor) -> Tensor:
            if quantises:
                z = self.quantize(z)[0]
            found = super().decode(z)
            return cast("Tensor", found if plain else found.sample)

    return LibraryAutoencoder


def network_shapes(config: AnyConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_network(config).state_dict()


def network_with(
    config: AnyConfig,
    state: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """The network that `config` describes with its own copy of `state`, which fits; made without a second copy."""
    if isinstance(config, MlpConfig | LibraryConfig):
        network = build_network(config)  # some of its numbers, such as frequencies, are not in the state
    else:
        with torch.device("meta"):
            network = build_network(config)
    own = {key: value.to(device=device, dtype=dtype, copy=True) for key, value in state.items()}
    network.load_state_dict(own, assign=True)
    return network.to(device=device, dtype=dtype)
