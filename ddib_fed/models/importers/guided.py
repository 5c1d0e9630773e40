"""Imports checkpoints of guided-diffusion and of the public DDIB code: UNets and noisy classifiers.

Settings are inferred from shapes; the rest comes from the flags that it was trained with, or the public defaults.
Each setting is listed with its origin, and a flag that contradicts the shapes is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from torch import Tensor

from ddib_fed.diffusion.denoiser import Parameterisation
from ddib_fed.diffusion.schedule import ScheduleConfig, schedule_from_config
from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.bundle_files import state_problem
from ddib_fed.models.importers.checkpoints import Checkpoint, read_tensors
from ddib_fed.models.importers.flags import (
    CHANNEL_MULT,
    CLASSIFIER_HEAD_CHANNELS,
    DEFAULTS,
    Flags,
    Value,
    parse_flags,
    written,
)
from ddib_fed.models.importers.report import Fact, Imported, import_note
from ddib_fed.models.importers.shapes import Layout, Shapes, look, refused
from ddib_fed.models.manifest import DataNote, Manifest, PictureFormat, Training
from ddib_fed.networks.configs import ClassifierConfig, UNetConfig
from ddib_fed.networks.registry import network_shapes

SHAPES = "shapes"
MADE_FOR = {3: "colour", 1: "grey"}


def import_guided(
    path: Path,
    *,
    flags: str = "",
    classifier: bool = False,
    domain: str,
    name: str = "",
    fit: Literal["pad", "crop", "resize"] = "crop",
    soften_sigma: float = 0.0,
) -> Imported:
    """Manifest and weights of a public UNet, or of a noisy classifier."""
    given = parse_flags(flags, classifier=classifier)
    checkpoint = read_tensors(path)
    settled = settle(checkpoint.state, given, classifier=classifier, source=str(path))
    network, warnings = settled.network, _warnings(settled.facts, given)
    expected = network_shapes(network)
    for key in (*expected, *(key for key in checkpoint.state if key not in expected)):
        problem = state_problem(key, expected, checkpoint.state)
        if problem:
            raise refused(str(path), key, problem)
    manifest = Manifest(
        name=(name or path.stem)[:100],
        domain=domain,
        role="classifier" if classifier else "generator",
        sample_kind="picture",
        sample_shape=(network.in_channels, network.image_size, network.image_size),
        network=network,
        parameterisation=settled.parameterisation,
        time_input="timestep",
        schedule=settled.schedule,
        value_range=(-1.0, 1.0),
        soften_sigma=soften_sigma,
        picture=PictureFormat(fit=fit, low=0.0, high=255.0, bits=8),
        data=DataNote(note=import_note("the file", warnings)),
        training=_training(checkpoint, given),
    )
    return Imported(manifest, checkpoint.state, settled.facts, given.ignored, checkpoint.remarks, warnings)


def _warnings(facts: tuple[Fact, ...], flags: Flags) -> tuple[str, ...]:
    """A warning that settings not determined by shapes are public defaults, if no flags were given."""
    taken = [f"{fact.key} {fact.value}" for fact in facts if fact.basis.startswith("public default")]
    if flags.line or not taken:
        return ()
    trust = (
        f"without --flags these settings are public defaults, not confirmed by tensors: {', '.join(taken)}"
    )
    return (f"{trust}; where the model was trained with others, its results are wrong without an error",)


@dataclass(frozen=True, slots=True)
class Settled:
    """The settings from shapes, flags and defaults."""

    network: UNetConfig | ClassifierConfig
    parameterisation: Parameterisation
    schedule: ScheduleConfig
    facts: tuple[Fact, ...]


def settle(state: Mapping[str, Tensor], flags: Flags, *, classifier: bool, source: str) -> Settled:
    """Infer the network of `state` from names and shapes alone."""
    shapes = look(state, source)
    _check_kind(shapes, source, classifier=classifier)
    reading = _Reading(shapes, flags, _layout(shapes, flags))
    reading.check()
    network = _network(reading, source)
    predict_xstart = not classifier and bool(reading.flag("predict_xstart"))
    return Settled(network, "x0" if predict_xstart else "eps", _schedule(reading), tuple(reading.facts))


def _check_kind(shapes: Shapes, source: str, *, classifier: bool) -> None:
    if shapes.classifier != classifier:
        what, hint = (
            ("a classifier", "add --classifier")
            if shapes.classifier
            else ("a model that makes pictures", "leave --classifier out")
        )
        raise SettingsInvalid(f"{source}: by its tensors it is {what}", hint=hint)
    if shapes.in_channels not in MADE_FOR:
        kinds = " or ".join(f"{count} ({kind})" for count, kind in sorted(MADE_FOR.items()))
        raise refused(
            source,
            "input_blocks.0.0.weight",
            f"it takes {shapes.in_channels} channels, pictures have {kinds}; upsamplers and latent models are others",
        )


def _layout(shapes: Shapes, flags: Flags) -> Layout:
    """The one grouping of blocks into levels that the flags, or else the public defaults, allow."""
    left = list(shapes.layouts)
    size = flags.given.get("image_size")
    if shapes.places and isinstance(size, int):
        left = [way for way in left if (size // 2 ** (way.levels - 1)) ** 2 == shapes.places] or left
    if len(left) == 1:
        return left[0]
    depth, _ = flags.get("classifier_depth")
    for way in left:
        if way.num_res_blocks == depth:
            return way
    depths = " or ".join(str(way.num_res_blocks) for way in left)
    raise SettingsInvalid(
        f"the shapes leave open whether each level has {depths} residual blocks",
        hint="say it by --flags '--classifier_depth N'",
        facts={"field": "classifier_depth"},
    )


@dataclass(slots=True)
class _Reading:
    """One checkpoint's shapes and flags, and the origin of each setting."""

    shapes: Shapes
    flags: Flags
    layout: Layout
    facts: list[Fact]

    def __init__(self, shapes: Shapes, flags: Flags, layout: Layout) -> None:
        self.shapes, self.flags, self.layout = shapes, flags, layout
        self.facts = []

    @property
    def prefix(self) -> str:
        return "classifier_" if self.shapes.classifier else ""

    def flag(self, key: str) -> Value:
        """The value of a flag, or its public default; listed."""
        value, basis = self.flags.get(key)
        self.facts.append(Fact(key, written(value), basis))
        return value

    def seen(self) -> dict[str, Value]:
        """Settings inferred from shapes, by the name of the corresponding flag."""
        shapes, way = self.shapes, self.layout
        found: dict[str, Value] = {"in_channels": shapes.in_channels}
        if shapes.classifier:
            found |= {
                "out_channels": shapes.out_channels,
                "classifier_width": shapes.model_channels,
                "classifier_depth": way.num_res_blocks,
                "classifier_pool": shapes.pool,
            }
        else:
            found |= {
                "num_channels": shapes.model_channels,
                "num_res_blocks": way.num_res_blocks,
                "class_cond": shapes.num_classes is not None,
                "learn_sigma": shapes.out_channels == 2 * shapes.in_channels,
            }
            if shapes.num_classes is not None:
                found["num_classes"] = shapes.num_classes
        found["channel_mult"] = shapes.channel_mult(way)
        found[f"{self.prefix}use_scale_shift_norm"] = shapes.scale_shift
        if way.resblock_updown is not None:
            found[f"{self.prefix}resblock_updown"] = way.resblock_updown
        if shapes.places:
            found["image_size"] = math.isqrt(shapes.places) * 2 ** (way.levels - 1)
        return found

    def check(self) -> None:
        """Record the settings from shapes; refuse the first contradicting flag."""
        seen = self.seen()
        self.facts += [Fact(key, written(value), SHAPES) for key, value in seen.items()]
        attention = f"{self.prefix}attention_resolutions"
        for key, value in self.flags.given.items():
            if key == attention:
                self._check_attention(key, value, seen)
            elif key == "num_classes" and self.shapes.num_classes is None:
                continue
            elif key in seen and self._plain(seen[key]) != self._plain(value):
                raise _contradicted(key, written(value), written(seen[key]))

    def _plain(self, value: Value) -> Value:
        if not isinstance(value, tuple):
            return value
        return tuple(int(part * self.shapes.model_channels) for part in value)

    def _check_attention(self, key: str, value: Value, seen: Mapping[str, Value]) -> None:
        """Resolutions refer to the flags' image size: compare the levels with attention."""
        size = seen.get("image_size") or self.flags.given.get("image_size")
        if not isinstance(size, int) or not isinstance(value, tuple):
            return
        levels = {2**level for level in range(self.layout.levels)}
        named = {size // int(part) for part in value if part} & levels
        found = self.shapes.attention(self.layout)
        if named != set(found):
            at = written(tuple(size // factor for factor in sorted(found, reverse=True)))
            raise _contradicted(key, written(value), f"{at} (image_size {size})")

    def image_size(self) -> int:
        """Size of the pictures: by flag or position table, by what attends where, by multipliers, or by default."""
        size, basis = self._image_size()
        if basis != SHAPES:
            self.facts.append(Fact("image_size", str(size), basis))
        divisor = 2 ** (self.layout.levels - 1)
        if size < divisor or size % divisor:
            raise SettingsInvalid(
                f"image_size {size} does not divide by {divisor}, as the model's {self.layout.levels} levels need",
                hint="say the size that it was trained for by --flags '--image_size N'",
                facts={"field": "image_size"},
            )
        return size

    def _image_size(self) -> tuple[int, str]:
        seen = self.seen().get("image_size")
        if isinstance(seen, int):
            return seen, SHAPES
        given = self.flags.given.get("image_size")
        if isinstance(given, int):
            return given, "--flags"
        factors = self.shapes.attention(self.layout)
        named = self.flags.given.get(f"{self.prefix}attention_resolutions")
        if isinstance(named, tuple) and len(named) == len(factors):
            sizes = {int(at) * factor for at, factor in zip(sorted(named)[::-1], factors, strict=True)}
            if len(sizes) == 1:
                return sizes.pop(), "shapes and attention_resolutions"
        multipliers = self.shapes.channel_mult(self.layout)
        for size, usual in CHANNEL_MULT.items():
            if multipliers == usual:
                return size, "public default for these channel multipliers"
        return int(str(DEFAULTS["image_size"])), "public default"


def _network(reading: _Reading, source: str) -> UNetConfig | ClassifierConfig:
    shapes, way = reading.shapes, reading.layout
    size = reading.image_size()
    attention = shapes.attention(way)
    at = written(tuple(size // factor for factor in sorted(attention, reverse=True)))
    reading.facts.append(Fact(f"{reading.prefix}attention_resolutions", at, SHAPES))
    fields: dict[str, Any] = {
        "image_size": size,
        "in_channels": shapes.in_channels,
        "model_channels": shapes.model_channels,
        "out_channels": shapes.out_channels,
        "num_res_blocks": way.num_res_blocks,
        "attention_resolutions": attention,
        "channel_mult": shapes.channel_mult(way),
        "conv_resample": way.conv_resample,
        "use_scale_shift_norm": shapes.scale_shift,
        "resblock_updown": bool(way.resblock_updown),
    }
    try:
        if shapes.classifier:
            reading.facts.append(Fact("num_head_channels", str(CLASSIFIER_HEAD_CHANNELS), "public default"))
            return ClassifierConfig(**fields, pool=shapes.pool, num_head_channels=CLASSIFIER_HEAD_CHANNELS)
        return UNetConfig(**fields, num_classes=shapes.num_classes, **dict(_untold(reading)))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise SettingsInvalid(
            f"{source}: no network has these settings: {problem.removeprefix('Value error, ')}",
            hint="say by --flags what the list of public defaults has wrong, e.g. --num_head_channels 64",
        ) from error


def _untold(reading: _Reading) -> Iterator[tuple[str, Value]]:
    """Arguments of the UNet that shapes do not determine."""
    yield "num_head_channels", (by_width := reading.flag("num_head_channels"))
    if by_width == -1:
        for key in ("num_heads", "num_heads_upsample"):
            yield key, reading.flag(key)
    for key in ("use_new_attention_order", "dropout"):
        yield key, reading.flag(key)


def _schedule(reading: _Reading) -> ScheduleConfig:
    name, steps, rescaled = (
        reading.flag(key) for key in ("noise_schedule", "diffusion_steps", "rescale_timesteps")
    )
    schedule = ScheduleConfig(str(name), int(str(steps)), bool(rescaled))
    if schedule.name not in ("linear", "cosine"):
        raise SettingsInvalid(
            f"the public code has no noise_schedule {name!r}",
            hint="linear or cosine",
            facts={"field": "noise_schedule"},
        )
    schedule_from_config(schedule)
    return schedule


def _training(checkpoint: Checkpoint, flags: Flags) -> Training:
    said = f"imported from {checkpoint.path.name}" + (f", flags {flags.line}" if flags.line else "")
    return Training(command=said[:2000], steps=checkpoint.steps)


def _contradicted(key: str, given: str, found: str) -> SettingsInvalid:
    return SettingsInvalid(
        f"the flag --{key} {given} contradicts the tensors, which say {found}",
        hint="correct the flag, or leave it out: what shapes tell is inferred",
        facts={"field": key},
    )
