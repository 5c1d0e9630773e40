"""The networks that configurations describe, with random weights, with none, or with those of a bundle."""

import pkgutil
import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

from ddib_fed.errors import SettingsInvalid, extra
from ddib_fed.networks.config import AnyConfig, ClassifierConfig, LibraryConfig, MlpConfig, UNetConfig
from ddib_fed.networks.mlp import ResidualMLP, SyntheticModel
from ddib_fed.networks.placement import spread, without_autocast
from ddib_fed.networks.spectrum import Spectrum, spectrum_of
from ddib_fed.networks.unet import NoisyClassifier, UNet


def build_network(config: AnyConfig) -> nn.Module:
    if isinstance(config, UNetConfig):
        return UNet(config)
    if isinstance(config, ClassifierConfig):
        return NoisyClassifier(config)
    if isinstance(config, LibraryConfig):
        return _library_network(config)
    return ResidualMLP(config) if isinstance(config, MlpConfig) else SyntheticModel(config)


def _import_monai() -> None:
    """Import MONAI without the walk of its own packages: half of its 430 modules, which no network here needs."""
    if "monai" in sys.modules:
        return
    walk = pkgutil.walk_packages
    vars(pkgutil)["walk_packages"] = lambda *_, **__: ()
    try:
        package = import_module("monai")
    finally:
        vars(pkgutil)["walk_packages"] = walk
    vars(import_module("monai.utils.module"))["walk_packages"] = walk

    def subpackage(name: str) -> ModuleType:
        try:
            return import_module(f"monai.{name}")
        except ModuleNotFoundError as error:
            raise AttributeError(f"module 'monai' has no attribute {name!r}") from error

    vars(package)["__getattr__"] = subpackage  # whoever else uses MONAI in this process finds them as before
    # `monai.networks` cannot be imported first: its modules import one another.
    import_module("monai.apps.utils")


def _library_network(config: LibraryConfig) -> nn.Module:
    """A network of a library, called as the networks here; an autoencoder has `encode`, `posterior` and `decode`."""
    package, (module, _, name) = config.target.partition(".")[0], config.target.rpartition(".")
    with extra("node" if package == "monai" else package, package, f"{name} is a network of {package}"):
        if package == "monai":
            _import_monai()
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
    if config.spectral:
        network.spectrum = Spectrum(config.in_channels, *config.spectral)
    return network


def _turned(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """x (N, C, *sides) as a network of other axes has it."""
    if not axes:
        return x
    x = x.permute(0, 1, *(abs(axis) + 1 for axis in axes))
    return x.flip([place for place, axis in enumerate(axes, start=2) if axis < 0])


def _back(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The inverse of `_turned`."""
    if not axes:
        return x
    x = x.flip([place for place, axis in enumerate(axes, start=2) if axis < 0])
    places = {abs(axis): place for place, axis in enumerate(axes, start=2)}
    return x.permute(0, 1, *(places[axis] for axis in sorted(places)))


def _denoiser(kind: Any, config: LibraryConfig) -> Any:
    plain, axes = config.target.startswith("monai."), config.axes

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
            asked, spectrum = None, spectrum_of(self)
            if spectrum is not None:
                # As in `UNet`: the estimate keeps its digits where the layers have half precision.
                with without_autocast(x.device.type):
                    asked = spectrum.ask(x, times, rows)
                x = asked.inputs
            answer = super().forward(_turned(x, axes), spread(times, rows).expand(len(x)), **further)
            output = _back(cast("Tensor", answer if plain else answer[0]), axes)
            if asked is None:
                return output
            output = output.to(torch.promote_types(output.dtype, x.dtype))
            with without_autocast(x.device.type):
                return asked.answer(output)

    return LibraryDenoiser


def _autoencoder(kind: Any, config: LibraryConfig) -> Any:
    quantises, plain, axes = config.name == "VQVAE", config.target.startswith("monai."), config.axes

    class LibraryAutoencoder(kind):  # type: ignore[misc]
        to = nn.Module.to

        def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
            """Mean and deviation of the latent; for training."""
            return cast("tuple[Tensor, Tensor]", super().encode(x))

        def encode(self, x: Tensor) -> Tensor:
            """The mean of the latent, of which nothing is drawn."""
            latent = super().encode(_turned(x, axes))
            if quantises or plain:
                latent = self.quantize(latent)[0] if quantises else latent[0]
            else:
                latent = latent.latent_dist.mean if hasattr(latent, "latent_dist") else latent.latents
            return _back(latent, axes)

        def decode(self, z: Tensor) -> Tensor:
            z = _turned(z, axes)
            pictures = super().decode(self.quantize(z)[0] if quantises else z)
            return _back(cast("Tensor", pictures if plain else pictures.sample), axes)

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
