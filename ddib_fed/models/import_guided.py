"""Imports checkpoints of guided-diffusion and of the public DDIB code: UNets, noisy classifiers and 2-D networks.

A network is inferred by trial: of the configurations that the first tensors allow, the one whose network has exactly
the tensors of the file. What shapes leave open comes from the flags that it was trained with (the README's
MODEL_FLAGS), or the defaults of guided_diffusion/script_util.py. Each setting is listed with its origin; a flag that
contradicts the shapes is refused, and so is one that the public code does not have.
"""

from __future__ import annotations

import difflib
import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError
from torch import Tensor

from ddib_fed.diffusion.denoiser import Parameterisation
from ddib_fed.diffusion.schedule import ScheduleConfig, schedule_from_config
from ddib_fed.errors import BundleInvalid, SettingsInvalid
from ddib_fed.models.bundle import Bundle, make_bundle, misfits
from ddib_fed.models.manifest import DataNote, Manifest, PictureFormat, Training
from ddib_fed.models.weights import Fact, Imported, import_note, read_tensors
from ddib_fed.networks.config import ClassifierConfig, SyntheticConfig, UNetConfig

PictureConfig = UNetConfig | ClassifierConfig
Value = str | int | float | bool | tuple[int, ...] | tuple[float, ...]
Kinds = Mapping[str, Callable[[str], Value]]


def _flag(text: str) -> bool:
    word = text.lower()
    if word not in {"yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"}:
        raise ValueError(text)
    return word in {"yes", "true", "t", "y", "1"}


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(",") if part)


BOTH: Kinds = {
    **dict.fromkeys(("image_size", "diffusion_steps", "in_channels"), int),
    "noise_schedule": str,
    "rescale_timesteps": _flag,
}
MODEL: Kinds = {
    **dict.fromkeys(("num_channels", "num_res_blocks", "num_heads", "num_heads_upsample"), int),
    **dict.fromkeys(("num_head_channels", "num_classes"), int),
    "attention_resolutions": _whole_numbers,
    "channel_mult": _numbers,
    "dropout": float,
    **dict.fromkeys(("class_cond", "learn_sigma", "predict_xstart", "use_scale_shift_norm"), _flag),
    **dict.fromkeys(("resblock_updown", "use_new_attention_order"), _flag),
}
CLASSIFIER: Kinds = {
    **dict.fromkeys(("out_channels", "classifier_width", "classifier_depth"), int),
    "classifier_attention_resolutions": _whole_numbers,
    **dict.fromkeys(("classifier_use_scale_shift_norm", "classifier_resblock_updown"), _flag),
    "classifier_pool": str,
}
SAMPLING: Kinds = {
    "diffusion_steps": int,
    **dict.fromkeys(("noise_schedule", "timestep_respacing"), str),
    "eta": float,
    **dict.fromkeys(("use_ddpm", "use_ddim", "clip_denoised"), _flag),
}
ELSEWHERE = (
    "use_fp16", "classifier_use_fp16", "batch_size", "num_samples", "classifier_scale", "source", "target",
    "base_samples", "model_path", "classifier_path", "val_dir", "data_dir", "val_data_dir", "use_checkpoint", "use_kl",
    "rescale_learned_sigmas", "schedule_sampler", "lr", "weight_decay", "lr_anneal_steps", "microbatch", "ema_rate",
    "log_interval", "save_interval", "resume_checkpoint", "fp16_scale_growth", "iterations", "anneal_lr", "noised",
    "eval_interval", "timestep_respacing", "eta", "use_ddpm", "use_ddim", "clip_denoised",
)  # fmt: skip
"""Flags of the public scripts that do not describe weights."""
UPSAMPLERS = ("large_size", "small_size")
DEFAULTS: Mapping[str, Value] = {
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "dropout": 0.0,
    "use_new_attention_order": False,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "predict_xstart": False,
    "rescale_timesteps": False,
}
DEFAULT_SIZE, DEFAULT_CLASSIFIER_DEPTH = 64, 2
CLASSIFIER_HEAD_CHANNELS = 64
"""Classifiers are always built with heads of so many channels."""
CHANNEL_MULT: Mapping[tuple[float, ...], int] = {
    (0.5, 1, 1, 2, 2, 4, 4): 512,
    (1, 1, 2, 2, 4, 4): 256,
    (1, 1, 2, 3, 4): 128,
}
"""Sizes of pictures by the multipliers that the public code has for them."""


