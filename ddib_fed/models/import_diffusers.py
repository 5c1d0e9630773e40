"""Imports the folder of a diffusers pipeline of pixels; only JSON and tensors are read.

A pixel pipeline is a network (`UNet2DModel` or `DiTTransformer2DModel`) and a scheduler. Any other component
(autoencoder, text encoder, LoRA) is refused by name, because the network alone would compute something else; a setting
that this release cannot compute exactly is refused by its key.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from ddib_fed.diffusion.denoiser import Parameterisation
from ddib_fed.diffusion.schedule import SCALED_LINEAR, ScheduleConfig, schedule_from_config
from ddib_fed.errors import BundleInvalid, FileMissing, SettingsInvalid
from ddib_fed.files import parse_json
from ddib_fed.models.bundle import misfits
from ddib_fed.models.manifest import DataNote, Manifest, PictureFormat, Training
from ddib_fed.models.weights import Fact, Imported, WeightsFile, import_note, read_tensors, renamed
from ddib_fed.networks.config import DiffusersDiTConfig, DiffusersUNetConfig

INDEX: Final = "model_index.json"
NETWORKS: Final[Mapping[str, tuple[str, ...]]] = {
    "unet": ("UNet2DModel",),
    "transformer": ("DiTTransformer2DModel", "Transformer2DModel"),
}
"""Components that are networks, with the supported classes."""
PIXELS: Final = tuple(kind for kinds in NETWORKS.values() for kind in kinds)
WEIGHTS: Final = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
MAX_JSON_BYTES: Final = 16 << 20
_ADAPTER = re.compile(
    r"(?:.*(?<![fp])lora.*|adapter_model.*)\.(?:safetensors|bin|pt|pth)|adapter_config\.json", re.IGNORECASE
)
# Tensors of adapters as peft, diffusers, kohya and LyCORIS call them.
_ADAPTED = re.compile(r"(?:^|[._])(?:lora(?:[._]|$)|hada_w\d|lokr_w\d)", re.IGNORECASE)


def import_diffusers(
    folder: Path,
    *,
    domain: str,
    name: str = "",
    fit: Literal["pad", "crop", "resize"] = "crop",
    soften_sigma: float = 0.0,
) -> Imported:
    """Manifest and weights of the network and the scheduler in a pipeline's folder."""
    above = folder.resolve().parent
    if not (folder / INDEX).is_file() and (above / INDEX).is_file():
        check_pipeline(above)
    else:
        above = folder
    index, remarks = check_pipeline(folder)
    inside = next((folder / name for name in NETWORKS if (folder / name).is_dir()), folder)
    config = network_config(read_json(inside / "config.json"), str(inside / "config.json"))
    place = next(
        (path for at in ("scheduler", ".") if (path := folder / at / "scheduler_config.json").is_file()), None
    )
    if place is None:
        raise FileMissing(
            f"{folder} has no scheduler_config.json, which tells what the model was trained on",
            hint="copy the whole pipeline: unet/ and scheduler/"
            if above == folder
            else f"name the whole pipeline: ddib model import {shlex.quote(str(above))}",
        )
    said = read_json(place)
    schedule, prediction = read_schedule(said, str(place))
    checkpoint = _weights(inside)
    state = {
        key: tensor.flatten(2).squeeze(-1) if ".attentions." in key and tensor.ndim == 4 else tensor
        for key, tensor in renamed(checkpoint.state, _new_name, checkpoint.path).items()
    }
    for key, problem in misfits(config, state):
        raise BundleInvalid(
            f"{checkpoint.path}: {key}: {problem}",
            hint="config.json and the weights are not of one model: copy the whole folder again",
            facts={"field": key[:100]},
        )
    unchecked = (
        f"there is no {INDEX}: whether the network belongs to a pipeline with an autoencoder, whose latents are no "
        "pictures, could not be checked"
    )
    warnings = () if index else (unchecked,)
    manifest = Manifest(
        name=(name or folder.resolve().name)[:100],
        domain=domain,
        sample_kind="picture",
        sample_shape=(config.in_channels, config.image_size, config.image_size),
        network=config,
        parameterisation=prediction,
        time_input="timestep",
        schedule=schedule,
        value_range=(-1.0, 1.0),
        soften_sigma=soften_sigma,
        picture=PictureFormat(fit=fit, low=0.0, high=255.0, bits=8),
        classes=_classes(index, config.num_classes or 0, folder),
        data=DataNote(note=import_note("the folder", warnings)),
        training=Training(command=f"imported from the diffusers folder {folder.resolve().name}"[:2000]),
    )
    remarks = (*remarks, *checkpoint.remarks)
    return Imported(manifest, state, tuple(_facts(config, manifest)), unused(said), remarks, warnings)


