"""A folder of a diffusers pipeline with a `UNet2DModel` to manifest and weights; only JSON and tensors are read.

The rule: what the folder says that this release cannot compute exactly is refused by its key. The library itself is
needed for nothing but `largest_difference`, which compares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from ddib_fed.diffusion.denoiser import Parameterisation
from ddib_fed.diffusion.schedule import SCALED_LINEAR, ScheduleConfig, schedule_from_config
from ddib_fed.errors import BundleInvalid, ExtraMissing, FileMissing, SettingsInvalid
from ddib_fed.models.bundle import state_problem
from ddib_fed.models.diffusers_config import DiffusersUNetConfig
from ddib_fed.models.importers.adm_names import adm_config, adm_state
from ddib_fed.models.importers.checkpoints import Checkpoint, read_checkpoint, read_safetensors
from ddib_fed.models.importers.report import Fact, Imported
from ddib_fed.models.manifest import DataNote, Manifest, PictureFormat, Training
from ddib_fed.models.networks import network_shapes, network_with

WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
# Keys of unet/config.json under their own names; the rest is refused unless it is one of `ONLY` with this value.
SAME = frozenset(DiffusersUNetConfig.model_fields) - {"kind", "image_size", "mid_block"}
ONLY: Mapping[str, tuple[Any, ...]] = {
    "time_embedding_type": ("positional",),
    "act_fn": ("silu", "swish"),
    "class_embed_type": (None,),
    "mid_block_type": ("UNetMidBlock2D", None),
}
# Read apart, or without a meaning for networks with positional features of the time.
ELSEWHERE = ("sample_size", "num_train_timesteps")
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
# What older weights call the layers of attention.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_DEFAULT_KINDS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
}
_DEFAULT_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}


def import_diffusers(
    folder: Path,
    *,
    domain: str,
    name: str = "",
    fit: Literal["pad", "crop", "resize"] = "crop",
    soften_sigma: float = 0.0,
) -> Imported:
    """Manifest and weights of the UNet and the scheduler in a pipeline's folder.

    Args:
        folder: With unet/ and scheduler/, or with both files at the top, as `save_pretrained` writes them.
        domain: What it was trained on.
        name: Of the model; the folder's name when empty.
        fit: How pictures of another size are fitted.
        soften_sigma: Noise level to which pictures are softened before encoding.

    Raises:
        FileMissing: A file is not there.
        BundleInvalid: A file is damaged, or the weights are of another network; the detail names the first tensor.
        SettingsInvalid: The network or schedule cannot be computed exactly; the detail names the key.
    """
    inside = folder / "unet" if (folder / "unet").is_dir() else folder
    source = _json(inside / "config.json")
    config = unet_config(source, str(inside / "config.json"))
    schedule, prediction = read_schedule(*_scheduler(folder))
    checkpoint = _weights(inside)
    state = {
        _new_name(key): tensor.flatten(2).squeeze(-1) if _is_old_attention(key, tensor) else tensor
        for key, tensor in checkpoint.state.items()
    }
    _check(config, state, checkpoint.path)
    ours = adm_config(config)
    if ours is not None:
        state = adm_state(config, state)
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
        data=DataNote(note="imported weights: the folder does not say what they were trained on"),
        training=Training(command=f"imported from the diffusers folder {folder.resolve().name}"[:2000]),
    )
    return Imported(manifest, state, tuple(_facts(config, manifest)), {}, checkpoint.remarks)


def unet_config(source: Mapping[str, Any], where: str) -> DiffusersUNetConfig:
    """The arguments that a unet/config.json says, `UNet2DModel`'s defaults where it is silent.

    Raises:
        SettingsInvalid: It is of another network, or has a setting that cannot be computed exactly; the detail names
            the key.
    """
    if source.get("_class_name") != "UNet2DModel":
        raise _refused(where, "_class_name", source.get("_class_name"), "only UNet2DModel is read")
    fields: dict[str, Any] = dict(_DEFAULT_KINDS)
    for key, value in source.items():
        if key in ONLY:
            if value not in ONLY[key]:
                allowed = " or ".join(json.dumps(item) for item in ONLY[key])
                raise _refused(where, key, value, f"only {allowed} is read")
        elif key in SAME:
            fields[key] = _kinds(value) if key.endswith("block_types") else value
        elif not key.startswith("_") and key not in ELSEWHERE:
            raise _refused(where, key, value, "this release does not know the key")
    fields["image_size"] = _size(source.get("sample_size"), where)
    fields["mid_block"] = source.get("mid_block_type", "UNetMidBlock2D") is not None
    try:
        config = DiffusersUNetConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise _refused(where, key, source.get(key.partition(".")[0]), said) from error
    if config.image_size % config.divisor:
        raise _refused(where, "sample_size", config.image_size, f"it does not divide by {config.divisor}")
    return config


def _kinds(value: Any) -> Any:
    """Block types without the prefix that old files have."""
    if not isinstance(value, list):
        return value
    return [kind.removeprefix("UNetRes") if isinstance(kind, str) else kind for kind in value]


def _size(value: Any, where: str) -> int:
    if isinstance(value, list) and len(set(map(str, value))) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise _refused(where, "sample_size", value, "one size for height and width is needed")
    return value


def read_schedule(source: Mapping[str, Any], where: str) -> tuple[ScheduleConfig, Parameterisation]:
    """The schedule that a scheduler_config.json says, and what the network predicts.

    Raises:
        SettingsInvalid: Another scheduler or schedule than those that are known; the detail names the key.
    """
    if source.get("_class_name") not in SCHEDULERS:
        raise _refused(where, "_class_name", source.get("_class_name"), f"one of {', '.join(SCHEDULERS)}")
    if source.get("trained_betas") is not None:
        raise _refused(where, "trained_betas", "...", "betas of one's own are not read")
    said = {key: source.get(key, default) for key, default in _DEFAULT_BETAS.items()}
    for key, value in said.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise _refused(where, key, value, "a number is needed")
    steps, ends = int(said["num_train_timesteps"]), (float(said["beta_start"]), float(said["beta_end"]))
    prediction = source.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise _refused(where, "prediction_type", prediction, f"one of {', '.join(PREDICTIONS)}")
    kind, zero = source.get("beta_schedule", "linear"), bool(source.get("rescale_betas_zero_snr", False))
    if kind == "squaredcos_cap_v2" and not zero:
        schedule = ScheduleConfig("cosine", steps)
    elif kind == "linear" or (kind == "scaled_linear" and not zero):
        usual = kind == "linear" and steps == 1000 and ends == (0.0001, 0.02)
        name = "zero-terminal-snr" if zero else SCALED_LINEAR if kind == "scaled_linear" else "linear"
        first, last = (None, None) if usual else ends
        schedule = ScheduleConfig(name, steps, beta_start=first, beta_end=last)
    elif zero and kind in ("squaredcos_cap_v2", "scaled_linear"):
        raise _refused(where, "rescale_betas_zero_snr", zero, "it is read with linear betas alone")
    else:
        raise _refused(where, "beta_schedule", kind, "linear, scaled_linear or squaredcos_cap_v2")
    schedule_from_config(schedule)
    return schedule, PREDICTIONS[prediction]


def largest_difference(folder: Path, imported: Imported, *, pictures: int = 2, seed: int = 0) -> float:
    """How far the network's output is from that of the diffusers library on noise, relative to its largest value.

    Raises:
        ExtraMissing: The library is not installed.
    """
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ExtraMissing(
            "the comparison needs the diffusers library", hint="pip install 'ddib-fed[diffusers]'"
        ) from error
    inside = folder / "unet" if (folder / "unet").is_dir() else folder
    read: Any = UNet2DModel  # the library has no annotations
    theirs = read.from_pretrained(str(inside), local_files_only=True).float().eval()
    manifest = imported.manifest
    ours = network_with(manifest.network, imported.state).eval()
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(pictures, *manifest.sample_shape, generator=generator)
    steps = manifest.schedule.steps or 1000
    times = torch.randint(steps, (pictures,), generator=generator)
    classes = manifest.num_classes
    y = torch.randint(classes, (pictures,), generator=generator) if classes else None
    with torch.no_grad():
        wanted: Tensor = theirs(x, times, class_labels=y).sample
        found: Tensor = ours(x, times.float(), **({} if y is None else {"y": y}))
    return float((wanted - found).abs().max() / wanted.abs().max())


def _check(config: DiffusersUNetConfig, state: Mapping[str, Tensor], path: Path) -> None:
    expected = network_shapes(config)
    for key in (*expected, *(key for key in state if key not in expected)):
        problem = state_problem(key, expected, state)
        if problem:
            raise BundleInvalid(
                f"{path}: {key}: {problem}",
                hint="config.json and the weights are not of one model: copy the whole folder again",
                facts={"field": key[:100]},
            )


def _weights(folder: Path) -> Checkpoint:
    for name in WEIGHTS:
        if (folder / name).is_file():
            path = folder / name
            return read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)
    raise FileMissing(f"{folder} has neither {' nor '.join(WEIGHTS)}", hint="copy the whole folder again")


def _scheduler(folder: Path) -> tuple[Mapping[str, Any], str]:
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if path.is_file():
            return _json(path), str(path)
    raise FileMissing(
        f"{folder} has no scheduler_config.json, which tells what the model was trained on",
        hint="copy the whole pipeline: unet/ and scheduler/",
    )


def _json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileMissing(
            f"there is no file {path}", hint="name the folder of the pipeline, with unet/ in it"
        )
    try:
        read = json.loads(path.read_bytes())
    except ValueError as error:
        raise BundleInvalid(f"{path}: it is not JSON", hint="copy it again") from error
    if not isinstance(read, dict):
        raise BundleInvalid(f"{path}: it is not a JSON object", hint="copy it again")
    return read


def _new_name(key: str) -> str:
    head, dot, tail = key.rpartition(".")
    before, _, layer = head.rpartition(".")
    return (
        f"{before}.{_OLD_NAMES[layer]}{dot}{tail}" if ".attentions." in key and layer in _OLD_NAMES else key
    )


def _is_old_attention(key: str, tensor: Tensor) -> bool:
    """Whether it is a linear layer stored as a convolution of one place."""
    return ".attentions." in key and tensor.ndim == 4


def _facts(config: DiffusersUNetConfig, manifest: Manifest) -> list[Fact]:
    kind = "our UNet computes the same" if manifest.network.kind == "unet" else "as the library computes it"
    facts = [Fact("network", manifest.network.kind, kind)]
    for key, value in config.model_dump(exclude={"kind"}, mode="json").items():
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        facts.append(Fact(key, text, "unet/config.json"))
    schedule = manifest.schedule
    ends = f" of {schedule.beta_start:g} to {schedule.beta_end:g}" if schedule.ends else ""
    facts.append(Fact("schedule", f"{schedule.name}{ends}, {schedule.steps} steps", "scheduler_config.json"))
    facts.append(Fact("prediction", manifest.parameterisation, "scheduler_config.json"))
    return facts


def _refused(where: str, key: str, value: object, why: str) -> SettingsInvalid:
    return SettingsInvalid(
        f"{where}: {key} is {json.dumps(value, default=str)[:80]}: {why}",
        hint="the model cannot be computed exactly here: import another, or train one",
        facts={"field": key[:100]},
    )