class Flags(NamedTuple):
    given: Mapping[str, Value]
    ignored: Mapping[str, str]
    line: str = ""


def parse_flags(line: str, *, classifier: bool = False) -> Flags:
    """The flags of a line such as the README's MODEL_FLAGS, with or without the variable's name."""
    wanted = {**BOTH, **(CLASSIFIER if classifier else MODEL)}
    other, whose = (MODEL, "of the model that it guides") if classifier else (CLASSIFIER, "of the classifier")
    given: dict[str, Value] = {}
    ignored: dict[str, str] = {}
    for key, text in _pairs(line):
        if key in wanted:
            given.pop(key, None)  # as on a command line, the last one counts
            if text:  # an empty one, as --channel_mult "", is the default
                given[key] = _value(key, text, wanted[key])
        elif key in other:
            ignored[key] = whose
        elif key in ELSEWHERE:
            ignored[key] = "it does not describe the weights"
        else:
            raise _unknown(key)
    return Flags(given, ignored, line.strip())


def parse_sampling(line: str) -> dict[str, Value]:
    """The flags of a line that say how to sample; the public code's others are passed over."""
    given: dict[str, Value] = {}
    for key, text in _pairs(line):
        if key in SAMPLING:
            given[key] = _value(key, text, SAMPLING[key])
        elif key not in {*BOTH, *MODEL, *CLASSIFIER, *ELSEWHERE}:
            raise _unknown(key)
    allowed = {
        "eta": 0.0 <= float(str(given.get("eta", 0))) <= 1.0,
        "diffusion_steps": 2 <= int(str(given.get("diffusion_steps", 2))) <= 10_000,
        "noise_schedule": given.get("noise_schedule", "linear") in {"linear", "cosine"},
    }
    for key, is_allowed in allowed.items():
        if not is_allowed:
            raise SettingsInvalid(f"the flag --{key} cannot be {given[key]!r}", facts={"field": key})
    return given


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    try:
        words = shlex.split(re.sub(r"^\s*[A-Z_]*FLAGS=", "", line))
        words = shlex.split(words[0]) if len(words) == 1 else words  # a line that is quoted as a whole
    except ValueError as error:
        raise SettingsInvalid("the flags cannot be read: a quotation mark is not closed") from error
    rest = iter(words)
    for word in rest:
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise SettingsInvalid(
                f"the flags cannot be read at {word!r}", hint="write --key value, as in the public README"
            )
        value = text if equals else next(rest, None)
        if value is None or (not equals and value.startswith("--")):
            raise SettingsInvalid(f"the flag --{key} has no value", facts={"field": key[:40]})
        yield key.replace("-", "_"), value


def _value(key: str, text: str, parse: Callable[[str], Value]) -> Value:
    try:
        return parse(text)
    except ValueError as error:
        hint = "write it as for the public code"
        raise SettingsInvalid(
            f"the flag --{key} cannot be {text!r}", hint=hint, facts={"field": key}
        ) from error


def _unknown(key: str) -> SettingsInvalid:
    problem, hint = f"the public code has no flag --{key}", "leave it out"
    if key in UPSAMPLERS:
        problem = f"the flag --{key} belongs to an upsampler, which needs a small picture beside the noise"
        hint = "import the model that makes pictures, not its upsampler"
    elif near := difflib.get_close_matches(key, [*BOTH, *MODEL, *CLASSIFIER, *ELSEWHERE], n=1):
        hint = f"did you mean --{near[0]}?"
    return SettingsInvalid(problem, hint=hint, facts={"field": key[:40]})


def written(value: Value) -> str:
    """A value as written in a line of flags."""
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" for part in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


ENTER = "input_blocks.0.0.weight"
FIRST = "input_blocks.1.0.in_layers.2.weight"
TIME = "time_embed.0.weight"
LABELS = "label_emb.weight"
POSITIONS = "out.2.positional_embedding"
SHAPES = "shapes"
FAMILIES = {
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
    taken = [f"{fact.key} {fact.value}" for fact in settled.facts if fact.basis == "public default"]
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
        picture=PictureFormat(fit=fit),
        data=DataNote(note=import_note("the file", warnings)),
        training=Training(command=f"imported from {path.name}{said}"[:2000], steps=checkpoint.steps),
    )
    return Imported(manifest, checkpoint.state, settled.facts, given.ignored, checkpoint.remarks, warnings)


