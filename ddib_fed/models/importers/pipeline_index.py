"""Reads which components a diffusers pipeline has, and refuses those that cannot be imported.

A pixel pipeline is a network (`UNet2DModel` or `DiTTransformer2DModel`) and a scheduler. Any other component
(autoencoder, text encoder, LoRA) is refused by name, because the network alone would compute something else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ddib_fed.errors import BundleInvalid, FileMissing, SettingsInvalid
from ddib_fed.files import parse_json

INDEX = "model_index.json"
SCHEDULER = "scheduler"
# Components that are networks, with the supported classes.
NETWORKS: Mapping[str, tuple[str, ...]] = {
    "unet": ("UNet2DModel",),
    "transformer": ("DiTTransformer2DModel", "Transformer2DModel"),
}
PIXELS = tuple(kind for kinds in NETWORKS.values() for kind in kinds)
SUPPORTED = "a pipeline of pixels is read: a UNet2DModel or DiTTransformer2DModel and a scheduler"
MAX_JSON_BYTES = 16 << 20
_ADAPTER = re.compile(
    r"(?:.*(?<![fp])lora.*|adapter_model.*)\.(?:safetensors|bin|pt|pth)|adapter_config\.json", re.IGNORECASE
)
# Tensors of adapters as peft, diffusers, kohya and LyCORIS call them.
_ADAPTED = re.compile(r"(?:^|[._])(?:lora(?:[._]|$)|hada_w\d|lokr_w\d)", re.IGNORECASE)
_AUTOENCODERS = re.compile(r"VQ|Autoencoder|VAE", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Information on a pipeline from its folder."""

    labels: Mapping[int, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def read_pipeline(folder: Path) -> Pipeline:
    """The information on a folder's network, if the whole pipeline can be imported."""
    index = read_json(folder / INDEX) if (folder / INDEX).is_file() else {}
    components = {**dict(_lying(folder)), **dict(_listed(index))}
    _refuse_adapters(folder)
    networks = [name for name, kinds in NETWORKS.items() if components.get(name) in kinds]
    averaged = {name: kind for name, kind in components.items() if kind in PIXELS and name not in NETWORKS}
    taken = {*networks[:1], *averaged, SCHEDULER}
    others = {name: kind for name, kind in components.items() if name not in taken}
    if others:
        raise _no_pixels(folder, index, components, others)
    if averaged.keys() & dict(_listed(index)).keys():
        raise _no_pixels(folder, index, components, averaged)
    beside = f"{networks[0]}/" if networks else "the network"
    remarks = tuple(f"{name}/ beside {beside} is not read" for name in sorted(averaged))
    if index:
        return Pipeline(_labels(index, folder), remarks)
    unchecked = (
        f"there is no {INDEX}: whether the network belongs to a pipeline with an autoencoder, whose latents are no "
        "pictures, could not be checked"
    )
    return Pipeline(remarks=remarks, warnings=(unchecked,))


def read_json(path: Path) -> Mapping[str, Any]:
    """The object in a JSON file."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_JSON_BYTES + 1)
    except OSError as error:
        raise FileMissing(
            f"there is no file {path}", hint="name the folder of the pipeline, with unet/ in it"
        ) from error
    if len(content) > MAX_JSON_BYTES:
        raise BundleInvalid(f"{path}: it is larger than {MAX_JSON_BYTES:,} bytes", hint="copy it again")
    try:
        read = parse_json(content)
    except ValueError as error:
        raise BundleInvalid(f"{path}: it is not JSON", hint="copy it again") from error
    if not isinstance(read, dict):
        raise BundleInvalid(f"{path}: it is not a JSON object", hint="copy it again")
    return read


def whole_pipeline(folder: Path) -> Path | None:
    above = folder.resolve().parent
    return above if not (folder / INDEX).is_file() and (above / INDEX).is_file() else None


def _listed(index: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in index.items():
        if name.startswith("_") or not isinstance(value, list) or len(value) != 2 or value[1] is None:
            continue
        yield name, str(value[1])


def _lying(folder: Path) -> Iterator[tuple[str, str]]:
    """Name and class of each component that lies in a sub-folder with a config.json."""
    for path in sorted(folder.glob("*/config.json")):
        said = read_json(path)
        kind = said.get("_class_name")
        if kind is None and isinstance(said.get("architectures"), list):
            kind = ", ".join(map(str, said["architectures"]))
        if kind:
            yield path.parent.name, str(kind)


def _refuse_adapters(folder: Path) -> None:
    found = sorted((*folder.glob("*"), *folder.glob("*/*")))
    for path in found:
        if _ADAPTER.fullmatch(path.name) or _holds_adapter(path):
            raise SettingsInvalid(
                f"{path} is an adapter (LoRA): it changes what the network computes, and is not read",
                hint="merge it with the library (load_lora_weights, fuse_lora, save_pretrained), or move the file away",
                facts={"field": path.name[:100]},
            )


def _holds_adapter(path: Path) -> bool:
    """Whether a file of safetensors has tensors of an adapter; only its header is read."""
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="np") as opened:
            return any(_ADAPTED.search(name) for name in opened.keys())  # noqa: SIM118 - it is no mapping
    except (SafetensorError, OSError):
        return False  # whoever reads it as weights says what is wrong


def _no_pixels(
    folder: Path, index: Mapping[str, Any], components: Mapping[str, str], others: Mapping[str, str]
) -> SettingsInvalid:
    """The error for another kind of pipeline, with what it is."""
    kind = index.get("_class_name")
    named = f"{folder}: " + (f"{_word(kind)} is " if kind else "it is ") + _family(components)
    parts = ", ".join(f"{name} ({_word(cls)})" for name, cls in others.items())
    return SettingsInvalid(
        f"{named}: {parts} {'belongs' if len(others) == 1 else 'belong'} to it and cannot be imported",
        hint=SUPPORTED,
        facts={"field": next(iter(others))[:100]},
    )


def _family(components: Mapping[str, str]) -> str:
    """What kind of pipeline has these components."""
    if components.get("transformer", PIXELS[-1]) not in PIXELS:
        return "another diffusion transformer"
    if any(_AUTOENCODERS.search(kind) for kind in components.values()):
        return "a latent-diffusion pipeline"
    if any(name.startswith(("text_encoder", "tokenizer", "prior")) for name in components):
        return "a pipeline with a text encoder"
    return "a pipeline with more than a network of pixels"


def _labels(index: Mapping[str, Any], folder: Path) -> dict[int, str]:
    said = index.get("id2label") or {}
    try:
        return {int(number): str(name)[:200] for number, name in said.items()}
    except (AttributeError, ValueError) as error:
        raise BundleInvalid(f"{folder / INDEX}: id2label is no table of numbers and names") from error


def _word(value: object) -> str:
    return str(value[-1] if isinstance(value, list) and value else value)[:80]
