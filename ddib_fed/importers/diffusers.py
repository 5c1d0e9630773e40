"""Imports what diffusers' `save_pretrained` writes: unconditional pipelines of pixels or latents, and autoencoders.

Any other component (text encoder, LoRA) is refused by name, a setting that cannot be computed exactly by its key. Only
JSON and tensors are read; the library's own classes compute.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from pydantic import BaseModel, Field, JsonValue, StrictBool, ValidationError, field_validator
from pydantic_core.core_schema import ValidationInfo
from safetensors import SafetensorError, safe_open

from ddib_fed.errors import BundleInvalid, FileMissing, SettingsInvalid, extra
from ddib_fed.files import first_problem, parse_json, read_small
from ddib_fed.importers.latents import BETAS, PREDICTIONS, Foreign, Read, negated, step_schedule
from ddib_fed.importing import (
    Fact,
    Imported,
    ImportOptions,
    LibraryConfig,
    Normalisation,
    Parameterisation,
    ScheduleConfig,
    read_tensors,
    renamed,
    require_fit,
    schedule_from_config,
)

INDEX: Final = "model_index.json"
NETWORK: Final = "UNet2DModel"
TRANSFORMERS: Final = ("DiTTransformer2DModel", "Transformer2DModel")
AUTOENCODERS: Final = ("AutoencoderKL", "AutoencoderTiny", "VQModel")
COMPONENTS: Final = {
    "unet": (NETWORK,), "transformer": TRANSFORMERS, "vae": AUTOENCODERS, "vqvae": AUTOENCODERS,
}  # fmt: skip
WEIGHTS: Final = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
MAX_JSON_BYTES: Final = 4 << 20
_ADAPTER = re.compile(
    r"(?:.*(?<![fp])lora.*|adapter_model.*)\.(?:safetensors|bin|pt|pth)|adapter_config\.json", re.IGNORECASE
)
_ADAPTED = re.compile(r"(?:^|[._])(?:lora(?:[._]|$)|hada_w\d|lokr_w\d)", re.IGNORECASE)  # its tensors
uses: Final = ("fit", "soften_sigma", "scale_factor", "check", "size", "intensity")


def recognises(folder: Path) -> bool:
    """Return whether a folder is a pipeline, or a network, of the library."""
    if any((folder / name).is_file() for name in (INDEX, "unet/config.json", "transformer/config.json")):
        return True
    config = folder / "config.json"
    return config.is_file() and "_class_name" in _read_json(config)


def read(folder: Path, given: ImportOptions) -> Imported:
    """Read the model of a folder."""
    above = folder.resolve().parent
    whole = (folder / INDEX).is_file() or not (above / INDEX).is_file()
    if not whole:
        check_pipeline(above)
    index = check_pipeline(folder)
    inside = next((folder / name for name in COMPONENTS if (folder / name / "config.json").is_file()), folder)
    config = _read_json(inside / "config.json")
    if config.get("_class_name") in AUTOENCODERS:
        return _autoencoder(folder, inside, config, given)
    where = str(inside / "config.json")
    network, sides = network_config(config, where), _sides(config, where)
    levels = _scheduler(folder, above, whole=whole)
    schedule, prediction = levels.schedule, levels.prediction
    spread = (schedule.scale or 1.0) if schedule.name == "edm" else 1.0  # of the data in EDM's own units
    encoder = next(
        (folder / each for each in ("vae", "vqvae") if (folder / each / "config.json").is_file()), None
    )
    autoencoder, scale, moved, facts = None, None, (0.0, 1.0), list[Fact]()
    warnings = list[str]()
    if encoder is None and network.in_channels not in (1, 3):
        why = "pictures have 1 or 3; of latents, name the whole pipeline, with its vae/"
        raise _refused_key(where, config, "in_channels", why)
    if encoder is not None:
        settings = _read_json(encoder / "config.json")
        autoencoder = read_network(encoder, _config(settings, str(encoder / "config.json")))
        sides = tuple(side * autoencoder.network.divisor for side in sides)
        scale, moved, warnings = _latent_units(settings, str(encoder / "config.json"), index, spread)
        facts.append(Fact("autoencoder", autoencoder.network.name, f"{encoder.name}/config.json"))
    elif not index:
        warnings.append(
            f"there is no {INDEX}: whether the network belongs to a pipeline with an autoencoder, whose latents are no "
            "pictures, could not be checked"
        )
    facts.append(Fact("schedule", f"{schedule.name}, predicts {prediction}", "scheduler_config.json"))
    read, units = read_network(inside, network), Normalisation(std=spread if encoder is None else 1.0)
    if levels.negated:
        layer = LAST[network.name]
        if "Skip" in str(config.get("up_block_types")):
            raise _refused_key(
                where, config, "up_block_types", f"EDM needs minus the output, which is {layer}'s alone"
            )
        read = negated(read, layer)
        facts.append(Fact(layer, "negated", "EDM's network answers -v"))
    return Foreign(
        folder, given, autoencoder, read, sides, units, tuple(facts),
        tuple(warnings), schedule, prediction, scale, moved, given.picture(), _classes(index, network),
    ).imported()  # fmt: skip


def _autoencoder(folder: Path, inside: Path, config: Mapping[str, Any], given: ImportOptions) -> Imported:
    """Read an autoencoder alone; the scale of its latents belongs to a model of them."""
    read = read_network(inside, _config(config, str(inside / "config.json")))
    sides, basis = given.size, "--size"
    if sides is None:
        size = config.get("sample_size")
        sides, basis = (size if isinstance(size, int) else 256,) * 2, "config.json, or assumed: it takes any"
    facts = [
        Fact("autoencoder", read.network.name, "config.json"),
        Fact("size", "x".join(map(str, sides)), basis),
    ]
    if (scale := config.get("scaling_factor")) is not None:
        facts.append(Fact("scaling_factor", repr(scale), "config.json; kept by a model of its latents alone"))
    return Foreign(
        folder, given, read, None, sides, Normalisation(), tuple(facts), picture=given.picture()
    ).imported()


def _latent_units(
    source: Mapping[str, Any], where: str, index: Mapping[str, Any], spread: float
) -> tuple[Fact | None, tuple[Any, Any], list[str]]:
    """Return scale, mean and deviation of latents z in the ODE's units (z - mean) scale / deviation."""
    scale, shift = source.get("scaling_factor"), source.get("shift_factor")
    mean, deviation = source.get("latents_mean"), source.get("latents_std")
    if shift and mean:
        raise _refused_key(where, source, "shift_factor", "latents_mean is set too, and only one is read")
    warnings = []
    if shift or mean:
        warnings.append(
            f"{where}: latents are moved by {'shift_factor' if shift else 'latents_mean'}, which "
            f"{_word(index.get('_class_name') or 'the pipeline')} itself leaves out"
        )
    fact = None if scale is None else Fact("scale_factor", repr(float(scale)), f"scaling_factor of {where}")
    middle: Any = tuple(map(float, mean)) if mean else float(shift or 0.0)
    each = tuple(spread * float(number) for number in deviation or ())
    return fact, (middle, each or spread), warnings


