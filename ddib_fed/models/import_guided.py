"""Imports checkpoints of guided-diffusion and of the public DDIB code: UNets, noisy classifiers and 2-D networks.

A network is inferred by trial: of the configurations that the first tensors allow, the one whose network has exactly
the tensors of the file. What shapes leave open comes from the flags that it was trained with, or the public defaults.
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
from ddib_fed.models.bundle import Bundle, make_bundle, misfits
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
from ddib_fed.models.units import Normalisation
from ddib_fed.models.weights import Fact, Imported, import_note, read_checkpoint, read_tensors
from ddib_fed.networks.config import ClassifierConfig, SyntheticConfig, UNetConfig

PictureConfig = UNetConfig | ClassifierConfig
ENTER = "input_blocks.0.0.weight"
FIRST = "input_blocks.1.0.in_layers.2.weight"
TIME = "time_embed.0.weight"
LABELS = "label_emb.weight"
POSITIONS = "out.2.positional_embedding"
SHAPES = "shapes"
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
    for key, problem in misfits(settled.network, checkpoint.state):  # values that are not finite
        raise refused(str(path), key, problem)
    taken = [f"{fact.key} {fact.value}" for fact in settled.facts if fact.basis.startswith("public default")]
    trust = (
        f"without --flags these settings are public defaults, not confirmed by tensors: {', '.join(taken)}; where the "
        "model was trained with others, its results are wrong without an error"
    )
    warnings = (trust,) if taken and not given.line else ()
    network, said = settled.network, f", flags {given.line}" if given.line else ""
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
        training=Training(command=f"imported from {path.name}{said}"[:2000], steps=checkpoint.steps),
    )
    return Imported(manifest, checkpoint.state, settled.facts, given.ignored, checkpoint.remarks, warnings)


@dataclass(frozen=True, slots=True)
class Settled:
    network: PictureConfig
    parameterisation: Parameterisation
    schedule: ScheduleConfig
    facts: tuple[Fact, ...]


def settle(state: Mapping[str, Tensor], flags: Flags, *, classifier: bool, source: str) -> Settled:
    """Infer the network of `state` from names and shapes alone, and the rest from flags."""
    inferred = infer(state, flags, source)
    if isinstance(inferred, ClassifierConfig) != classifier:
        what, hint = (
            ("a model that makes pictures", "leave --classifier out")
            if classifier
            else ("a classifier", "add --classifier")
        )
        raise SettingsInvalid(f"{source}: by its tensors it is {what}", hint=hint)
    origins = _Origins(flags)
    size = origins.image_size(inferred)
    origins.check(inferred, size)
    fields: dict[str, Any] = {"image_size": size, "num_head_channels": CLASSIFIER_HEAD_CHANNELS}
    if classifier:
        origins.note("num_head_channels", CLASSIFIER_HEAD_CHANNELS, "public default")
    else:
        fields["num_head_channels"] = by_width = origins.flag("num_head_channels")
        open_ = ("num_heads", "num_heads_upsample") if by_width == -1 else ()
        fields |= {key: origins.flag(key) for key in (*open_, "use_new_attention_order", "dropout")}
    name, steps, rescaled = map(origins.flag, ("noise_schedule", "diffusion_steps", "rescale_timesteps"))
    if name not in {"linear", "cosine"}:
        raise SettingsInvalid(
            f"the public code has no noise_schedule {name!r}",
            hint="linear or cosine",
            facts={"field": "noise_schedule"},
        )
    schedule = ScheduleConfig(str(name), int(str(steps)), bool(rescaled))
    schedule_from_config(schedule)
    try:
        network = type(inferred).model_validate({**inferred.model_dump(), **fields})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise SettingsInvalid(
            f"{source}: no network has these settings: {problem.removeprefix('Value error, ')}",
            hint="say by --flags what the list of public defaults has wrong, e.g. --num_head_channels 64",
        ) from error
    predicts_x0 = not classifier and bool(origins.flag("predict_xstart"))
    return Settled(network, "x0" if predicts_x0 else "eps", schedule, tuple(origins.facts))


def infer(state: Mapping[str, Tensor], flags: Flags, source: str) -> PictureConfig:
    """The configuration whose network has the tensors of `state`; image size and heads are no more than possible."""
    if ENTER in state and state[ENTER].ndim == 2:
        raise BundleInvalid(
            f"{source}: it is the public code's network for points",
            hint="import it with --synthetic",
            facts={"field": ENTER},
        )
    for pattern, kind in _FAMILIES.items():
        key = next((key for key in state if re.search(pattern, key)), None)
        if key is not None:
            raise BundleInvalid(
                f"{source}: by {key[:100]} it is {kind}",
                hint="UNets of pixels are read: guided-diffusion's, or the folder of diffusers that holds "
                "config.json and the scheduler, a UNet2DModel or DiT of pixels",
                facts={"field": key[:100]},
            )
    for key, ndim in ((ENTER, 4), (TIME, 2), (FIRST, 4)):
        if key not in state or state[key].ndim != ndim:
            raise refused(source, key, "the tensor is missing or has another number of dimensions")
    if (channels := state[ENTER].shape[1]) not in {1, 3}:
        problem = f"it takes {channels} channels, pictures have 1 (grey) or 3 (colour)"
        raise refused(source, ENTER, f"{problem}; upsamplers and latent models are others")
    bare = {key: tensor.to("meta") for key, tensor in state.items()}
    tried = [(config, list(misfits(config, bare))) for config in _candidates(bare)]
    fitting = [config for config, wrong in tried if not wrong]
    size = flags.given.get("image_size")
    if POSITIONS in state and isinstance(size, int):
        fitting = [config for config in fitting if config.image_size == size] or fitting
    if not tried:
        raise refused(source, "input_blocks", "its blocks are no levels of equally many residual blocks")
    if not fitting:
        raise refused(source, *min((wrong for _, wrong in tried), key=len)[0])
    depth, _ = flags.get("classifier_depth")
    chosen = [config for config in fitting if len(fitting) == 1 or config.num_res_blocks == depth]
    if not chosen:
        depths = " or ".join(str(config.num_res_blocks) for config in fitting)
        raise SettingsInvalid(
            f"the shapes leave open whether each level has {depths} residual blocks",
            hint="say it by --flags '--classifier_depth N'",
            facts={"field": "classifier_depth"},
        )
    return chosen[0]


def _candidates(state: Mapping[str, Tensor]) -> Iterator[PictureConfig]:
    """A configuration for each way to divide the blocks of the down path into levels."""
    count = 1 + max(int(key.split(".")[1]) for key in state if re.match(r"input_blocks\.\d+\.", key))
    channels = state[TIME].shape[1]
    classifier = not any(key.startswith("output_blocks.") for key in state)
    for depth in range(1, count):
        levels, rest = divmod(count, depth + 1)
        firsts = [f"input_blocks.{1 + level * (depth + 1)}" for level in range(levels)]
        widths = [state.get(f"{first}.0.in_layers.2.weight") for first in firsts]
        if rest or None in [None if width is None else 0 for width in widths]:
            continue
        change = f"input_blocks.{depth + 1}.0"
        projection = state.get("input_blocks.1.0.emb_layers.1.weight")
        fields: dict[str, Any] = {
            "image_size": 2 ** (levels - 1),
            "in_channels": state[ENTER].shape[1],
            "model_channels": channels,
            "num_res_blocks": depth,
            "num_head_channels": 1,
            "attention_resolutions": tuple(
                2**level for level, first in enumerate(firsts) if f"{first}.1.qkv.weight" in state
            ),
            "channel_mult": tuple(multiplier(len(width), channels) for width in widths if width is not None),
            "conv_resample": levels == 1
            or f"{change}.op.weight" in state
            or f"{change}.in_layers.2.weight" in state,
            "use_scale_shift_norm": projection is not None and len(projection) == 2 * len(state[FIRST]),
            "resblock_updown": levels > 1 and f"{change}.in_layers.2.weight" in state,
        }
        if classifier:
            if POSITIONS in state:
                fields["image_size"] *= math.isqrt(state[POSITIONS].shape[-1] - 1)
            head, fields["pool"] = _head(state)
        else:
            head = "out.2.weight"
            fields["num_classes"] = len(state[LABELS]) if LABELS in state else None
        try:
            fields["out_channels"] = len(state[head])
            yield (ClassifierConfig if classifier else UNetConfig).model_validate(fields)
        except (KeyError, ValidationError):
            continue


def _head(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """The tensor with a row for each class of a classifier, and how it pools."""
    if POSITIONS in state:
        return "out.2.c_proj.weight", "attention"
    if "out.0.weight" in state and state["out.0.weight"].ndim == 1:
        return "out.3.weight", "adaptive"
    return ("out.3.weight", "spatial_v2") if "out.1.weight" in state else ("out.2.weight", "spatial")


def refused(source: str, key: str, problem: str) -> BundleInvalid:
    return BundleInvalid(
        f"{source}: {key}: {problem}",
        hint="this importer reads the public code's UNet, noisy classifier and (--synthetic) 2-D network; check that "
        "the file is one",
        facts={"field": key[:100]},
    )


@dataclass(slots=True)
class _Origins:
    """Where each setting is from."""

    flags: Flags
    facts: list[Fact] = field(default_factory=list)

    def note(self, key: str, value: Value, basis: str) -> None:
        self.facts.append(Fact(key, written(value), basis))

    def flag(self, key: str) -> Value:
        """The value of a flag, or its public default."""
        value, basis = self.flags.get(key)
        self.note(key, value, basis)
        return value

    def image_size(self, found: PictureConfig) -> int:
        """Size of the pictures: by the table of positions or the flag, else by the usual multipliers, or by default."""
        size, basis = DEFAULTS["image_size"], "public default"
        for usual, multipliers in CHANNEL_MULT.items():
            if found.channel_mult == multipliers:
                size, basis = usual, "public default for these channel multipliers"
        if "image_size" in self.flags.given:
            size, basis = self.flags.given["image_size"], "--flags"
        if isinstance(found, ClassifierConfig) and found.pool == "attention":
            size, basis = found.image_size, SHAPES
        self.note("image_size", size, basis)
        assert isinstance(size, int)
        if size < found.divisor or size % found.divisor:
            raise SettingsInvalid(
                f"image_size {size} does not divide by {found.divisor}, as the model's {len(found.channel_mult)} "
                "levels need",
                hint="say the size that it was trained for by --flags '--image_size N'",
                facts={"field": "image_size"},
            )
        return size

    def check(self, found: PictureConfig, size: int) -> None:
        """List the settings from shapes; refuse the first flag that contradicts them."""
        seen: dict[str, Value] = {"in_channels": found.in_channels, "channel_mult": found.channel_mult}
        if isinstance(found, ClassifierConfig):
            prefix = "classifier_"
            seen |= {
                "out_channels": found.out_channels,
                "classifier_width": found.model_channels,
                "classifier_depth": found.num_res_blocks,
                "classifier_pool": found.pool,
            }
            if found.pool == "attention":
                seen["image_size"] = size
        else:
            prefix = ""
            seen |= {
                "num_channels": found.model_channels,
                "num_res_blocks": found.num_res_blocks,
                "class_cond": found.num_classes is not None,
                "learn_sigma": found.out_channels == 2 * found.in_channels,
            }
            if found.num_classes is not None:
                seen["num_classes"] = found.num_classes
        seen[f"{prefix}use_scale_shift_norm"] = found.use_scale_shift_norm
        if len(found.channel_mult) > 1:
            seen[f"{prefix}resblock_updown"] = found.resblock_updown
        attention = f"{prefix}attention_resolutions"
        seen[attention] = tuple(
            size // factor for factor in sorted(found.attention_resolutions, reverse=True)
        )
        self.facts += [
            Fact(key, written(value), SHAPES) for key, value in seen.items() if key != "image_size"
        ]
        levels = {size // 2**level for level in range(len(found.channel_mult))}

        def plain(key: str, value: Value) -> object:
            if not isinstance(value, tuple):
                return value
            if key == attention:  # resolutions that no level has are without effect
                return levels & set(value)
            return tuple(int(part * found.model_channels) for part in value)

        for key, value in self.flags.given.items():
            if key in seen and plain(key, seen[key]) != plain(key, value):
                raise SettingsInvalid(
                    f"the flag --{key} {written(value)} contradicts the tensors, which say {written(seen[key])}",
                    hint="correct the flag, or leave it out: what shapes tell is inferred",
                    facts={"field": key},
                )


def import_synthetic(
    path: Path,
    *,
    domain: str,
    name: str = "",
    noise_schedule: str = "linear",
    diffusion_steps: int = 4000,
    rescale_timesteps: bool = False,
    predict_xstart: bool = False,
    normalisation: Normalisation | None = None,
) -> Bundle:
    """A bundle of the public code's 2-D checkpoint (`SyntheticModel`)."""
    schedule = ScheduleConfig(noise_schedule, diffusion_steps, rescale_timesteps)
    schedule_from_config(schedule)
    state, source = read_checkpoint(path).state, str(path)
    for key in (ENTER, "out.2.weight"):
        if key not in state or state[key].ndim != 2:
            raise refused(source, key, "the tensor is missing or has another number of dimensions")
    num_channels, in_channels = state[ENTER].shape
    try:
        network = SyntheticConfig(
            in_channels=in_channels,
            out_channels=len(state["out.2.weight"]),
            num_channels=num_channels,
            num_res_blocks=len({key.split(".")[2] for key in state if key.startswith("input_blocks.1.")}),
        )
    except ValidationError as error:
        raise refused(source, ENTER, "no network of this kind has these sizes") from error
    for key, problem in misfits(network, state):
        raise refused(source, key, problem)
    manifest = Manifest(
        name=name or path.stem,
        domain=domain,
        sample_shape=(in_channels,),
        network=network,
        parameterisation="x0" if predict_xstart else "eps",
        time_input="timestep",
        schedule=schedule,
        normalisation=normalisation or Normalisation(),
        training=Training(command=f"imported from a public checkpoint, {path.name}"[:2000]),
    )
    return make_bundle(manifest, state, source=source)
