"""Imports the folder of a diffusers pipeline of pixels; only JSON and tensors are read.

A pixel pipeline is a network (`UNet2DModel`) and a scheduler. Any other component (autoencoder, text encoder, LoRA) is
refused by name, because the network alone would compute something else; a setting that this release cannot compute
exactly is refused by its key.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, Field, StrictBool, ValidationError, field_validator
from pydantic_core.core_schema import ValidationInfo
from safetensors import SafetensorError, safe_open

from ddib_fed.diffusion.denoiser import Parameterisation
from ddib_fed.diffusion.schedule import SCALED_LINEAR, ScheduleConfig, schedule_from_config
from ddib_fed.errors import BundleInvalid, FileMissing, SettingsInvalid
from ddib_fed.files import parse_json
from ddib_fed.models.bundle import misfits
from ddib_fed.models.import_guided import Imported, import_note, picture_manifest, read_tensors, renamed
from ddib_fed.models.manifest import PictureFormat, Training
from ddib_fed.networks.config import DiffusersUNetConfig

INDEX: Final = "model_index.json"
NETWORK: Final = "UNet2DModel"
WEIGHTS: Final = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
MAX_JSON_BYTES: Final = 16 << 20
_ADAPTER = re.compile(
    r"(?:.*(?<![fp])lora.*|adapter_model.*)\.(?:safetensors|bin|pt|pth)|adapter_config\.json", re.IGNORECASE
)
_ADAPTED = re.compile(r"(?:^|[._])(?:lora(?:[._]|$)|hada_w\d|lokr_w\d)", re.IGNORECASE)
"""A tensor of one."""


def import_diffusers(
    folder: Path,
    *,
    domain: str,
    name: str = "",
    fit: Literal["pad", "crop", "resize"] = "crop",
    soften_sigma: float = 0.0,
) -> Imported:
    above = folder.resolve().parent
    whole = (folder / INDEX).is_file() or not (above / INDEX).is_file()
    if not whole:
        check_pipeline(above)
    index = check_pipeline(folder)
    inside = folder / "unet" if (folder / "unet").is_dir() else folder
    config = network_config(_read_json(inside / "config.json"), str(inside / "config.json"))
    places = (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json")
    place = next((path for path in places if path.is_file()), None)
    if place is None:
        raise FileMissing(
            f"{folder} has no scheduler_config.json, which tells what the model was trained on",
            hint="copy the whole pipeline: unet/ and scheduler/"
            if whole
            else f"name the whole pipeline: ddib model import {shlex.quote(str(above))}",
        )
    schedule, prediction = read_schedule(_read_json(place), str(place))
    weights = next((inside / each for each in WEIGHTS if (inside / each).is_file()), None)
    if weights is None:
        raise FileMissing(
            f"{inside} has no {' or '.join(WEIGHTS)}",
            hint="copy the whole folder again; shards and variants such as fp16 are not read: load the model with the "
            "library and save it again (save_pretrained, max_shard_size='100GB')",
        )
    checkpoint = read_tensors(weights)
    state = {
        key: tensor.flatten(2).squeeze(-1) if ".attentions." in key and tensor.ndim == 4 else tensor
        for key, tensor in renamed(checkpoint.state, _new_name, weights).items()
    }
    for key, problem in misfits(config, state):
        raise BundleInvalid(
            f"{weights}: {key}: {problem}",
            hint="config.json and the weights are not of one model: copy the whole folder again",
            facts={"field": key[:100]},
        )
    unchecked = (
        f"there is no {INDEX}: whether the network belongs to a pipeline with an autoencoder, whose latents are no "
        "pictures, could not be checked"
    )
    warnings = () if index else (unchecked,)
    manifest = picture_manifest(
        config,
        name=name or folder.resolve().name,
        domain=domain,
        parameterisation=prediction,
        schedule=schedule,
        soften_sigma=soften_sigma,
        picture=PictureFormat(fit=fit),
        data=import_note("the folder", warnings),
        training=Training(command=f"imported from the diffusers folder {folder.resolve().name}"[:2000]),
    )
    return Imported(manifest, state, (), {}, checkpoint.remarks, warnings)


def check_pipeline(folder: Path) -> Mapping[str, Any]:
    """The index of a pipeline, empty where there is none; raises unless it is one of pixels."""
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
    others = {name: kind for name, kind in components.items() if name != "scheduler" and kind != NETWORK}
    if others:
        kind, parts = index.get("_class_name"), ", ".join(f"{name} ({kind})" for name, kind in others.items())
        latent = any(re.search(r"VQ|Autoencoder|VAE", cls, re.IGNORECASE) for cls in components.values())
        what = "a latent-diffusion pipeline" if latent else "no pipeline of pixels alone"
        raise SettingsInvalid(
            f"{folder}: {f'{_word(kind)} is ' if kind else 'it is '}{what}: {parts} "
            f"{'belongs' if len(others) == 1 else 'belong'} to it and cannot be imported",
            hint=f"a pipeline of pixels is read: a {NETWORK} and a scheduler",
            facts={"field": next(iter(others))[:100]},
        )
    return index


def _holds_adapter(path: Path) -> bool:
    """Whether a file of safetensors has tensors of an adapter; only its header is read."""
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
    try:
        with path.open("rb") as file:
            read = parse_json(file.read(MAX_JSON_BYTES))
    except OSError as error:
        problem = f"there is no file {path}"
        raise FileMissing(problem, hint="name the folder of the pipeline, with unet/ in it") from error
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
    return re.sub(
        r"\.(query|key|value|proj_attn)\.(?=[^.]+$)", lambda found: f".{_OLD_NAMES[found[1]]}.", key
    )


SCHEDULERS = tuple(f"{name}Scheduler" for name in (
    "DDPM", "DDIM", "DDPMParallel", "DDIMParallel", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep",
    "DEISMultistep", "UniPCMultistep", "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete",
))  # fmt: skip
"""Whose betas are those that the network was trained on."""
PREDICTIONS: Mapping[str, Parameterisation] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
SCHEDULES = {"linear": "linear", "scaled_linear": SCALED_LINEAR, "squaredcos_cap_v2": "cosine"}


class SchedulerFile(BaseModel):
    """What is read of a scheduler_config.json, with the library's defaults; other keys are of sampling."""

    prediction_type: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
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


