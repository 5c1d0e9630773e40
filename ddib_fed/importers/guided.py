"""Reads checkpoints of guided-diffusion and of the public DDIB code: UNets, noisy classifiers and 2-D networks.

A picture network is that of its MODEL_FLAGS, or of the defaults of guided_diffusion/script_util.py, and the file must
have exactly its tensors. An unknown flag is refused; one that describes no weights is listed as not used.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import ValidationError
from torch import Tensor

from ddib_fed.errors import SettingsInvalid
from ddib_fed.files import first_problem
from ddib_fed.importing import (
    ClassifierConfig,
    Fact,
    Imported,
    ImportOptions,
    Manifest,
    Parameterisation,
    ScheduleConfig,
    SyntheticConfig,
    Training,
    UNetConfig,
    import_note,
    read_tensors,
    refused,
    require_fit,
)

uses: Final = ("flags", "classifier", "synthetic", "fit", "intensity", "soften_sigma")
Value = str | int | float | bool | tuple[int | float, ...]
Table = Mapping[str, Value]  # flags with the public code's defaults, whose types are those of the values

BOTH: Table = {
    "image_size": 64,
    "in_channels": 3,
    "channel_mult": (),  # by the size of the pictures
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "rescale_timesteps": False,
}
MODEL: Table = {
    "num_channels": 128, "num_res_blocks": 2, "num_heads": 4, "num_heads_upsample": -1,
    "num_head_channels": -1, "attention_resolutions": (16, 8), "num_classes": 1000, "class_cond": False,
    "learn_sigma": False, "use_scale_shift_norm": True, "resblock_updown": False,
    "use_new_attention_order": False, "dropout": 0.0, "predict_xstart": False,
}  # fmt: skip
CLASSIFIER: Table = {
    "out_channels": 1000, "classifier_width": 128, "classifier_depth": 2,
    "classifier_attention_resolutions": (32, 16, 8), "classifier_use_scale_shift_norm": True,
    "classifier_resblock_updown": True, "classifier_pool": "attention",
}  # fmt: skip
SAMPLING: Table = {
    "diffusion_steps": 1000, "noise_schedule": "linear", "timestep_respacing": "", "eta": 0.0,
    "use_ddpm": False, "use_ddim": True, "clip_denoised": True,
}  # fmt: skip
UNCONFIRMED = frozenset({
    "image_size", "diffusion_steps", "noise_schedule", "rescale_timesteps", "num_heads", "num_heads_upsample",
    "num_head_channels", "use_new_attention_order", "dropout", "predict_xstart",
})  # fmt: skip
"""Settings that no tensor tells."""
CLASSIFIER_HEAD_CHANNELS = 64  # classifiers are always built with heads of so many channels
CHANNEL_MULT: Mapping[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
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


class Flags(NamedTuple):
    given: Mapping[str, Value]
    ignored: Mapping[str, str]
    line: str = ""


def parse_flags(line: str, *, classifier: bool = False) -> Flags:
    """Parse the flags of a line such as the README's MODEL_FLAGS, with or without the variable's name."""
    wanted = {**BOTH, **(CLASSIFIER if classifier else MODEL)}
    other, whose = (MODEL, "of the model that it guides") if classifier else (CLASSIFIER, "of the classifier")
    values: dict[str, Value] = {}
    ignored: dict[str, str] = {}
    for key, text in _pairs(line):
        if key in wanted:
            values.pop(key, None)  # as on a command line, the last one counts
            if text:  # an empty one, as --channel_mult "", is the default
                values[key] = _value(key, text, wanted[key])
        elif key in other:
            ignored[key] = whose
        elif key in ELSEWHERE:
            ignored[key] = "it does not describe the weights"
        else:
            raise _unknown(key)
    return Flags(values, ignored, line.strip())


def parse_sampling(line: str) -> dict[str, Value]:
    """Parse the flags of a line that say how to sample; the public code's others are passed over."""
    values: dict[str, Value] = {}
    for key, text in _pairs(line):
        if key in SAMPLING:
            values[key] = _value(key, text, SAMPLING[key])
        elif key not in {*BOTH, *MODEL, *CLASSIFIER, *ELSEWHERE}:
            raise _unknown(key)
    return values


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
            problem = f"the flags cannot be read at {word!r}"
            raise SettingsInvalid(problem, hint="write --key value, as in the public README")
        value = text if equals else next(rest, None)
        if value is None or (not equals and value.startswith("--")):
            raise SettingsInvalid(f"the flag --{key} has no value", facts={"field": key[:40]})
        yield key.replace("-", "_"), value