class Settled(NamedTuple):
    network: PictureConfig
    parameterisation: Parameterisation
    schedule: ScheduleConfig
    facts: tuple[Fact, ...]


def settle(state: Mapping[str, Tensor], flags: Flags, *, classifier: bool, source: str) -> Settled:
    """Infer the network of `state` from names and shapes alone, and the rest from flags."""
    inferred = infer(state, flags, source)
    if isinstance(inferred, ClassifierConfig) != classifier:
        what, hint = "a classifier", "add --classifier"
        if classifier:
            what, hint = "a model that makes pictures", "leave --classifier out"
        raise SettingsInvalid(f"{source}: by its tensors it is {what}", hint=hint)
    size, basis = _image_size(inferred, flags)
    facts = [Fact("image_size", str(size), basis)]
    seen = _told_by_shapes(inferred, size)
    facts += [Fact(key, written(value), SHAPES) for key, value in seen.items()]
    _refuse_contradiction(inferred, flags, {**seen, "image_size": size}, size)

    def flag(key: str) -> Any:
        """The value of a flag, or its public default."""
        value, basis = (
            (flags.given[key], "--flags") if key in flags.given else (DEFAULTS[key], "public default")
        )
        facts.append(Fact(key, written(value), basis))
        return value

    fields: dict[str, Any] = {"image_size": size, "num_head_channels": CLASSIFIER_HEAD_CHANNELS}
    if classifier:
        facts.append(Fact("num_head_channels", str(CLASSIFIER_HEAD_CHANNELS), "public default"))
    else:
        fields["num_head_channels"] = by_width = flag("num_head_channels")
        unless = ("num_heads", "num_heads_upsample") if by_width == -1 else ()
        fields |= {key: flag(key) for key in (*unless, "use_new_attention_order", "dropout")}
    name, steps, rescaled = map(flag, ("noise_schedule", "diffusion_steps", "rescale_timesteps"))
    if name not in {"linear", "cosine"}:
        problem = f"the public code has no noise_schedule {name!r}"
        raise SettingsInvalid(problem, hint="linear or cosine", facts={"field": "noise_schedule"})
    schedule = ScheduleConfig(name, steps, rescaled)
    schedule_from_config(schedule)
    try:
        network = type(inferred).model_validate({**inferred.model_dump(), **fields})
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]["msg"]
        raise SettingsInvalid(
            f"{source}: no network has these settings: {problem.removeprefix('Value error, ')}",
            hint="say by --flags what the list of public defaults has wrong, e.g. --num_head_channels 64",
        ) from error
    predicts_x0 = not classifier and flag("predict_xstart")
    return Settled(network, "x0" if predicts_x0 else "eps", schedule, tuple(facts))


