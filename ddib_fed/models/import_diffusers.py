"""Imports the folder of a diffusers pipeline of pixels; only JSON and tensors are read.

A setting that this release cannot compute exactly is refused by its key.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from ddib_fed.diffusion.denoiser import Parameterisation
from ddib_fed.diffusion.schedule import SCALED_LINEAR, ScheduleConfig, schedule_from_config
from ddib_fed.errors import BundleInvalid, FileMissing, SettingsInvalid
from ddib_fed.models.bundle import misfits
from ddib_fed.models.import_guided import multiplier
from ddib_fed.models.manifest import DataNote, Manifest, PictureFormat, Training
from ddib_fed.models.weights import (
    INDEX,
    NETWORKS,
    Fact,
    Imported,
    Pipeline,
    find_weights,
    import_note,
    read_json,
    read_pipeline,
    read_weights,
    renamed,
    whole_pipeline,
)
from ddib_fed.networks.config import DiffusersDiTConfig, DiffusersUNetConfig, UNetConfig

_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "class_embedding": "label_emb",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def adm_config(config: DiffusersUNetConfig) -> UNetConfig | None:
    """The arguments of the `UNet` equivalent to the network of `config`; None if there is none."""
    widths = config.block_out_channels
    changes = {_change(config, kind, "down") for kind in config.down_block_types[:-1]}
    changes |= {_change(config, kind, "up") for kind in config.up_block_types[:-1]}
    attends = [kind.startswith("Attn") for kind in config.down_block_types]
    same = (
        config.mid_block
        and config.add_attention
        and config.mid_block_scale_factor == 1.0
        and config.middle_groups == config.norm_num_groups == 32
        and config.norm_eps == 1e-5
        and config.act_fn == "silu"
        and config.freq_shift == 0
        and config.time_embedding_dim in (None, 4 * widths[0])
        and not config.center_input_sample
        and (config.downsample_padding == 1 or "conv" not in changes)
        and len(changes) <= 1
        and attends == [kind.startswith("Attn") for kind in config.up_block_types[::-1]]
        and not any(width % 32 for width in widths)
    )
    if not same:
        return None
    return UNetConfig(
        image_size=config.image_size,
        in_channels=config.in_channels,
        model_channels=widths[0],
        out_channels=config.out_channels,
        num_res_blocks=config.layers_per_block,
        attention_resolutions=tuple(2**level for level, there in enumerate(attends) if there),
        dropout=config.dropout,
        channel_mult=tuple(multiplier(width, widths[0]) for width in widths),
        num_classes=config.num_class_embeds,
        num_heads=1,
        num_head_channels=config.attention_head_dim or -1,
        use_scale_shift_norm=config.resnet_time_scale_shift == "scale_shift",
        resblock_updown=changes == {"resnet"},
        use_new_attention_order=True,
    )


def _change(config: DiffusersUNetConfig, kind: str, way: str) -> str:
    if kind.startswith("Attn"):
        return config.downsample_type if way == "down" else config.upsample_type
    return "resnet" if kind.startswith("Resnet") else "conv"


def adm_state(config: DiffusersUNetConfig, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of `state`, which fits `config`, as that `UNet` has them."""
    made = dict(_plain(state, _ENDS))
    for prefix, name in _residuals(config):
        made |= dict(_plain(state, {f"{prefix}.{old}": f"{name}.{new}" for old, new in _RESIDUAL.items()}))
    for prefix, name in _attentions(config):
        made |= dict(_plain(state, {f"{prefix}.group_norm": f"{name}.norm"}))
        for part in ("weight", "bias"):
            rows = torch.cat([state[f"{prefix}.to_{letter}.{part}"] for letter in "qkv"])
            made[f"{name}.qkv.{part}"] = rows[..., None] if part == "weight" else rows
        made[f"{name}.proj_out.weight"] = state[f"{prefix}.to_out.0.weight"][..., None]
        made[f"{name}.proj_out.bias"] = state[f"{prefix}.to_out.0.bias"]
    for prefix, name in _changes(config):
        made |= dict(_plain(state, {f"{prefix}.conv": name}))
    if not config.flip_sin_to_cos:
        sines, cosines = made["time_embed.0.weight"].chunk(2, dim=1)
        made["time_embed.0.weight"] = torch.cat([cosines, sines], dim=1)
    return made