def _classes(index: Mapping[str, Any], network: LibraryConfig) -> tuple[str, ...]:
    names = index.get("id2label")
    count = network.num_classes or 0
    if not isinstance(names, Mapping) or {str(number) for number in range(count)} - names.keys():
        return ()
    return tuple(str(names[str(number)])[:200] for number in range(count))


def read_network(inside: Path, config: LibraryConfig) -> Read:
    weights = next((inside / each for each in WEIGHTS if (inside / each).is_file()), None)
    if weights is None:
        raise FileMissing(
            f"{inside} has no {' or '.join(WEIGHTS)}",
            hint="copy the whole folder again; shards and variants such as fp16 are not read: load the model with the "
            "library and save it again (save_pretrained, max_shard_size='100GB')",
        )
    state = {
        key: tensor.flatten(2).squeeze(-1) if ".attentions." in key and tensor.ndim == 4 else tensor
        for key, tensor in renamed(read_tensors(weights).state, _new_name, weights).items()
    }
    hint = "config.json and the weights are not of one model: copy the whole folder again"
    require_fit(config, state, str(weights), hint)
    return Read(config, state, str(weights))


def check_pipeline(folder: Path) -> Mapping[str, Any]:
    """Return the index of a pipeline, empty without one; raise SettingsInvalid for components that are not read."""
    index = _read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    components: dict[str, str] = {}
    for path in sorted(folder.glob("*/config.json")):
        own = _read_json(path)
        kind = own.get("_class_name") or own.get("architectures")
        if kind:
            components[path.parent.name] = _word(kind)
    for name, value in index.items():
        if not name.startswith("_") and isinstance(value, list) and len(value) == 2 and value[1] is not None:
            components[name] = _word(value)
    for path in sorted((*folder.glob("*"), *folder.glob("*/*"))):
        if _ADAPTER.fullmatch(path.name) or _holds_adapter(path):
            raise SettingsInvalid(
                f"{path} is an adapter (LoRA): it changes what the network computes, and is not read",
                hint="merge it with the library (load_lora_weights, fuse_lora, save_pretrained), or move the file away",
                facts={"field": path.name[:100]},
            )
    others = {
        name: kind
        for name, kind in components.items()
        if name != "scheduler" and kind not in COMPONENTS.get(name, ())
    }
    if others:
        kind, parts = index.get("_class_name"), ", ".join(f"{name} ({kind})" for name, kind in others.items())
        raise SettingsInvalid(
            f"{folder}: {f'of {_word(kind)} ' if kind else ''}{parts} "
            f"{'belongs' if len(others) == 1 else 'belong'} to it and cannot be imported",
            hint=f"unconditional pipelines are read: {NETWORK} or {TRANSFORMERS[0]}, a scheduler, and of latents "
            f"{', '.join(AUTOENCODERS)}",
            facts={"field": next(iter(others))[:100]},
        )
    return index