def read_schedule(source: Mapping[str, Any], where: str) -> tuple[ScheduleConfig, Parameterisation]:
    if source.get("_class_name") not in SCHEDULERS:
        raise _refused_key(where, source, "_class_name", f"only {', '.join(SCHEDULERS)} are read")
    try:
        said = SchedulerFile.model_validate(source)
    except ValidationError as error:
        raise _invalid_key(where, source, error) from error
    name, steps = SCHEDULES[said.beta_schedule], said.num_train_timesteps
    ends: tuple[float | None, float | None] = (said.beta_start, said.beta_end)
    if name == "cosine" or (name == "linear" and (steps, *ends) == (1000, 0.0001, 0.02)):
        ends = (None, None)
    if said.rescale_betas_zero_snr:
        name = "zero-terminal-snr"
    schedule = ScheduleConfig(name, steps, beta_start=ends[0], beta_end=ends[1])
    schedule_from_config(schedule)
    return schedule, PREDICTIONS[said.prediction_type]


def _refused_key(where: str, source: Mapping[str, Any], key: str, why: str) -> SettingsInvalid:
    """The error for a setting in a file that cannot be computed exactly."""
    value = json.dumps(source.get(key.partition(".")[0]), default=str)[:80]
    return SettingsInvalid(
        f"{where}: {key} is {value}: {why}",
        hint="the model cannot be computed exactly here: import another, or train one",
        facts={"field": key[:100]},
    )


def _invalid_key(where: str, source: Mapping[str, Any], error: ValidationError) -> SettingsInvalid:
    first = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(map(str, first["loc"]))
    return _refused_key(where, source, key, first["msg"].removeprefix("Value error, "))


# Keys of a config.json that are no fields of the configuration, with the values that are read.
ONLY: Mapping[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional",),
    "class_embed_type": (None,),
    "mid_block_type": ("UNetMidBlock2D", None),
}
_DEFAULT_LEVELS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
}


def network_config(source: Mapping[str, Any], where: str) -> DiffusersUNetConfig:
    """The arguments in a config.json, with the library's defaults for missing ones."""
    if source.get("_class_name") != NETWORK:
        raise _refused_key(where, source, "_class_name", f"only {NETWORK} is read")
    for key, values in ONLY.items():
        if source.get(key, values[0]) not in values:
            raise _refused_key(where, source, key, f"only {' or '.join(map(json.dumps, values))} is read")
    size = source.get("sample_size")
    if isinstance(size, list) and len(set(map(str, size))) == 1:
        size = size[0]
    if not isinstance(size, int):
        raise _refused_key(where, source, "sample_size", "one size for height and width is needed")
    apart = {*ONLY, "sample_size", "num_train_timesteps"}
    fields = {
        **_DEFAULT_LEVELS,
        **{
            key: _modern(key, value)
            for key, value in source.items()
            if key not in apart and not key.startswith("_")
        },
        "image_size": size,
        "mid_block": source.get("mid_block_type", "UNetMidBlock2D") is not None,
    }
    try:
        config = DiffusersUNetConfig.model_validate(fields)
    except ValidationError as error:
        raise _invalid_key(where, source, error) from error
    if config.in_channels not in (1, 3):
        raise _refused_key(where, source, "in_channels", "pictures have 1 or 3; latents have others")
    if size % config.divisor:
        raise _refused_key(where, source, "sample_size", f"it does not divide by {config.divisor}")
    return config


def _modern(key: str, value: Any) -> Any:
    """Names of blocks and of the activation as they are now called."""
    if key.endswith("block_types") and isinstance(value, list):
        return [kind.removeprefix("UNetRes") if isinstance(kind, str) else kind for kind in value]
    return "silu" if (key, value) == ("act_fn", "swish") else value
