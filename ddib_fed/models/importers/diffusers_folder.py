"""Imports the folder of a diffusers pipeline with a `UNet2DModel`; only JSON and tensors are read.

What the folder says that this release cannot compute exactly is refused by its key. The library itself is
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

from ddib_fed.errors import BundleInvalid, ExtraMissing, FileMissing, SettingsInvalid
from ddib_fed.models.bundle import state_problem
from ddib_fed.models.importers.adm_names import adm_config, adm_state
from ddib_fed.models.importers.checkpoints import renamed
from ddib_fed.models.importers.pipeline_index import (
    INDEX,
    NETWORK,
    Pipeline,
    read_json,
    read_pipeline,
    whole_pipeline,
)
from ddib_fed.models.importers.report import Fact, Imported, import_note
from ddib_fed.models.importers.scheduler_config import read_schedule, refused_key, unused
from ddib_fed.models.importers.weight_files import find_weights, read_weights
from ddib_fed.models.manifest import DataNote, Manifest, PictureFormat, Training
from ddib_fed.networks.diffusers_config import DiffusersUNetConfig
from ddib_fed.networks.registry import network_shapes, network_with

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
# What older weights call the layers of attention.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_DEFAULT_KINDS = {
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
}


def import_diffusers(
    folder: Path,
    *,
    domain: str,
    name: str = "",
    fit: Literal["pad", "crop", "resize"] = "crop",
    soften_sigma: float = 0.0,
    variant: str | None = None,
) -> Imported:
    """Manifest and weights of the UNet and the scheduler in a pipeline's folder.

    Args:
        folder: With unet/ and scheduler/, or with both files at the top, as `save_pretrained` writes them.
        domain: What it was trained on.
        name: Of the model; the folder's name when empty.
        fit: How pictures of another size are fitted.
        soften_sigma: Noise level to which pictures are softened before encoding.
        variant: Which of the weights, such as "fp16"; None for the full ones, or the only variant.

    Raises:
        FileMissing: A file is not there.
        BundleInvalid: A file is damaged, or the weights are of another network; the detail names the first tensor.
        SettingsInvalid: The pipeline has more than a network of pixels and a scheduler, or one of the two cannot be
            computed exactly; the detail names the component or the key.
    """
    above = whole_pipeline(folder)
    if above is not None:
        read_pipeline(above)
    pipeline = read_pipeline(folder)
    inside = _network_folder(folder)
    where = str(inside / "config.json")
    config = unet_config(read_json(inside / "config.json"), where)
    said, scheduler = _scheduler(folder)
    schedule, prediction = read_schedule(said, scheduler)
    weights, remarks = find_weights(inside, variant)
    checkpoint = read_weights(weights)
    state = {
        key: tensor.flatten(2).squeeze(-1) if _is_old_attention(key, tensor) else tensor
        for key, tensor in renamed(checkpoint.state, _new_name, checkpoint.path).items()
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
    return folder / NETWORK if (folder / NETWORK).is_dir() else folder


def _classes(pipeline: Pipeline, config: DiffusersUNetConfig, folder: Path) -> tuple[str, ...]:
    """The classes' names in their order, where the pipeline has them.

    Raises:
        SettingsInvalid: They are not those of the network's classes.
    """
    count = config.num_classes or 0
    if pipeline.labels and sorted(pipeline.labels) != list(range(count)):
        raise SettingsInvalid(
            f"{folder / INDEX}: id2label names {len(pipeline.labels)} classes, the network has {count}",
            hint="copy the whole pipeline again, or take id2label out of the file",
            facts={"field": "id2label"},
        )
    return tuple(pipeline.labels[number] for number in range(count)) if pipeline.labels else ()


def unet_config(source: Mapping[str, Any], where: str) -> DiffusersUNetConfig:
    """The arguments that a unet/config.json says, `UNet2DModel`'s defaults where it is silent.

    Raises:
        SettingsInvalid: It is of another network, or has a setting that cannot be computed exactly; the detail names
            the key.
    """
    if source.get("_class_name") != "UNet2DModel":
        raise refused_key(where, "_class_name", source.get("_class_name"), "only UNet2DModel is read")
    fields: dict[str, Any] = dict(_DEFAULT_KINDS)
    for key, value in source.items():
        if key in ONLY:
            if value not in ONLY[key]:
                allowed = " or ".join(json.dumps(item) for item in ONLY[key])
                raise refused_key(where, key, value, f"only {allowed} is read")
        elif key in SAME:
            fields[key] = _kinds(value) if key.endswith("block_types") else value
        elif not key.startswith("_") and key not in ELSEWHERE:
            raise refused_key(where, key, value, "this release does not know the key")
    fields["image_size"] = _size(source.get("sample_size"), where)
    fields["mid_block"] = source.get("mid_block_type", "UNetMidBlock2D") is not None
    try:
        config = DiffusersUNetConfig.model_validate(fields)
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


def _kinds(value: Any) -> Any:
    """Block types without the prefix that old files have."""
    if not isinstance(value, list):
        return value
    return [kind.removeprefix("UNetRes") if isinstance(kind, str) else kind for kind in value]


def _size(value: Any, where: str) -> int:
    if isinstance(value, list) and len(set(map(str, value))) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise refused_key(where, "sample_size", value, "one size for height and width is needed")
    return value


def largest_difference(
    folder: Path, imported: Imported, *, variant: str | None = None, pictures: int = 2, seed: int = 0
) -> float:
    """How far the network's output is from that of the diffusers library on noise, relative to its largest value.

    Args:
        folder: As imported.
        imported: What was made of it.
        variant: As imported.
        pictures: How many are compared.
        seed: Of the noise, the steps and the classes.

    Raises:
        ExtraMissing: The library is not installed.
    """
    try:
        from diffusers import UNet2DModel
    except ImportError as error:
        raise ExtraMissing(
            "the comparison needs the diffusers library", hint="pip install 'ddib-fed[diffusers]'"
        ) from error
    inside = _network_folder(folder)
    weights, _ = find_weights(inside, variant)
    read: Any = UNet2DModel  # the library has no annotations
    theirs = read.from_pretrained(
        str(inside),
        local_files_only=True,
        variant=weights.variant or None,
        use_safetensors=weights.suffix == ".safetensors",
    )
    theirs = theirs.float().eval()
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


def _scheduler(folder: Path) -> tuple[Mapping[str, Any], str]:
    for path in (folder / "scheduler" / "scheduler_config.json", folder / "scheduler_config.json"):
        if path.is_file():
            return read_json(path), str(path)
    above = whole_pipeline(folder)
    raise FileMissing(
        f"{folder} has no scheduler_config.json, which tells what the model was trained on",
        hint=f"name the whole pipeline: --diffusers {above}"
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
