"""Imports checkpoints of guided-diffusion and of the public DDIB code: UNets and noisy classifiers.

Settings are inferred from shapes; the rest comes from the flags that it was trained with, or the public defaults.
Each setting is listed with its origin, and a flag that contradicts the shapes is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError
from torch import Tensor

from ddib_fed.diffusion.denoiser import Parameterisation
from ddib_fed.diffusion.schedule import ScheduleConfig, schedule_from_config
from ddib_fed.errors import BundleInvalid, SettingsInvalid
from ddib_fed.models.bundle import misfits
from ddib_fed.models.import_flags import (
    CHANNEL_MULT,
    CLASSIFIER_HEAD_CHANNELS,
    DEFAULTS,
    Flags,
    Value,
    parse_flags,
    written,
)
from ddib_fed.models.manifest import DataNote, Manifest, PictureFormat, Training
from ddib_fed.models.weights import Checkpoint, Fact, Imported, import_note, read_tensors
from ddib_fed.networks.config import ClassifierConfig, UNetConfig

ENTER = "input_blocks.0.0.weight"
TIME = "time_embed.0.weight"
LABELS = "label_emb.weight"
POSITIONS = "out.2.positional_embedding"


@dataclass(frozen=True, slots=True)
class Block:
    """One block of the down or up path, as its tensors show it."""

    width: int = 0
    enters: int = 0
    attention: bool = False
    scale_shift: bool = False
    resamples: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """One grouping of the down path into levels."""

    levels: int
    num_res_blocks: int
    resblock_updown: bool | None
    conv_resample: bool = True


@dataclass(frozen=True, slots=True)
class Shapes:
    """Properties of a network inferred from its tensors."""

    classifier: bool
    in_channels: int
    out_channels: int
    model_channels: int
    num_classes: int | None
    pool: str
    places: int
    down: tuple[Block, ...]
    layouts: tuple[Layout, ...]

    def widths(self, layout: Layout) -> tuple[int, ...]:
        return tuple(self._first(layout, level).width for level in range(layout.levels))

    def channel_mult(self, layout: Layout) -> tuple[float, ...]:
        return tuple(multiplier(width, self.model_channels) for width in self.widths(layout))

    def attention(self, layout: Layout) -> tuple[int, ...]:
        return tuple(2**level for level in range(layout.levels) if self._first(layout, level).attention)

    @property
    def scale_shift(self) -> bool:
        return self.down[1].scale_shift

    def _first(self, layout: Layout, level: int) -> Block:
        return self.down[1 + level * (layout.num_res_blocks + 1)]


_FAMILIES = {
    r"adaLN_modulation": "a diffusion transformer (DiT or SiT), which works on latents",
    r"^(?:model\.diffusion_model|first_stage_model|cond_stage_model)\.": "a checkpoint of latent diffusion (Stable "
    "Diffusion or the like)",
    r"^(?:single_)?transformer_blocks\.": "a transformer of the diffusers library (DiT, PixArt, Flux), which works on "
    "latents",
    r"^double_blocks\.": "a transformer for flows of latents (Flux)",
    r"\.lora_|^lora_": "an adapter (LoRA), which needs the model that it changes",
    r"^(?:down_blocks|mid_block|up_blocks)\.": "a network of the diffusers library",
}
"""Other kinds of model, by a tensor that only they have."""


def multiplier(width: int, channels: int) -> float:
    found = width / channels
    return found if int(found * channels) == width else math.nextafter(found, math.inf)


def look(state: Mapping[str, Tensor], source: str) -> Shapes:
    """Infer a network's properties from the shapes in `state`."""
    if ENTER in state and state[ENTER].ndim == 2:
        raise BundleInvalid(
            f"{source}: it is the public code's network for points",
            hint="import it with --synthetic",
            facts={"field": ENTER},
        )
    _refuse_other_families(state, source)
    for key, ndim in ((ENTER, 4), (TIME, 2)):
        if key not in state or state[key].ndim != ndim:
            raise refused(source, key, "the tensor is missing or has another number of dimensions")
    down, up = _blocks(state, "input_blocks"), _blocks(state, "output_blocks")
    if len(down) < 2 or not down[1].width:
        raise refused(source, "input_blocks.1.0.in_layers.2.weight", "the tensor is missing")
    classifier = not up
    out_channels, pool = _head(state, source) if classifier else (_length(state, "out.2.weight", source), "")
    layouts = tuple(layout for layout in _layouts(down, up) if _fits(down, layout))
    if not layouts:
        raise refused(source, "input_blocks", "its blocks are no levels of equally many residual blocks")
    return Shapes(
        classifier,
        state[ENTER].shape[1],
        out_channels,
        state[TIME].shape[1],
        len(state[LABELS]) if LABELS in state else None,
        pool,
        state[POSITIONS].shape[-1] - 1 if POSITIONS in state else 0,
        down,
        layouts,
    )