def _holds_adapter(path: Path) -> bool:
    """Return whether a file of safetensors has tensors of an adapter; only its header is read."""
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="np") as opened:
            return any(_ADAPTED.search(name) for name in opened.keys())  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError):
        return False  # whoever reads it as weights says what is wrong


def _word(value: object) -> str:
    return str(value[-1] if isinstance(value, list) and value else value)[:80]


def _read_json(path: Path) -> Mapping[str, Any]:
    hint = "name the folder of the pipeline, with unet/ in it"
    try:
        read = parse_json(read_small(path, hint=hint, max_bytes=MAX_JSON_BYTES))
    except ValueError as error:
        raise BundleInvalid(f"{path}: it is not JSON", hint="copy it again") from error
    if not isinstance(read, dict):
        raise BundleInvalid(f"{path}: it is not a JSON object", hint="copy it again")
    return read


_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of the attention layers in older weights."""


def _new_name(key: str) -> str:
    if ".attentions." not in key:
        return key
    return re.sub(r"\.(query|key|value|proj_attn)\.(?=[^.]+$)", lambda old: f".{_OLD_NAMES[old[1]]}.", key)


SCHEDULERS = tuple(f"{name}Scheduler" for name in (
    "DDPM", "DDIM", "DDPMParallel", "DDIMParallel", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep",
    "DEISMultistep", "UniPCMultistep", "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete", "HeunDiscrete",
    "KDPM2Discrete", "KDPM2AncestralDiscrete",
))  # fmt: skip
OTHER_ENDS: Final = {name: {"beta_start": 0.00085, "beta_end": 0.012} for name in SCHEDULERS[-3:]}
"""Defaults of schedulers whose betas are not the usual ones."""
FLOW: Final = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
EDM: Final = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
LAST: Final = {NETWORK: "conv_out", TRANSFORMERS[0]: "proj_out_2"}  # linear layers that end the networks


class SchedulerFile(BaseModel):
    """What is read of a scheduler_config.json, with the library's defaults; other keys are of sampling."""

    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    num_train_timesteps: int = Field(1000, ge=1)
    beta_start: float = Field(0.0001, gt=0, allow_inf_nan=False, strict=True)
    beta_end: float = Field(0.02, gt=0, allow_inf_nan=False, strict=True)
    rescale_betas_zero_snr: StrictBool = False
    # What would give the network other times or levels than its betas imply.
    trained_betas: None = None
    use_flow_sigmas: Literal[False] = False
    timestep_type: Literal["discrete"] = "discrete"
    use_dynamic_shifting: Literal[False] = False

    @field_validator("rescale_betas_zero_snr")
    @classmethod
    def _of_linear_betas(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("beta_schedule") != "linear":
            raise ValueError("betas that end at no signal are read where they are linear")
        return value


class FlowFile(BaseModel):
    """Of flow matching; shifts and other spacings of the steps move no level: the network is told where it is."""

    num_train_timesteps: int = Field(1000, ge=1)
    invert_sigmas: Literal[False] = False


class EdmFile(BaseModel):
    """What is read of EDM's preconditioning; other keys space the steps of sampling."""

    sigma_min: float = Field(0.002, gt=0, allow_inf_nan=False, strict=True)
    sigma_max: float = Field(80.0, gt=0, allow_inf_nan=False, strict=True)
    sigma_data: float = Field(0.5, gt=0, allow_inf_nan=False, strict=True)
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"

    def schedule(self) -> ScheduleConfig:
        low, high = (math.log(self.sigma_data / sigma) for sigma in (self.sigma_max, self.sigma_min))
        return ScheduleConfig("edm", lambda_min=low, lambda_max=high, scale=self.sigma_data)


class Levels(NamedTuple):
    """A schedule, what the network predicts on it, and whether that is minus what it answers."""

    schedule: ScheduleConfig
    prediction: Parameterisation
    negated: bool = False


def _scheduler(folder: Path, above: Path, *, whole: bool) -> Levels:
    places = (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json")
    place = next((path for path in places if path.is_file()), None)
    if place is None:
        raise FileMissing(
            f"{folder} has no scheduler_config.json, which tells what the model was trained on",
            hint="copy the whole pipeline: unet/ and scheduler/"
            if whole
            else f"name the whole pipeline: ddib model import {shlex.quote(str(above))}",
        )
    return read_schedule(_read_json(place), str(place))


def read_schedule(source: Mapping[str, Any], where: str) -> Levels:
    kind = source.get("_class_name")
    try:
        if kind in FLOW:
            steps = FlowFile.model_validate(source).num_train_timesteps
            return Levels(ScheduleConfig("flow", scale=float(steps)), "flow")
        if kind in EDM:
            edm = EdmFile.model_validate(source)
            schedule_from_config(edm.schedule())
            return Levels(edm.schedule(), "v", edm.prediction_type == "epsilon")
        if kind not in SCHEDULERS:
            raise _refused_key(
                where, source, "_class_name", f"only {', '.join((*SCHEDULERS, *FLOW, *EDM))} are read"
            )
        levels = SchedulerFile.model_validate(OTHER_ENDS.get(kind, {}) | dict(source))
    except ValidationError as error:
        raise _refused_key(where, source, *first_problem(error)) from error
    name = "cosine" if levels.beta_schedule == "squaredcos_cap_v2" else BETAS[levels.beta_schedule]
    name = "zero-terminal-snr" if levels.rescale_betas_zero_snr else name
    schedule = step_schedule(name, levels.num_train_timesteps, (levels.beta_start, levels.beta_end))
    schedule_from_config(schedule)
    return Levels(schedule, PREDICTIONS[levels.prediction_type])


def _refused_key(where: str, source: Mapping[str, Any], key: str, why: str) -> SettingsInvalid:
    """Return the error for a setting in a file that cannot be computed exactly."""
    value = json.dumps(source.get(key.partition(".")[0]), default=str)[:80]
    return SettingsInvalid(
        f"{where}: {key} is {value}: {why}",
        hint="the model cannot be computed exactly here: import another, or train one",
        facts={"field": key[:100]},
    )


def network_config(source: Mapping[str, Any], where: str) -> LibraryConfig:
    kind = source.get("_class_name")
    if kind not in (NETWORK, *TRANSFORMERS):
        raise _refused_key(where, source, "_class_name", f"only {NETWORK} and {TRANSFORMERS[0]} are read")
    if source.get("class_embed_type") is not None:
        raise _refused_key(where, source, "class_embed_type", "classes are numbers here")
    if source.get("time_embedding_type", "positional") != "positional":
        raise _refused_key(where, source, "time_embedding_type", "positional ones alone are read")
    if kind in TRANSFORMERS and source.get("norm_type", "ada_norm_zero") != "ada_norm_zero":
        raise _refused_key(where, source, "norm_type", "it is no DiT, whose norm_type is ada_norm_zero")
    return _config(source, where)


def _config(source: Mapping[str, Any], where: str) -> LibraryConfig:
    """Return the network of a config.json, or its autoencoder."""
    name = str(source["_class_name"])
    # The tiny autoencoder writes a key that its constructor does not take.
    apart = {"block_out_channels"} if "encoder_block_out_channels" in source else set[str]()
    arguments = {key: value for key, value in source.items() if not key.startswith("_") and key not in apart}
    if name in TRANSFORMERS:
        name, arguments = TRANSFORMERS[0], _of_dit(arguments)
    try:
        return LibraryConfig.model_validate({"target": f"diffusers.{name}", "arguments": arguments})
    except ValidationError as error:
        raise _refused_key(where, arguments, *first_problem(error)) from error


def _of_dit(arguments: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Drop settings of the DiT's former class that are off and unknown to the class of now."""
    with extra("diffusers", "diffusers", "networks of diffusers need the diffusers library"):
        from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
    known = inspect.signature(DiTTransformer2DModel.__init__).parameters
    return {key: value for key, value in arguments.items() if key in known or value not in (None, False)}


def _sides(source: Mapping[str, Any], where: str) -> tuple[int, ...]:
    size = source.get("sample_size")
    sides = tuple(size) if isinstance(size, list) else (size, size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise _refused_key(where, source, "sample_size", "a height and a width are needed")
    return sides