def infer(state: Mapping[str, Tensor], flags: Flags, source: str) -> PictureConfig:
    """The configuration whose network has the tensors of `state`; image size and heads are no more than possible."""
    if ENTER in state and state[ENTER].ndim == 2:
        problem = f"{source}: it is the public code's network for points"
        raise BundleInvalid(problem, hint="import it with --synthetic", facts={"field": ENTER})
    for pattern, kind in FAMILIES.items():
        key = next((key for key in state if re.search(pattern, key)), None)
        if key is not None:
            raise BundleInvalid(
                f"{source}: by {key[:100]} it is {kind}",
                hint="UNets of pixels are read: guided-diffusion's, or the folder of diffusers that holds "
                "config.json and the scheduler, a UNet2DModel of pixels",
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
    if not tried:
        raise refused(source, "input_blocks", "its blocks are no levels of equally many residual blocks")
    fitting = [config for config, wrong in tried if not wrong]
    if not fitting:
        raise refused(source, *min((wrong for _, wrong in tried), key=len)[0])
    size = flags.given.get("image_size")
    if POSITIONS in state and isinstance(size, int):
        fitting = [config for config in fitting if config.image_size == size] or fitting
    depth = flags.given.get("classifier_depth", DEFAULT_CLASSIFIER_DEPTH)
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
        widths = [len(state.get(f"{first}.0.in_layers.2.weight", ())) for first in firsts]
        if rest or not all(widths):
            continue
        change = f"input_blocks.{depth + 1}.0"
        resampled = f"{change}.in_layers.2.weight" in state
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
            "channel_mult": tuple(_multiplier(width, channels) for width in widths),
            "conv_resample": levels == 1 or f"{change}.op.weight" in state or resampled,
            "use_scale_shift_norm": projection is not None and len(projection) == 2 * len(state[FIRST]),
            "resblock_updown": levels > 1 and resampled,
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


def _multiplier(width: int, channels: int) -> float:
    found = width / channels
    return found if int(found * channels) == width else math.nextafter(found, math.inf)


def _head(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """The tensor with a row for each class of a classifier, and how it pools."""
    if POSITIONS in state:
        return "out.2.c_proj.weight", "attention"
    if "out.0.weight" in state and state["out.0.weight"].ndim == 1:
        return "out.3.weight", "adaptive"
    return ("out.3.weight", "spatial_v2") if "out.1.weight" in state else ("out.2.weight", "spatial")


def _image_size(found: PictureConfig, flags: Flags) -> tuple[int, str]:
    """Size of the pictures, and its origin: the table of positions, a flag, the usual multipliers, or the default."""
    size, basis = flags.given.get("image_size"), "--flags"
    if isinstance(found, ClassifierConfig) and found.pool == "attention":
        size, basis = found.image_size, SHAPES
    elif not isinstance(size, int):
        size, basis = CHANNEL_MULT.get(found.channel_mult, DEFAULT_SIZE), "public default"
    if size < found.divisor or size % found.divisor:
        raise SettingsInvalid(
            f"image_size {size} does not divide by {found.divisor}, as the model's {len(found.channel_mult)} "
            "levels need",
            hint="say the size that it was trained for by --flags '--image_size N'",
            facts={"field": "image_size"},
        )
    return size, basis


def _told_by_shapes(found: PictureConfig, size: int) -> dict[str, Value]:
    """The flags that shapes tell."""
    told: dict[str, Value] = {"in_channels": found.in_channels, "channel_mult": found.channel_mult}
    prefix = ""
    if isinstance(found, ClassifierConfig):
        prefix = "classifier_"
        told |= {
            "out_channels": found.out_channels,
            "classifier_width": found.model_channels,
            "classifier_depth": found.num_res_blocks,
            "classifier_pool": found.pool,
        }
    else:
        told |= {
            "num_channels": found.model_channels,
            "num_res_blocks": found.num_res_blocks,
            "class_cond": found.num_classes is not None,
            "learn_sigma": found.out_channels == 2 * found.in_channels,
        }
        if found.num_classes is not None:
            told["num_classes"] = found.num_classes
    told[f"{prefix}use_scale_shift_norm"] = found.use_scale_shift_norm
    if len(found.channel_mult) > 1:
        told[f"{prefix}resblock_updown"] = found.resblock_updown
    factors = sorted(found.attention_resolutions, reverse=True)
    told[f"{prefix}attention_resolutions"] = tuple(size // factor for factor in factors)
    return told


def _refuse_contradiction(found: PictureConfig, flags: Flags, told: Mapping[str, Value], size: int) -> None:
    """Refuse the first flag that contradicts the shapes."""
    levels = {size // 2**level for level in range(len(found.channel_mult))}

    def meant(key: str, value: Value) -> object:
        if not isinstance(value, tuple):
            return value
        if key.endswith("attention_resolutions"):  # resolutions that no level has are without effect
            return levels & set(value)
        return tuple(int(part * found.model_channels) for part in value)

    for key, value in flags.given.items():
        if key in told and meant(key, told[key]) != meant(key, value):
            raise SettingsInvalid(
                f"the flag --{key} {written(value)} contradicts the tensors, which say {written(told[key])}",
                hint="correct the flag, or leave it out: what shapes tell is inferred",
                facts={"field": key},
            )


def refused(source: str, key: str, problem: str) -> BundleInvalid:
    return BundleInvalid(
        f"{source}: {key}: {problem}",
        hint="this importer reads the public code's UNet, noisy classifier and (--synthetic) 2-D network; check that "
        "the file is one",
        facts={"field": key[:100]},
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
) -> Bundle:
    """A bundle of the public code's 2-D checkpoint (`SyntheticModel`)."""
    schedule = ScheduleConfig(noise_schedule, diffusion_steps, rescale_timesteps)
    schedule_from_config(schedule)
    state, source = read_tensors(path).state, str(path)
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
        training=Training(command=f"imported from a public checkpoint, {path.name}"[:2000]),
    )
    return make_bundle(manifest, state, source=source)