def check_pipeline(folder: Path) -> tuple[Mapping[str, Any], tuple[str, ...]]:
    """The index of a pipeline, empty where there is none, and remarks; raises unless it is one of pixels."""
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    components: dict[str, str] = {}
    for path in sorted(folder.glob("*/config.json")):
        own = read_json(path)
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
    taken = {"scheduler", *[name for name, kinds in NETWORKS.items() if components.get(name) in kinds][:1]}
    averaged = [name for name, kind in components.items() if kind in PIXELS and name not in NETWORKS]
    others = {name: kind for name, kind in components.items() if name not in {*taken, *averaged}}
    if others:
        kind, parts = index.get("_class_name"), ", ".join(f"{name} ({kind})" for name, kind in others.items())
        latent = any(re.search(r"VQ|Autoencoder|VAE", cls, re.IGNORECASE) for cls in components.values())
        what = "a latent-diffusion pipeline" if latent else "no pipeline of pixels alone"
        raise SettingsInvalid(
            f"{folder}: {f'{_word(kind)} is ' if kind else 'it is '}{what}: {parts} "
            f"{'belongs' if len(others) == 1 else 'belong'} to it and cannot be imported",
            hint="a pipeline of pixels is read: a UNet2DModel or DiTTransformer2DModel and a scheduler",
            facts={"field": next(iter(others))[:100]},
        )
    return index, tuple(f"{name}/ beside the network is not read" for name in sorted(averaged))


def _word(value: object) -> str:
    return str(value[-1] if isinstance(value, list) and value else value)[:80]


def _holds_adapter(path: Path) -> bool:
    """Whether a file of safetensors has tensors of an adapter; only its header is read."""
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="np") as opened:
            return any(_ADAPTED.search(name) for name in opened.keys())  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError):
        return False  # whoever reads it as weights says what is wrong


def _weights(folder: Path) -> WeightsFile:
    for name in WEIGHTS:
        if (folder / name).is_file():
            return read_tensors(folder / name)
    raise FileMissing(
        f"{folder} has no {' or '.join(WEIGHTS)}",
        hint="copy the whole folder again; shards and variants such as fp16 are not read: load the model with the "
        "library and save it again (save_pretrained, max_shard_size='100GB')",
    )


