"""Pictures to train on: of a shipped domain, a user's folder, or arrays; all in memory.

Held-out pictures are never trained on, and neither decide the normalisation.
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor, nn

from ddib_fed.calibration.record import RETRAINED, read_calibration, units_digest
from ddib_fed.data import folder as folders
from ddib_fed.data.fitting import PictureRule
from ddib_fed.data.folder import Progress, Survey, expand
from ddib_fed.data.shipped import load_shipped
from ddib_fed.diffusion.denoiser import TimeInput
from ddib_fed.diffusion.schedule import ScheduleConfig
from ddib_fed.errors import (
    BundleInvalid,
    CalibrationExpired,
    CalibrationForeign,
    CalibrationUnits,
    InputError,
    MemoryExhausted,
    NotFinite,
    SettingsInvalid,
    ShapeMismatch,
)
from ddib_fed.models.bundle import Bundle, load_bundle
from ddib_fed.models.manifest import DataNote, Manifest, PictureFormat, data_note
from ddib_fed.models.units import ChannelMap, Normalisation
from ddib_fed.names import domain_from
from ddib_fed.networks.config import ClassifierConfig, UNetConfig, build_network
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.studies import scan_studies


def calibrated_units(config: TrainConfig, made: Manifest) -> Normalisation:
    """From pictures in [-1, 1] to the units of the model that they are translated to."""
    found = read_calibration(config.calibration) if config.calibration is not None else None
    if found is None:
        raise SettingsInvalid("the run has no calibration", hint="name its file")
    if found.kind not in RETRAINED:
        raise SettingsInvalid(
            f"{config.calibration} is a {found.kind}, for which no model is trained: the one there is works with it",
            hint=f"ddib translate --source A --target B --calibration {shlex.quote(str(config.calibration))}",
        )
    if found.expired():
        raise CalibrationExpired(
            f"{config.calibration} ended on {found.expires:%Y-%m-%d}", hint="make it anew: ddib calibrate"
        )
    if found.source.domain not in {made.domain, made.name, config.name, config.domain}:
        raise CalibrationForeign(
            f"{config.calibration} maps pictures of {found.source.domain}, and {config.init} is of {made.domain}",
            hint=f"--init with the model of {found.source.domain}",
        )
    if found.source.units_sha256 != units_digest(made.normalisation):
        whose = "the target's" if found.target.units_sha256 == units_digest(made.normalisation) else "other"
        raise CalibrationUnits(
            f"{config.calibration} maps from units that {config.init} does not have: those are {whose}",
            hint="--init with the model that the calibration was made with, on the side that it maps from",
        )
    if config.colours not in ("rgb", made.normalisation.colours):
        raise SettingsInvalid(
            f"colours is {made.normalisation.colours} in the initial weights, not {config.colours}",
            hint="leave colours out",
        )
    return made.normalisation.model_copy(update={"calibrated": found.map})


def map_digest(found: ChannelMap) -> str:
    return hashlib.sha256(found.model_dump_json(exclude_none=True).encode()).hexdigest()


Pixels = NDArray[np.float32] | NDArray[np.uint8] | NDArray[np.uint16]
Floats = NDArray[np.float32]
Labels = NDArray[np.int64]

MIN_PICTURES = 8
QUANTUM = 2.0 / 255.0
"""One step of 8 bits."""
_MOMENT_PICTURES = 4096
CROP_ROOM = 8
"""With random windows pictures are kept larger by this part of their size."""
FEW = 200
MEMORY_SHARE = 0.7


@dataclass(frozen=True, slots=True)
class PictureSource:
    """Pictures to train on."""

    name: str
    train: Pixels
    held_out: Pixels
    digest: str
    labels: Labels | None = None
    held_out_labels: Labels | None = None
    classes: tuple[str, ...] = ()
    picture: PictureFormat = field(default_factory=PictureFormat)
    note: DataNote | None = None
    size: int | None = None
    quantum: float = QUANTUM

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.train.shape[1:]
        return (channels, self.size, self.size) if self.size is not None else (channels, height, width)


def array_source(
    name: str,
    train: Pixels,
    held_out: Pixels,
    *,
    labels: Sequence[int] | Labels | None = None,
    held_out_labels: Sequence[int] | Labels | None = None,
    classes: tuple[str, ...] = (),
    **further: Any,
) -> PictureSource:
    """Pictures that are in memory already; `further` are other attributes of `PictureSource`."""
    for part, pixels in (("training", train), ("held-out", held_out)):
        _check_pixels(name, part, pixels, train.shape[1:])
    if len(train) < MIN_PICTURES:
        raise InputError(
            f"{name} has {len(train)} training pictures; at least {MIN_PICTURES} are needed",
            hint="add pictures",
        )
    given = _labels(name, labels, len(train), len(classes))
    return PictureSource(
        name=name,
        train=train,
        held_out=held_out,
        digest=_digest(train, held_out, given),
        labels=given,
        held_out_labels=_labels(name, held_out_labels, len(held_out), len(classes)),
        classes=classes,
        **further,
    )


def shipped_source(name: str) -> PictureSource:
    """The pictures of a shipped domain."""
    pictures = load_shipped(name)
    domain = pictures.domain
    form = PictureFormat(tiles=bool(domain.map))  # crops of a map are parts of it, sheets of a head are whole
    return array_source(name, pictures.train, pictures.held_out, picture=form, note=data_note(domain))


def normalisation(config: TrainConfig, source: PictureSource) -> Normalisation:
    """Mean and deviation of the training pictures of each channel, rounded to what a manifest shows well."""
    every = max(1, len(source.train) // _MOMENT_PICTURES)
    raw = Normalisation(colours=config.colours)
    sample = raw.recoloured(expand(source.train[::every]).astype(np.float64))
    mean, std = sample.mean(axis=(0, 2, 3)), sample.std(axis=(0, 2, 3))
    if not (std > 1e-4).all():
        raise InputError(
            f"nothing varies in the pictures of {source.name}",
            hint="check the range: `--range` maps raw values to [-1, 1]",
        )
    means, stds = (tuple(float(f"{value:.5g}") for value in part) for part in (mean, std))
    if len(means) == 1:
        return raw.model_copy(update={"mean": means[0], "std": stds[0]})
    return raw.model_copy(update={"mean": means, "std": stds})


def open_source(
    config: TrainConfig,
    source: PictureSource | None = None,
    *,
    say: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> PictureSource:
    """The pictures that `config` names, or those given, checked against it."""
    named = config.domain is not None or config.images is not None
    if named == (source is not None):
        raise SettingsInvalid(
            "give either a domain or a folder in the settings, or the pictures themselves",
            hint="one of the three",
        )
    if source is None:
        if config.domain is not None:
            source = shipped_source(config.domain)
        else:
            source = folder_source(config, say=say or (lambda _: None), progress=progress)
    if config.size is not None and source.shape[1:] != (config.size, config.size):
        raise SettingsInvalid(
            f"the pictures of {source.name} are {source.shape[2]} x {source.shape[1]}, not {config.size}",
            hint="leave size out: it follows from the pictures",
        )
    if config.classes is not None and source.labels is None:
        raise SettingsInvalid(f"the pictures of {source.name} have no classes", hint="leave classes out")
    if config.colours != "rgb" and source.shape[0] != 3:
        raise SettingsInvalid(f"the pictures of {source.name} are grey", hint="leave colours out")
    return source


def folder_source(
    config: TrainConfig, *, say: Callable[[str], None], progress: Progress | None = None
) -> PictureSource:
    """The pictures of `config.images`, decoded, fitted and split."""
    root = Path(str(config.images))
    classes = config.classes if config.classes in {"folders", "prefix"} else None
    studies = scan_studies(root, config, _side(config), progress=progress)
    if studies is None:
        spec, check = config.range, folders.range_check(config.range)
        folder = folders.scan(root, classes=classes, skip_bad=config.skip_bad, check=check, progress=progress)
    else:
        folder, spec = studies.folder, studies.range
    facts = folders.survey(folder)
    chosen = folders.choose_range(folder, spec)
    found = () if studies is None else studies.lines
    bad = (f"{path}: {reason}" for path, reason in folder.bad)
    for line in (*facts.lines(), *bad, *found, *chosen.warnings):
        say(line)
    if len(folder.entries) < FEW:
        say(
            f"{len(folder.entries)} pictures are few: expect a model that repeats them; --flip and --set crop=true help"
        )
    rule = _rule_of(config, facts, chosen.low, chosen.high)
    for line in _conversions(facts, rule.channels):
        say(line)
    apart = partial(folders.split, folder.entries) if studies is None else studies.split
    train, held_out = apart(config.held_out)
    if not held_out or not train:
        raise InputError(f"the pictures below {root} are all the same", hint="add pictures")
    _refuse_too_many(len(folder.entries), rule)
    whole_numbers = "float32" not in facts.dtypes
    return array_source(
        name_of(root),
        folders.load(train, rule, compact=True, progress=progress),
        folders.load(held_out, rule, compact=True),
        labels=folders.class_numbers(train, folder.classes) if classes else None,
        held_out_labels=folders.class_numbers(held_out, folder.classes) if classes else None,
        classes=folder.classes,
        picture=PictureFormat(
            fit=rule.fit,
            low=rule.low,
            high=rule.high,
            bits=8 if rule.bits == 8 else 16,
            intensity=None if studies is None else studies.rule,
            slices=None if studies is None else studies.slices,
            tiles=studies is not None and studies.of_maps,
        ),
        note=DataNote(source=f"{len(train)} pictures of a user's folder, {len(held_out)} held out"),
        size=config.usual_size if config.crop else None,
        quantum=2.0 / (rule.high - rule.low) if whole_numbers else 0.0,
    )


def as_trained(manifest: Manifest, images: Path, **fields: Any) -> TrainConfig:
    """How pictures are read for a model: as its manifest says that its own were; `fields` are further settings."""
    channels, height, _ = manifest.sample_shape
    found: dict[str, Any] = {"images": images, "channels": channels, "size": height, **fields}
    if (made := manifest.picture) is not None:
        found |= {"fit": made.fit, "range": f"{made.low!r}:{made.high!r}"}
        found |= {"intensity": made.intensity, "slices": made.slices}
    return TrainConfig.model_validate(found)


def own_volumes(manifest: Manifest, folder: Path) -> PictureSource | None:
    """The volumes or maps below a folder, read as those that a model was trained on; None for a model of pictures."""
    if manifest.picture is None or manifest.picture.intensity is None:
        return None
    return folder_source(as_trained(manifest, folder), say=lambda _: None)


def _side(config: TrainConfig) -> int:
    size = config.usual_size
    return size + (size // CROP_ROOM if config.crop else 0)


def _rule_of(config: TrainConfig, facts: Survey, low: float, high: float) -> PictureRule:
    """How each picture is fitted: of the run's size, and as much larger as crops are moved."""
    side = _side(config)
    return PictureRule(
        channels=config.channels or max(facts.channels, key=facts.channels.__getitem__),
        height=side,
        width=side,
        fit=config.fit or "resize",
        low=low,
        high=high,
        bits=8 if set(facts.dtypes) == {"uint8"} else 16,
    )


