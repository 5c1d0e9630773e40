"""The network of a run and its first weights: fresh ones from the seed, or those of a bundle, made to fit.

A bundle of another number of channels is used as if its pictures were given grey in all three channels (first
convolution: the sum over channels; last: the mean), or the other way round (a third each; repeated); with a spectrum
that is so only nearly, since the run measures its own. Classes that differ in number, and a variance that is learned
from now on, start fresh. Everything else must fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from ddib_fed.diffusion.denoiser import TimeInput
from ddib_fed.diffusion.schedule import ScheduleConfig
from ddib_fed.errors import BundleInvalid, SettingsInvalid
from ddib_fed.models.bundle import Bundle, load_bundle
from ddib_fed.models.units.normalisation import Normalisation
from ddib_fed.networks.configs import ClassifierConfig, UNetConfig
from ddib_fed.networks.registry import build_network
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.pictures.calibrated import calibrated_units
from ddib_fed.training.pictures.sources import PictureSource

Config = TypeVar("Config", UNetConfig, ClassifierConfig)

_MEASURED = "spectrum."
"""Begins the names of what each run measures of its own pictures."""
_FIRST, _LAST, _LABELS = "input_blocks.0.0.weight", "out.2.", "label_emb.weight"


@dataclass(frozen=True, slots=True)
class Start:
    """What a run begins with."""

    network: UNetConfig | ClassifierConfig
    schedule: ScheduleConfig
    parameterisation: Any
    time_input: TimeInput
    bundle: Bundle | None = None
    normal: Normalisation | None = None

    @property
    def classifies(self) -> bool:
        return isinstance(self.network, ClassifierConfig)


def open_start(config: TrainConfig, source: PictureSource) -> Start:
    """The start that `config` asks for."""
    if config.kind == "classifier":
        return _classifier_start(config, source)
    if config.init is None:
        fields = {**config.network, **_demanded(config, source)}
        schedule = ScheduleConfig(name=config.noise_schedule or "cosine")
        return Start(_network(fields), schedule, config.predict or "v", "scaled-lambda")
    bundle = load_bundle(config.init)
    made = bundle.manifest
    if not isinstance(made.network, UNetConfig):
        raise BundleInvalid(
            f"{config.init} holds a network of kind {made.network.kind}",
            hint="start from a bundle of pictures",
        )
    if made.is_flow_map:
        raise BundleInvalid(
            f"{config.init} is distilled, and training would unlearn its steps",
            hint="start from the model that it was distilled from, and distil the new one",
        )
    if config.init_digest and config.init_digest != bundle.digest:
        raise SettingsInvalid(
            f"{config.init} has the digest {bundle.digest[:16]}..., not {config.init_digest[:16]}...",
            hint="these are not the initial weights that were agreed on",
        )
    network = _network({**made.network.model_dump(), **_demanded(config, source)})
    _refuse_contradictions(config, bundle, network)
    normal = None if config.calibration is None else calibrated_units(config, made)
    return Start(network, made.schedule, made.parameterisation, made.time_input, bundle, normal)


def new_network(start: Start, seed: int) -> nn.Module:
    """The network of a run with its first weights, a function of start and seed; torch's generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_network(start.network)
    if start.bundle is not None:
        network.load_state_dict(fitted(start.bundle.state, network.state_dict(), start.network))
    return channels_last(network).train()


def channels_last(network: nn.Module) -> nn.Module:
    moved: nn.Module = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved


def fitted(
    old: Mapping[str, Tensor], fresh: Mapping[str, Tensor], network: UNetConfig | ClassifierConfig
) -> dict[str, Tensor]:
    """The weights `old`, changed in shape to those of `fresh` where the module's docstring says how."""
    found: dict[str, Tensor] = {}
    for name, want in fresh.items():
        have = old.get(name)
        if name.startswith((_MEASURED, _LABELS)) and (have is None or have.shape != want.shape):
            found[name] = want
        elif have is not None and have.shape == want.shape:
            found[name] = have
        elif have is not None and name == _FIRST:
            found[name] = _first(have, want, network)
        elif have is not None and name.startswith(_LAST):
            found[name] = _last(have, want)
        else:
            raise BundleInvalid(
                f"the initial weights do not fit: {name} is {None if have is None else tuple(have.shape)}, "
                f"the network needs {tuple(want.shape)}",
                hint="give no field of the network together with --init",
            )
    return found


def _classifier_start(config: TrainConfig, source: PictureSource) -> Start:
    """Fresh weights, for the levels and the units of the model to be guided."""
    channels, height, _ = source.shape
    demanded = {"image_size": height, "in_channels": channels, "out_channels": len(source.classes)}
    _refuse_overridden(config, demanded)
    network = _validated(ClassifierConfig, {**config.network, **demanded})
    if config.generator is None:
        return Start(network, ScheduleConfig(name=config.noise_schedule or "cosine"), "v", "scaled-lambda")
    bundle = load_bundle(config.generator)
    made = bundle.manifest
    facts: dict[str, tuple[object, object]] = {"sample_shape": (made.sample_shape, source.shape)}
    if made.num_classes is not None:
        facts["classes"] = (
            made.classes or made.num_classes,
            source.classes if made.classes else len(source.classes),
        )
    for name, (wanted, has) in facts.items():
        if wanted != has:
            raise SettingsInvalid(
                f"the model to be guided has {name} {wanted}, the pictures {has}",
                hint="train on the same pictures",
            )
    return Start(network, made.schedule, "v", made.time_input, normal=made.normalisation)