_BOOLEANS = {
    **dict.fromkeys(("yes", "true", "t", "y", "1"), True),
    **dict.fromkeys(("no", "false", "f", "n", "0"), False),
}


def _value(key: str, text: str, default: Value) -> Value:
    """Parse the value in `text`, of the type of the flag's default."""
    try:
        if isinstance(default, bool):
            return _BOOLEANS[text.lower()]
        if isinstance(default, tuple):
            parts = (part.strip() for part in text.split(",") if part)
            return tuple(float(part) if "." in part else int(part) for part in parts)
        return type(default)(text)
    except (ValueError, KeyError) as error:
        problem, hint = f"the flag --{key} cannot be {text!r}", "write it as for the public code"
        raise SettingsInvalid(problem, hint=hint, facts={"field": key}) from error


def _unknown(key: str) -> SettingsInvalid:
    problem, hint = f"the public code has no flag --{key}", "leave it out"
    if key in UPSAMPLERS:
        problem = f"the flag --{key} belongs to an upsampler, which needs a small picture beside the noise"
        hint = "import the model that makes pictures, not its upsampler"
    elif near := difflib.get_close_matches(key, [*BOTH, *MODEL, *CLASSIFIER, *ELSEWHERE], 1):
        hint = f"did you mean --{near[0]}?"
    return SettingsInvalid(problem, hint=hint, facts={"field": key[:40]})