def evenly(count: int, most: int) -> Labels:
    """At most so many row numbers below `count`, evenly spaced."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(np.int64))


def spaced(samples: Floats, most: int) -> Floats:
    chosen: Floats = samples[evenly(len(samples), most)]
    return chosen


def name_of(root: Path) -> str:
    """The folder's name as a domain's: letters, digits, dots, dashes; of trainA the name of the folder around it."""
    path = root.resolve()
    name = f"{path.parent.name}-{path.name[-1].lower()}" if path.name in {"trainA", "trainB"} else path.name
    return domain_from(name) or "pictures"


def _conversions(facts: folders.Survey, channels: int) -> list[str]:
    """What is done to pictures of another number of channels."""
    others = sum(count for number, count in facts.channels.items() if number != channels)
    if not others:
        return []
    if channels == 1:
        return [
            f"{others} RGB pictures are made grey, their colours are dropped; --set channels=3 keeps them"
        ]
    return [f"{others} grey pictures become RGB of three equal channels"]


def _refuse_too_many(count: int, rule: PictureRule) -> None:
    needed = count * rule.channels * rule.height * rule.width * (rule.bits // 8)
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > MEMORY_SHARE * there:
        raise MemoryExhausted(
            f"{count} pictures of {rule.height} x {rule.width} need {needed / 2**30:.1f} GiB of memory; this machine "
            f"has {there / 2**30:.1f}",
            hint="a smaller --size, or a part of the folder",
        )


def _check_pixels(name: str, part: str, pixels: Pixels, shape: tuple[int, ...]) -> None:
    if pixels.ndim != 4 or pixels.shape[1:] != shape or shape[0] not in (1, 3) or len(pixels) == 0:
        raise ShapeMismatch(
            f"the {part} pictures of {name} are {pixels.shape}, not (N, C, H, W) of one size with 1 or 3 channels",
            hint="one array of pictures, at least one of them",
        )
    if pixels.dtype not in (np.float32, np.uint8, np.uint16):
        raise InputError(f"the {part} pictures of {name} are {pixels.dtype}, not float32, uint8 or uint16")
    if pixels.dtype == np.float32:
        low, high = float(pixels.min()), float(pixels.max())
        if not np.isfinite([low, high]).all():
            raise NotFinite(f"the {part} pictures of {name} hold NaN or infinity", hint="clean them")
        if low < -1.001 or high > 1.001:
            raise InputError(
                f"the {part} pictures of {name} reach from {low:g} to {high:g}", hint="bring them to [-1, 1]"
            )


def _labels(name: str, labels: Sequence[int] | Labels | None, count: int, classes: int) -> Labels | None:
    if labels is None:
        return None
    found = np.asarray(labels, dtype=np.int64)
    if found.shape != (count,) or not classes or found.min() < 0 or found.max() >= classes:
        raise InputError(f"the labels of {name} are not {count} numbers from 0 to {classes - 1}")
    return found


def _digest(train: Pixels, held_out: Pixels, labels: Labels | None) -> str:
    digest = hashlib.sha256()
    for part in (train, held_out, *(() if labels is None else (labels,))):
        digest.update(f"{part.dtype} {part.shape} ".encode())
        digest.update(np.ascontiguousarray(part).data)
    return f"pictures:{digest.hexdigest()}"


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
        return Start(_validated(UNetConfig, fields), schedule, config.predict or "v", "scaled-lambda")
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
    network = _validated(UNetConfig, {**made.network.model_dump(), **_demanded(config, source)})
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
        "out_channels": channels,
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
    """Of the output; a variance that was learned beside the mean is dropped."""
    for part in (have, have.chunk(2)[0]):
        if len(part) == len(want):
            return part
        if len(part) == 3 * len(want):
            return _grouped(part, 3, 0).mean(0)
        if 3 * len(part) == len(want):
            return torch.cat([part] * 3)
    raise _misfit(_LAST, have, want)


def _misfit(name: str, have: Tensor, want: Tensor) -> BundleInvalid:
    return BundleInvalid(
        f"the initial weights do not fit: {name} is {tuple(have.shape)}, the network needs {tuple(want.shape)}",
        hint="start from a bundle of 1 or 3 channels",
    )
