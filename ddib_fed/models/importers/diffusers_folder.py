"""Imports the folder of a diffusers pipeline of pixels; only JSON and tensors are read.

A setting that this release cannot compute exactly is refused by its key.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ddib_fed.errors import BundleInvalid, FileMissing, SettingsInvalid
from ddib_fed.models.bundle_files import state_problem
from ddib_fed.models.importers.adm_names import adm_config, adm_state
from ddib_fed.models.importers.checkpoints import renamed
from ddib_fed.models.importers.component_config import AnyComponent, network_config
from ddib_fed.models.importers.pipeline_index import (
    INDEX,
    NETWORKS,
    Pipeline,
    read_json,
    read_pipeline,
    whole_pipeline,
)
from ddib_fed.models.importers.report import Fact, Imported, import_note
from ddib_fed.models.importers.scheduler_config import read_schedule, unused
from ddib_fed.models.importers.weight_files import find_weights, read_weights
from ddib_fed.models.manifest import DataNote, Manifest, PictureFormat, Training
from ddib_fed.networks.diffusers.config import DiffusersDiTConfig, DiffusersUNetConfig
from ddib_fed.networks.registry import network_shapes, network_with

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
    _check(config, state, checkpoint.path)
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


def largest_difference(
    folder: Path, imported: Imported, *, variant: str | None = None, pictures: int = 2, seed: int = 0
) -> float:
    """Difference of the network's output from that of the diffusers library on noise, relative to its largest value."""
    from diffusers.models.transformers.dit_transformer_2d import DiTTransformer2DModel
    from diffusers.models.unets.unet_2d import UNet2DModel

    inside = _network_folder(folder)
    weights, _ = find_weights(inside, variant)
    manifest = imported.manifest
    is_transformer = isinstance(manifest.network, DiffusersDiTConfig)
    kind = DiTTransformer2DModel if is_transformer else UNet2DModel
    theirs = kind.from_pretrained(
        str(inside),
        local_files_only=True,
        variant=weights.variant or None,
        use_safetensors=weights.suffix == ".safetensors",
    )
    theirs = theirs.float().eval()
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


def _check(config: AnyComponent, state: Mapping[str, Tensor], path: Path) -> None:
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