def written(value: Value) -> str:
    if isinstance(value, tuple):
        return ",".join(f"{part:g}" for part in value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


ENTER = "input_blocks.0.0.weight"
LABELS = "label_emb.weight"
OTHERS = {
    r"adaLN_modulation|transformer_blocks\.|^double_blocks\.": "a diffusion transformer, which works on latents",
    r"^(?:model\.diffusion_model|first_stage_model|cond_stage_model)\.": "a checkpoint of latent diffusion",
    r"\.lora_|^lora_": "an adapter (LoRA), which needs the model that it changes",
    r"^(?:conv_in\.conv|out\.2\.conv|(?:en|de)coder\.blocks|diffusion_model|autoencoder)\.": "a network of MONAI: name "
    "the folder that holds it and its configuration",
    r"^(?:down_blocks|mid_block|up_blocks)\.": "a network of the diffusers library",
}
"""Other kinds of model, by a tensor that only they have."""


def recognises(path: Path) -> bool:
    """Return whether it may be a file; `read` raises what is wrong with it."""
    return not path.is_dir()


def read(path: Path, options: ImportOptions) -> Imported:
    """Read a UNet or a noisy classifier, or with `synthetic` the network of points."""
    if options.synthetic:
        return _read_points(path, options)
    classifier, parsed = options.classifier, parse_flags(options.flags, classifier=options.classifier)
    checkpoint = read_tensors(path)
    settled = settle(checkpoint.state, parsed, classifier=classifier, source=str(path))
    network = settled.network
    taken = [f"{fact.key} {fact.value}" for fact in settled.facts if fact.basis == "public default"]
    trust = (
        f"without --flags these settings are public defaults, not confirmed by tensors: {', '.join(taken)}; where the "
        "model was trained with others, its results are wrong without an error"
    )
    warnings = (trust,) if taken and not parsed.line else ()
    said = f", flags {parsed.line}" if parsed.line else ""
    manifest = Manifest(
        name=(options.name or path.stem)[:100],
        domain=options.domain,
        role="classifier" if classifier else "generator",
        sample_kind="picture",
        sample_shape=(network.in_channels, network.image_size, network.image_size),
        network=network,
        time_input="timestep",
        value_range=(-1.0, 1.0),
        parameterisation=settled.parameterisation,
        schedule=settled.schedule,
        soften_sigma=options.soften_sigma or 0.0,
        picture=options.picture(),
        data=import_note("the file", warnings),
        training=Training(command=f"imported from {path.name}{said}"[:2000], steps=checkpoint.steps),
    )
    return Imported(manifest, checkpoint.state, settled.facts, parsed.ignored, checkpoint.remarks, warnings)


class Settled(NamedTuple):
    network: UNetConfig | ClassifierConfig
    parameterisation: Parameterisation
    schedule: ScheduleConfig
    facts: tuple[Fact, ...]


def settle(state: Mapping[str, Tensor], flags: Flags, *, classifier: bool, source: str) -> Settled:
    """Return the network of the flags and the public defaults; raise unless `state` has its tensors."""
    _require_public_code(state, source)
    if classifier == any(key.startswith("output_blocks.") for key in state):
        what, hint = "a classifier", "add --classifier"
        if classifier:
            what, hint = "a model that makes pictures", "leave --classifier out"
        raise SettingsInvalid(f"{source}: by its tensors it is {what}", hint=hint)
    told: dict[str, Any] = {**BOTH, **(CLASSIFIER if classifier else MODEL)}
    told["in_channels"] = state[ENTER].shape[1]
    if LABELS in state:
        told["num_classes"] = len(state[LABELS])
    told |= flags.given
    told["channel_mult"] = told["channel_mult"] or CHANNEL_MULT.get(told["image_size"], CHANNEL_MULT[64])
    if told.get("num_head_channels", -1) != -1:  # heads by their width, not by their number
        told = {key: value for key, value in told.items() if not key.startswith("num_heads")}
    facts = []
    if not classifier and not told["class_cond"] and "num_classes" not in flags.given:
        told.pop("num_classes", None)
    for key, value in told.items():
        basis = "public default" if key in UNCONFIRMED else "public default, as in the tensors"
        facts.append(Fact(key, written(value), "--flags" if key in flags.given else basis))
    if told["noise_schedule"] not in {"linear", "cosine"}:
        problem = f"the public code has no noise_schedule {told['noise_schedule']!r}"
        raise SettingsInvalid(problem, hint="linear or cosine", facts={"field": "noise_schedule"})
    schedule = ScheduleConfig(told["noise_schedule"], told["diffusion_steps"], told["rescale_timesteps"])
    try:
        network = _network(told, classifier=classifier)
    except (ValidationError, ZeroDivisionError) as error:
        problem = first_problem(error)[1] if isinstance(error, ValidationError) else str(error)
        raise SettingsInvalid(
            f"{source}: no network has these settings: {problem}",
            hint="say by --flags what the list of public defaults has wrong, e.g. --num_head_channels 64",
        ) from error
    if network.image_size % network.divisor:
        raise SettingsInvalid(
            f"image_size {network.image_size} does not divide by {network.divisor}, as its levels need",
            hint="say the size that it was trained for by --flags '--image_size N'",
            facts={"field": "image_size"},
        )
    hint = "say by --flags what the network of this file was trained with: MODEL_FLAGS in the public README"
    require_fit(network, state, source, hint)
    predicts_x0 = not classifier and told["predict_xstart"]
    return Settled(network, "x0" if predicts_x0 else "eps", schedule, tuple(facts))


RENAMED = {
    "num_channels": "model_channels", "classifier_width": "model_channels", "classifier_depth": "num_res_blocks",
}  # fmt: skip
"""Flags whose arguments of the networks have other names; those of a classifier drop their prefix."""


def _network(told: Mapping[str, Any], *, classifier: bool) -> UNetConfig | ClassifierConfig:
    fields = {RENAMED.get(key, key.removeprefix("classifier_")): value for key, value in told.items()}
    fields["attention_resolutions"] = [fields["image_size"] // at for at in fields["attention_resolutions"]]
    kind: type[UNetConfig | ClassifierConfig] = ClassifierConfig if classifier else UNetConfig
    if classifier:
        fields["num_head_channels"] = CLASSIFIER_HEAD_CHANNELS
    else:
        fields["out_channels"] = told["in_channels"] * (2 if told["learn_sigma"] else 1)
        fields["num_classes"] = told["num_classes"] if told["class_cond"] else None
    return kind.model_validate({key: value for key, value in fields.items() if key in kind.model_fields})


USUAL = (
    "this importer reads the public code's UNet, noisy classifier and (--synthetic) 2-D network; check that the file "
    "is one"
)


def _require_public_code(state: Mapping[str, Tensor], source: str) -> None:
    """Raise BundleInvalid unless the tensors are of a picture network of the public code; name other kinds."""
    if ENTER in state and state[ENTER].ndim == 2:
        problem = "it is the public code's network for points"
        raise refused(source, ENTER, problem, "import it with --synthetic")
    for pattern, kind in OTHERS.items():
        key = next((key for key in state if re.search(pattern, key)), None)
        if key is not None:
            raise refused(
                source, key, f"by this tensor it is {kind}",
                "UNets of pixels are read: guided-diffusion's, or the folder of diffusers that holds config.json and "
                "the scheduler, a UNet2DModel of pixels",
            )  # fmt: skip
    if ENTER not in state or state[ENTER].ndim != 4:
        raise refused(source, ENTER, "the tensor is missing or has another number of dimensions", USUAL)
    if (channels := state[ENTER].shape[1]) not in {1, 3}:
        problem = f"it takes {channels} channels, pictures have 1 (grey) or 3 (colour)"
        raise refused(source, ENTER, f"{problem}; upsamplers and latent models are others", USUAL)


def _read_points(path: Path, options: ImportOptions) -> Imported:
    """Read the public code's 2-D checkpoint (`SyntheticModel`)."""
    options.refuse(("classifier", "fit", "intensity", "soften_sigma"), "does not go with --synthetic")
    settings: dict[str, Any] = {**BOTH, **MODEL, "diffusion_steps": 4000, **parse_flags(options.flags).given}
    schedule = ScheduleConfig(
        settings["noise_schedule"], settings["diffusion_steps"], settings["rescale_timesteps"]
    )
    state, source = read_tensors(path).state, str(path)
    for key in (ENTER, "out.2.weight"):
        if key not in state or state[key].ndim != 2:
            raise refused(source, key, "the tensor is missing or has another number of dimensions", USUAL)
    num_channels, in_channels = state[ENTER].shape
    try:
        network = SyntheticConfig(
            in_channels=in_channels,
            out_channels=len(state["out.2.weight"]),
            num_channels=num_channels,
            num_res_blocks=len({key.split(".")[2] for key in state if key.startswith("input_blocks.1.")}),
        )
    except ValidationError as error:
        raise refused(source, ENTER, "no network of this kind has these sizes", USUAL) from error
    require_fit(network, state, source, USUAL)
    steps = f"{schedule.name}, {schedule.steps} steps"
    warning = f"without --flags these are the public defaults, which no tensor confirms: {steps}"
    manifest = Manifest(
        name=(options.name or path.stem)[:100],
        domain=options.domain,
        sample_shape=(in_channels,),
        network=network,
        parameterisation="x0" if settings["predict_xstart"] else "eps",
        time_input="timestep",
        schedule=schedule,
        training=Training(command=f"imported from a public checkpoint, {path.name}"[:2000]),
    )
    return Imported(manifest, state, (), {}, (), () if options.flags else (warning,))