def read_json(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file:
            read = parse_json(file.read(MAX_JSON_BYTES))
    except OSError as error:
        raise FileMissing(
            f"there is no file {path}", hint="name the folder of the pipeline, with unet/ in it"
        ) from error
    except ValueError as error:
        raise BundleInvalid(f"{path}: it is not JSON", hint="copy it again") from error
    if not isinstance(read, dict):
        raise BundleInvalid(f"{path}: it is not a JSON object", hint="copy it again")
    return read


def _classes(index: Mapping[str, Any], count: int, folder: Path) -> tuple[str, ...]:
    """The class names in order, if the pipeline has them."""
    said = index.get("id2label") or {}
    try:
        labels = {int(number): str(name)[:200] for number, name in said.items()}
    except (AttributeError, ValueError) as error:
        raise BundleInvalid(f"{folder / INDEX}: id2label is no table of numbers and names") from error
    if labels and sorted(labels) != list(range(count)):
        raise SettingsInvalid(
            f"{folder / INDEX}: id2label names {len(labels)} classes, the network has {count}",
            hint="copy the whole pipeline again, or take id2label out of the file",
            facts={"field": "id2label"},
        )
    return tuple(labels[number] for number in sorted(labels))


_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Of the attention layers in older weights."""


def _new_name(key: str) -> str:
    if ".attentions." not in key:
        return key
    return re.sub(
        r"\.(query|key|value|proj_attn)\.(?=[^.]+$)", lambda found: f".{_OLD_NAMES[found[1]]}.", key
    )


def _facts(config: AnyComponent, manifest: Manifest) -> list[Fact]:
    facts = [Fact("network", config.kind, "as the library computes it")]
    for key, value in config.model_dump(exclude={"kind"}, mode="json").items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        facts.append(Fact(key, text, "config.json"))
    schedule = manifest.schedule
    ends = f" of {schedule.beta_start:g} to {schedule.beta_end:g}" if schedule.ends else ""
    facts.append(Fact("schedule", f"{schedule.name}{ends}, {schedule.steps} steps", "scheduler_config.json"))
    facts.append(Fact("prediction", manifest.parameterisation, "scheduler_config.json"))
    return facts


SCHEDULERS = tuple(f"{name}Scheduler" for name in (
    "DDPM", "DDIM", "DDPMParallel", "DDIMParallel", "PNDM", "DPMSolverMultistep", "DPMSolverSinglestep",
    "DEISMultistep", "UniPCMultistep", "EulerDiscrete", "EulerAncestralDiscrete", "LMSDiscrete",
))  # fmt: skip
"""Whose betas are those that the network was trained on."""
PREDICTIONS: Mapping[str, Parameterisation] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}
# What would give the network other times or levels than its betas imply.
_ONLY = {
    "trained_betas": None,
    "use_flow_sigmas": False,
    "timestep_type": "discrete",
    "use_dynamic_shifting": False,
}
_READ = frozenset({*_BETAS, *_ONLY, "prediction_type", "beta_schedule", "rescale_betas_zero_snr"})


def read_schedule(source: Mapping[str, Any], where: str) -> tuple[ScheduleConfig, Parameterisation]:
    """The schedule in a scheduler_config.json, and the prediction type."""
    defaults = {"prediction_type": "epsilon", "beta_schedule": "linear", "rescale_betas_zero_snr": False}
    said: dict[str, Any] = {**_ONLY, **_BETAS, **defaults, "_class_name": None, **source}
    allowed: dict[str, tuple[Any, ...]] = {
        "_class_name": SCHEDULERS,
        "prediction_type": tuple(PREDICTIONS),
        "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2"),
        # With betas that end at no signal only linear ones are read.
        "rescale_betas_zero_snr": (False, True) if said["beta_schedule"] == "linear" else (False,),
        **{key: (value,) for key, value in _ONLY.items()},
    }
    for key, values in allowed.items():
        if said[key] not in values or isinstance(said[key], int) != isinstance(values[0], int):
            raise refused_key(where, key, said[key], f"only {' or '.join(map(json.dumps, values))} is read")
    for key in _BETAS:
        value = said[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise refused_key(where, key, value, "a number is needed")
    if not float(said["num_train_timesteps"]).is_integer():
        raise refused_key(
            where, "num_train_timesteps", said["num_train_timesteps"], "a whole number is needed"
        )
    kind, steps = said["beta_schedule"], int(said["num_train_timesteps"])
    usual = kind == "linear" and {key: said[key] for key in _BETAS} == _BETAS
    ends = (None, None) if usual else (float(said["beta_start"]), float(said["beta_end"]))
    name = {"linear": "linear", "scaled_linear": SCALED_LINEAR, "squaredcos_cap_v2": "cosine"}[kind]
    name = "zero-terminal-snr" if said["rescale_betas_zero_snr"] else name
    schedule = ScheduleConfig(name, steps)
    if kind != "squaredcos_cap_v2":
        schedule = ScheduleConfig(name, steps, beta_start=ends[0], beta_end=ends[1])
    schedule_from_config(schedule)
    return schedule, PREDICTIONS[said["prediction_type"]]


def unused(source: Mapping[str, Any]) -> dict[str, str]:
    """Each enabled setting of a scheduler_config.json that has no effect here, with the reason."""
    return {
        key: "of sampling, which has its own options here"
        for key, value in source.items()
        if key not in _READ and not key.startswith("_") and value not in (None, False, 0, [])
    }


def refused_key(where: str, key: str, value: object, why: str) -> SettingsInvalid:
    """The error for a setting in a file that cannot be computed exactly."""
    return SettingsInvalid(
        f"{where}: {key} is {json.dumps(value, default=str)[:80]}: {why}",
        hint="the model cannot be computed exactly here: import another, or train one",
        facts={"field": key[:100]},
    )


AnyComponent = DiffusersUNetConfig | DiffusersDiTConfig
# Keys that are read only with these values.
ONLY: Mapping[type[AnyComponent], Mapping[str, tuple[Any, ...]]] = {
    DiffusersUNetConfig: {
        "time_embedding_type": ("positional",),
        "class_embed_type": (None,),
        "mid_block_type": ("UNetMidBlock2D", None),
    },
    DiffusersDiTConfig: {
        "norm_type": ("ada_norm_zero",),
        "upcast_attention": (False,),
        # Of Transformer2DModel, as which older transformers are saved.
        "attention_type": ("default",),
        "caption_channels": (None,),
        "cross_attention_dim": (None,),
        "double_self_attention": (False,),
        "interpolation_scale": (None,),
        "num_vector_embeds": (None,),
        "only_cross_attention": (False,),
        "use_additional_conditions": (None, False),
        "use_linear_projection": (False,),
    },
}
# Read separately, or without effect for these networks.
ELSEWHERE: Mapping[type[AnyComponent], tuple[str, ...]] = {
    DiffusersUNetConfig: ("sample_size", "num_train_timesteps"),
    DiffusersDiTConfig: ("sample_size", "norm_num_groups"),
}
KINDS: Mapping[str, type[AnyComponent]] = {
    "UNet2DModel": DiffusersUNetConfig,
    "DiTTransformer2DModel": DiffusersDiTConfig,
    "Transformer2DModel": DiffusersDiTConfig,
}
_DEFAULT_LEVELS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
}


def network_config(source: Mapping[str, Any], where: str) -> AnyComponent:
    """The arguments in a config.json, with the library's defaults for missing ones."""
    named = source.get("_class_name")
    if not isinstance(named, str) or named not in KINDS:
        raise refused_key(where, "_class_name", named, f"only {' or '.join(KINDS)} is read")
    kind = KINDS[named]
    same, only = kind.model_fields.keys() - {"kind", "image_size", "mid_block"}, ONLY[kind]
    fields: dict[str, Any] = {}
    for key, value in source.items():
        if key in only:
            if value not in only[key]:
                allowed = " or ".join(json.dumps(item) for item in only[key])
                raise refused_key(where, key, value, f"only {allowed} is read")
        elif key in same:
            fields[key] = _modern(key, value)
        elif not key.startswith("_") and key not in ELSEWHERE[kind]:
            raise refused_key(where, key, value, "this release does not know the key")
    fields["image_size"] = _size(source, kind, where)
    if kind is DiffusersUNetConfig:
        fields = {**_DEFAULT_LEVELS, **fields}
        fields["mid_block"] = source.get("mid_block_type", "UNetMidBlock2D") is not None
    else:
        if source.get("norm_type", "ada_norm_zero" if named.startswith("DiT") else None) is None:
            raise refused_key(where, "norm_type", None, 'only "ada_norm_zero" is read')
        fields["out_channels"] = source.get("out_channels") or source.get("in_channels", 4)
    try:
        config = kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise refused_key(where, key, source.get(key.partition(".")[0]), said) from error
    if config.in_channels not in (1, 3):
        raise refused_key(
            where, "in_channels", config.in_channels, "pictures have 1 or 3; latents have others"
        )
    if config.image_size % config.divisor:
        raise refused_key(where, "sample_size", config.image_size, f"it does not divide by {config.divisor}")
    return config


def _modern(key: str, value: Any) -> Any:
    if key.endswith("block_types") and isinstance(value, list):
        return [kind.removeprefix("UNetRes") if isinstance(kind, str) else kind for kind in value]
    return "silu" if (key, value) == ("act_fn", "swish") else value


def _size(source: Mapping[str, Any], kind: type[AnyComponent], where: str) -> int:
    size = source.get("sample_size", 32 if kind is DiffusersDiTConfig else None)
    if isinstance(size, list) and len(set(map(str, size))) == 1:
        size = size[0]
    if not isinstance(size, int):
        raise refused_key(where, "sample_size", size, "one size for height and width is needed")
    return size