def _blocks(state: Mapping[str, Tensor], way: str) -> tuple[Block, ...]:
    """The blocks `way`.0, `way`.1, ...; one without tensors (pooling) is there, empty."""
    layers: dict[int, dict[int, set[str]]] = {}
    for key in state:
        name, _, rest = key.partition(".")
        parts = rest.split(".", 2)
        if name == way and len(parts) == 3 and parts[0].isdigit() and parts[1].isdigit():
            layers.setdefault(int(parts[0]), {}).setdefault(int(parts[1]), set()).add(parts[2])
    return tuple(_block(state, f"{way}.{i}", layers.get(i, {})) for i in range(max(layers, default=-1) + 1))


def _block(state: Mapping[str, Tensor], name: str, layers: Mapping[int, set[str]]) -> Block:
    residual = state.get(f"{name}.0.in_layers.2.weight")
    projection = state.get(f"{name}.0.emb_layers.1.weight")
    width, enters = residual.shape[:2] if residual is not None else (0, 0)
    resamples = ""
    if any(tensors & {"op.weight", "conv.weight"} for tensors in layers.values()):
        resamples = "convolution"
    if any("in_layers.2.weight" in tensors for index, tensors in layers.items() if index > 0):
        resamples = "residual"
    return Block(
        width,
        enters,
        any("qkv.weight" in tensors for tensors in layers.values()),
        projection is not None and len(projection) == 2 * width,
        resamples,
    )


def _layouts(down: tuple[Block, ...], up: tuple[Block, ...]) -> list[Layout]:
    """The ways in which n = levels x (residual blocks + 1) blocks can be levels."""
    count = len(down)
    residual = sum(block.resamples == "residual" for block in up)
    changes = [i for i, block in enumerate(down) if i and not block.width]
    if changes:
        learned = any(down[i].resamples for i in changes)
        return _of_levels(count, len(changes) + 1, updown=False, learned=learned)
    if up:
        return _of_levels(count, residual + 1, updown=True if residual else None)
    # Half a UNet in which residual blocks resample: they look like the others.
    some = [layout for levels in range(2, count) for layout in _of_levels(count, levels, updown=True)]
    return _of_levels(count, 1, updown=None) + some


def _of_levels(count: int, levels: int, *, updown: bool | None, learned: bool = True) -> list[Layout]:
    blocks, rest = divmod(count, levels)
    return [] if rest or blocks < 2 else [Layout(levels, blocks - 1, updown, learned)]


def _fits(down: tuple[Block, ...], layout: Layout) -> bool:
    """Whether each level has one width and attends in all of its blocks or in none, and nothing else does."""
    size = layout.num_res_blocks + 1
    for level in range(layout.levels):
        inside = down[1 + level * size : (level + 1) * size]
        if len({(block.width, block.attention) for block in inside}) != 1 or not inside[0].width:
            return False
        if level + 1 < layout.levels:
            change = down[(level + 1) * size]
            if change.attention or bool(change.width) != bool(layout.resblock_updown):
                return False
            if change.width and not change.width == change.enters == inside[0].width:
                return False
    return True


def _head(state: Mapping[str, Tensor], source: str) -> tuple[int, str]:
    """Number of classes, and how a classifier pools."""
    if POSITIONS in state:
        return _length(state, "out.2.c_proj.weight", source), "attention"
    first = state.get("out.0.weight")
    if first is not None and first.ndim == 1:
        return _length(state, "out.3.weight", source), "adaptive"
    if "out.1.weight" in state:
        return _length(state, "out.3.weight", source), "spatial_v2"
    return _length(state, "out.2.weight", source), "spatial"


def _length(state: Mapping[str, Tensor], key: str, source: str) -> int:
    if key not in state or state[key].ndim < 2:
        raise refused(source, key, "the tensor is missing or has another number of dimensions")
    return len(state[key])


def _refuse_other_families(state: Mapping[str, Tensor], source: str) -> None:
    for pattern, kind in _FAMILIES.items():
        key = next((key for key in state if re.search(pattern, key)), None)
        if key is not None:
            raise BundleInvalid(
                f"{source}: by {key[:100]} it is {kind}",
                hint="UNets of pixels are read: guided-diffusion's, or with --diffusers DIR, the folder that holds "
                "config.json and the scheduler, a UNet2DModel or DiT of pixels",
                facts={"field": key[:100]},
            )


def refused(source: str, key: str, problem: str) -> BundleInvalid:
    """The error for a file that is not such a network."""
    return BundleInvalid(
        f"{source}: {key}: {problem}",
        hint="this importer reads the public code's UNet and noisy classifier; check that the file is one",
        facts={"field": key[:100]},
    )


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
    for key, problem in misfits(network, checkpoint.state):
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
    facts: list[Fact] = field(default_factory=list)

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