def _plain(state: Mapping[str, Tensor], names: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    for old, new in names.items():
        for part in ("weight", "bias"):
            if f"{old}.{part}" in state:
                yield f"{new}.{part}", state[f"{old}.{part}"]


def _places(config: DiffusersUNetConfig) -> Iterator[tuple[str, str, str, int]]:
    size = config.layers_per_block + 1
    for level, kind in enumerate(config.down_block_types):
        yield f"down_blocks.{level}", kind, "input_blocks", 1 + level * size
    for level, way_up in enumerate(config.up_block_types):
        yield f"up_blocks.{level}", way_up, "output_blocks", level * size


def _residuals(config: DiffusersUNetConfig) -> Iterator[tuple[str, str]]:
    """Each residual block's name, and ours."""
    for name, kind, way, first in _places(config):
        down = way == "input_blocks"
        count = config.layers_per_block + (not down)
        for index in range(count):
            yield f"{name}.resnets.{index}", f"{way}.{first + index}.0"
        if down:
            yield f"{name}.downsamplers.0", f"{way}.{first + count}.0"
        else:
            yield f"{name}.upsamplers.0", f"{way}.{first + count - 1}.{1 + kind.startswith('Attn')}"
    for index in range(2):
        yield f"mid_block.resnets.{index}", f"middle_block.{2 * index}"


def _attentions(config: DiffusersUNetConfig) -> Iterator[tuple[str, str]]:
    for name, kind, way, first in _places(config):
        if kind.startswith("Attn"):
            for index in range(config.layers_per_block + (way == "output_blocks")):
                yield f"{name}.attentions.{index}", f"{way}.{first + index}.1"
    yield "mid_block.attentions.0", "middle_block.1"


def _changes(config: DiffusersUNetConfig) -> Iterator[tuple[str, str]]:
    """Each convolution that resamples, and ours without its weight or bias."""
    for name, kind, way, first in _places(config):
        if way == "input_blocks":
            yield f"{name}.downsamplers.0", f"{way}.{first + config.layers_per_block}.0.op"
        else:
            block = first + config.layers_per_block
            yield f"{name}.upsamplers.0", f"{way}.{block}.{1 + kind.startswith('Attn')}.conv"


# Schedulers whose betas are those that the network was trained on.
SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
)
PREDICTIONS: Mapping[str, Parameterisation] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_DEFAULT_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}
# Settings that would give the network other times or levels than its betas imply.
PROCESS: Mapping[str, Any] = {
    "use_flow_sigmas": False,
    "timestep_type": "discrete",
    "use_dynamic_shifting": False,
}
_READ = frozenset({*_DEFAULT_BETAS, *PROCESS, "trained_betas", "prediction_type", "beta_schedule"}) | {
    "rescale_betas_zero_snr"
}
# Parts of settings that are listed separately.
_PARTS = frozenset({"clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value"})
_CLIPS = "of sampling, where the library clips predictions"
_GRID = "of sampling: steps are placed by --grid"
_SAMPLING: Mapping[str, str] = {
    "clip_sample": _CLIPS,
    "thresholding": _CLIPS,
    **dict.fromkeys(("timestep_spacing", "steps_offset", "use_karras_sigmas", "set_alpha_to_one"), _GRID),
    **dict.fromkeys(
        ("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "final_sigmas_type"), _GRID
    ),
    "variance_type": "of sampling with noise: the ODE has none",
}


def read_schedule(source: Mapping[str, Any], where: str) -> tuple[ScheduleConfig, Parameterisation]:
    """The schedule in a scheduler_config.json, and the prediction type."""
    if source.get("_class_name") not in SCHEDULERS:
        raise refused_key(where, "_class_name", source.get("_class_name"), f"one of {', '.join(SCHEDULERS)}")
    if source.get("trained_betas") is not None:
        raise refused_key(where, "trained_betas", "...", "custom betas are not supported")
    for key, only in PROCESS.items():
        if source.get(key, only) != only:
            raise refused_key(where, key, source[key], f"only {json.dumps(only)} is read")
    steps, ends = _steps_and_ends(source, where)
    prediction = source.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise refused_key(where, "prediction_type", prediction, f"one of {', '.join(PREDICTIONS)}")
    kind, zero = source.get("beta_schedule", "linear"), source.get("rescale_betas_zero_snr", False)
    if not isinstance(zero, bool):
        raise refused_key(where, "rescale_betas_zero_snr", zero, "true or false is needed")
    if kind == "squaredcos_cap_v2" and not zero:
        schedule = ScheduleConfig("cosine", steps)
    elif kind == "linear" or (kind == "scaled_linear" and not zero):
        usual = kind == "linear" and steps == 1000 and ends == (0.0001, 0.02)
        name = "zero-terminal-snr" if zero else SCALED_LINEAR if kind == "scaled_linear" else "linear"
        first, last = (None, None) if usual else ends
        schedule = ScheduleConfig(name, steps, beta_start=first, beta_end=last)
    elif zero and kind in ("squaredcos_cap_v2", "scaled_linear"):
        raise refused_key(where, "rescale_betas_zero_snr", zero, "it is read with linear betas alone")
    else:
        raise refused_key(where, "beta_schedule", kind, "linear, scaled_linear or squaredcos_cap_v2")
    schedule_from_config(schedule)
    return schedule, PREDICTIONS[prediction]


def _steps_and_ends(source: Mapping[str, Any], where: str) -> tuple[int, tuple[float, float]]:
    """How many steps there are, and the first and last beta."""
    said = {key: source.get(key, default) for key, default in _DEFAULT_BETAS.items()}
    for key, value in said.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise refused_key(where, key, value, "a number is needed")
    steps = said["num_train_timesteps"]
    if not float(steps).is_integer():
        raise refused_key(where, "num_train_timesteps", steps, "a whole number is needed")
    return int(steps), (float(said["beta_start"]), float(said["beta_end"]))


def unused(source: Mapping[str, Any]) -> dict[str, str]:
    """Each enabled setting of a scheduler_config.json that has no effect here, with the reason."""
    return {
        key: _SAMPLING.get(key, "of sampling, or not known to this release")
        for key, value in source.items()
        if key not in _READ | _PARTS and not key.startswith("_") and value not in (None, False, 0, [])
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
    fields = _fields(kind, source, where)
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


def _fields(kind: type[AnyComponent], source: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The settings that the file has under their own names."""
    same = kind.model_fields.keys() - {"kind", "image_size", "mid_block"}
    fields: dict[str, Any] = {}
    for key, value in source.items():
        if key in ONLY[kind]:
            if value not in ONLY[kind][key]:
                allowed = " or ".join(json.dumps(item) for item in ONLY[kind][key])
                raise refused_key(where, key, value, f"only {allowed} is read")
        elif key in same:
            fields[key] = _modern(key, value)
        elif not key.startswith("_") and key not in ELSEWHERE[kind]:
            raise refused_key(where, key, value, "this release does not know the key")
    return fields


def _modern(key: str, value: Any) -> Any:
    if key.endswith("block_types") and isinstance(value, list):
        return [kind.removeprefix("UNetRes") if isinstance(kind, str) else kind for kind in value]
    return "silu" if (key, value) == ("act_fn", "swish") else value


def _size(source: Mapping[str, Any], kind: type[AnyComponent], where: str) -> int:
    value = source.get("sample_size", 32 if kind is DiffusersDiTConfig else None)
    if isinstance(value, list) and len(set(map(str, value))) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise refused_key(where, "sample_size", value, "one size for height and width is needed")
    return value


# Names of the attention layers in older weights.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def import_diffusers(
    folder: Path,
    *,
    domain: str,
    name: str = "",
    fit: Literal["pad", "crop", "resize"] = "crop",
    soften_sigma: float = 0.0,
    variant: str | None = None,
) -> Imported:
    """Manifest and weights of the network and the scheduler in a pipeline's folder."""
    above = whole_pipeline(folder)
    if above is not None:
        read_pipeline(above)
    pipeline = read_pipeline(folder)
    inside = _network_folder(folder)
    where = str(inside / "config.json")
    config = network_config(read_json(inside / "config.json"), where)
    said, scheduler = _scheduler(folder)
    schedule, prediction = read_schedule(said, scheduler)
    weights, remarks = find_weights(inside, variant)
    checkpoint = read_weights(weights)
    state = {
        key: tensor.flatten(2).squeeze(-1) if _is_old_attention(key, tensor) else tensor
        for key, tensor in renamed(checkpoint.state, _new_name, checkpoint.path).items()
    }
    for key, problem in misfits(config, state):
        raise BundleInvalid(
            f"{checkpoint.path}: {key}: {problem}",
            hint="config.json and the weights are not of one model: copy the whole folder again",
            facts={"field": key[:100]},
        )
    ours = None
    if isinstance(config, DiffusersUNetConfig):
        ours = adm_config(config)
        state = state if ours is None else adm_state(config, state)
    manifest = Manifest(
        name=(name or folder.resolve().name)[:100],
        domain=domain,
        sample_kind="picture",
        sample_shape=(config.in_channels, config.image_size, config.image_size),
        network=ours or config,
        parameterisation=prediction,
        time_input="timestep",
        schedule=schedule,
        value_range=(-1.0, 1.0),
        soften_sigma=soften_sigma,
        picture=PictureFormat(fit=fit, low=0.0, high=255.0, bits=8),
        classes=_classes(pipeline, config, folder),
        data=DataNote(note=import_note("the folder", pipeline.warnings)),
        training=Training(command=f"imported from the diffusers folder {folder.resolve().name}"[:2000]),
    )
    return Imported(
        manifest,
        state,
        tuple(_facts(config, manifest)),
        unused(said),
        (*pipeline.remarks, *remarks, *checkpoint.remarks),
        pipeline.warnings,
    )


def _network_folder(folder: Path) -> Path:
    return next((folder / name for name in NETWORKS if (folder / name).is_dir()), folder)


def _classes(pipeline: Pipeline, config: AnyComponent, folder: Path) -> tuple[str, ...]:
    """The class names in order, if the pipeline has them."""
    count = config.num_classes or 0
    if pipeline.labels and sorted(pipeline.labels) != list(range(count)):
        raise SettingsInvalid(
            f"{folder / INDEX}: id2label names {len(pipeline.labels)} classes, the network has {count}",
            hint="copy the whole pipeline again, or take id2label out of the file",
            facts={"field": "id2label"},
        )
    return tuple(pipeline.labels[number] for number in range(count)) if pipeline.labels else ()


def _scheduler(folder: Path) -> tuple[Mapping[str, Any], str]:
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if path.is_file():
            return read_json(path), str(path)
    above = whole_pipeline(folder)
    raise FileMissing(
        f"{folder} has no scheduler_config.json, which tells what the model was trained on",
        hint=f"name the whole pipeline: --diffusers {shlex.quote(str(above))}"
        if above is not None
        else "copy the whole pipeline: unet/ and scheduler/",
    )


def _new_name(key: str) -> str:
    head, dot, tail = key.rpartition(".")
    before, _, layer = head.rpartition(".")
    return (
        f"{before}.{_OLD_NAMES[layer]}{dot}{tail}" if ".attentions." in key and layer in _OLD_NAMES else key
    )


def _is_old_attention(key: str, tensor: Tensor) -> bool:
    return ".attentions." in key and tensor.ndim == 4


def _facts(config: AnyComponent, manifest: Manifest) -> list[Fact]:
    kind = "our UNet computes the same" if manifest.network.kind == "unet" else "as the library computes it"
    facts = [Fact("network", manifest.network.kind, kind)]
    for key, value in config.model_dump(exclude={"kind"}, mode="json").items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        facts.append(Fact(key, text, "config.json"))
    schedule = manifest.schedule
    ends = f" of {schedule.beta_start:g} to {schedule.beta_end:g}" if schedule.ends else ""
    facts.append(Fact("schedule", f"{schedule.name}{ends}, {schedule.steps} steps", "scheduler_config.json"))
    facts.append(Fact("prediction", manifest.parameterisation, "scheduler_config.json"))
    return facts