def _demanded(config: TrainConfig, source: PictureSource) -> dict[str, Any]:
    """Fields that follow from pictures and run."""
    channels, height, _ = source.shape
    classes = len(source.classes) if config.classes is not None else None
    demanded = {
        "image_size": height,
        "in_channels": channels,
        "out_channels": channels * (2 if config.learn_sigma else 1),
        "num_classes": classes,
        "class_dropout": config.label_dropout > 0,
    }
    _refuse_overridden(config, demanded)
    return demanded


def _refuse_overridden(config: TrainConfig, demanded: Mapping[str, Any]) -> None:
    """A field of the network that follows from pictures and run may not be overridden."""
    for key, value in demanded.items():
        if config.network.get(key, value) != value:
            raise SettingsInvalid(
                f"{key} follows from the pictures and the run and is {value}, not {config.network[key]}",
                hint=f"leave {key} out of the network's fields",
            )


def _network(fields: Mapping[str, Any]) -> UNetConfig:
    return _validated(UNetConfig, fields)


def _validated(kind: type[Config], fields: Mapping[str, Any]) -> Config:
    """The fields as a network's, which fits the size of the pictures."""
    try:
        network = kind.model_validate({**fields, "kind": kind.model_fields["kind"].default})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "the network"
        raise SettingsInvalid(
            f"{where}: {first['msg'].removeprefix('Value error, ')}", hint=f"see {kind.__name__}"
        ) from error
    if network.image_size % network.divisor:
        raise SettingsInvalid(
            f"pictures of {network.image_size} pixels do not divide by {network.divisor}, as the network needs",
            hint=f"a size that divides by {network.divisor}, fewer levels in channel_mult, or a smaller patch",
        )
    return network


def _refuse_contradictions(config: TrainConfig, bundle: Bundle, network: UNetConfig) -> None:
    """What is asked for beside a bundle must be what the bundle has."""
    made = bundle.manifest
    asked: dict[str, tuple[object, object]] = {
        "parameterisation": (config.predict, made.parameterisation),
        "schedule": (config.noise_schedule, made.schedule.name),
    }
    fields = network.model_dump()
    for key, value in config.network.items():
        asked[key] = (tuple(value) if isinstance(value, list) else value, fields.get(key))
    for key, (wanted, has) in asked.items():
        if wanted is not None and wanted != has:
            raise SettingsInvalid(
                f"{key} is {has} in the initial weights, not {wanted}", hint=f"leave {key} out"
            )
    if made.parameterisation == "x0":
        raise SettingsInvalid("weights that predict x0 cannot be trained on", hint="eps or v")


def _grouped(weight: Tensor, channels: int, axis: int) -> Tensor:
    shape = (*weight.shape[:axis], channels, -1, *weight.shape[axis + 1 :])
    return weight.reshape(shape)


def _first(have: Tensor, want: Tensor, network: UNetConfig | ClassifierConfig) -> Tensor:
    """The patches' pixels come first, twice with a spectrum, then the means; each part is grouped by channel."""
    channels = {3 * want.shape[1]: 3, want.shape[1] / 3: 1}.get(have.shape[1])
    if channels is None:
        raise _misfit(_FIRST, have, want)
    pixels, means = 1, 0
    if isinstance(network, UNetConfig):
        pixels, means = 1 + network.spectral, channels * network.global_mean
    each = (have.shape[1] - means) // pixels
    parts = have.split_with_sizes([each] * pixels + [means] * (means > 0), dim=1)
    if channels == 3:
        return torch.cat([_grouped(part, 3, 1).sum(1) for part in parts], dim=1)
    return torch.cat([part / 3 for part in parts for _ in range(3)], dim=1)


def _last(have: Tensor, want: Tensor) -> Tensor:
    """Of the output for means and variances alike; what is new of it starts at zero, as in a fresh network."""
    for learned_have, learned_want in ((1, 1), (2, 2), (1, 2), (2, 1)):
        small, large = have.shape[0] / learned_have, want.shape[0] / learned_want
        if small not in (large, 3 * large, large / 3):
            continue
        parts = have.chunk(learned_have)[:learned_want]
        if small == 3 * large:
            parts = tuple(_grouped(part, 3, 0).mean(0) for part in parts)
        elif large == 3 * small:
            parts = tuple(torch.cat([part] * 3) for part in parts)
        missing = [torch.zeros_like(parts[0])] * (learned_want - len(parts))
        return torch.cat([*parts, *missing])
    raise _misfit(_LAST, have, want)


def _misfit(name: str, have: Tensor, want: Tensor) -> BundleInvalid:
    return BundleInvalid(
        f"the initial weights do not fit: {name} is {tuple(have.shape)}, the network needs {tuple(want.shape)}",
        hint="start from a bundle of 1 or 3 channels",
    )
