"""The two files of a bundle, manifest.json and model.safetensors: as bytes, bounded, and checked against each other."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor

from ddib_fed.diffusion.schedule import schedule_from_config
from ddib_fed.errors import BundleInvalid, ModelNotFound, SettingsInvalid
from ddib_fed.files import parse_json
from ddib_fed.models.catalogue import MANIFEST_FILE, WEIGHTS_FILE
from ddib_fed.models.manifest import Manifest
from ddib_fed.networks.registry import network_shapes

MAX_MANIFEST_BYTES = 1 << 20
MAX_WEIGHTS_BYTES = 8 << 30
REMAKE = "train or import the model again, or copy the whole folder again"


def parse_manifest(data: bytes, source: str) -> Manifest:
    """The manifest in `data`, its digest verified."""
    try:
        fields = parse_json(data)
    except ValueError as error:
        raise invalid(source, MANIFEST_FILE, "", "it is not JSON") from error
    if not isinstance(fields, dict):
        raise invalid(source, MANIFEST_FILE, "", "it is not a JSON object")
    digest = fields.pop("digest", None)
    try:
        manifest = Manifest.model_validate(fields)
        schedule_from_config(manifest.schedule)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise invalid(source, MANIFEST_FILE, ".".join(map(str, first["loc"])), first["msg"]) from error
    except SettingsInvalid as error:
        raise invalid(source, MANIFEST_FILE, "schedule", error.detail) from error
    if digest != manifest.digest():
        raise invalid(source, MANIFEST_FILE, "digest", "the manifest was changed after it was written")
    return manifest


def manifest_text(manifest: Manifest) -> bytes:
    return (json.dumps({"digest": manifest.digest(), **manifest.fields()}, indent=2) + "\n").encode()


def check_state(manifest: Manifest, state: Mapping[str, Tensor], source: str) -> None:
    """Return if the weights are those of the manifest's network."""
    expected = network_shapes(manifest.network)
    for key in sorted(expected.keys() | state.keys()):
        problem = state_problem(key, expected, state)
        if problem:
            raise invalid(source, WEIGHTS_FILE, key, problem)


def state_problem(key: str, expected: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """The problem with `key` of a state dict, or an empty text."""
    if key not in expected:
        return "the network has no such tensor"
    if key not in state:
        return "the tensor is missing"
    if state[key].shape != expected[key].shape:
        return f"its shape is {tuple(state[key].shape)}, the network's {tuple(expected[key].shape)}"
    if not torch.isfinite(state[key]).all():
        return "it holds NaN or infinity"
    return ""


def plain_tensors(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().cpu().contiguous() for key, tensor in sorted(state.items())}


def read_weights(data: bytes, source: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file, float32 on the CPU."""
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise invalid(source, WEIGHTS_FILE, "", "it is not a safetensors file") from error
    # One by one, to avoid a second copy of all.
    return {key: tensors.pop(key).float() for key in list(tensors)}


def write_weights(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write a safetensors file directly from the tensors; returns its SHA-256, hex."""
    safetensors.torch.save_file(tensors, path)
    path.chmod(0o600)
    with path.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        os.fsync(file.fileno())
    return digest


def read_file(folder: Path | Traversable, name: str, max_bytes: int, source: str) -> bytes:
    """One file of a bundle, read once."""
    try:
        with (folder / name).open("rb") as file:
            data: bytes = file.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        if name == WEIGHTS_FILE:
            raise invalid(source, WEIGHTS_FILE, "", "the file is missing") from error
        raise ModelNotFound(
            f"there is no model bundle in {source}", hint="train one: ddib model train"
        ) from error
    except OSError as error:
        look = (
            f"namei -l {shlex.quote(str(folder / name))} shows each folder of the path and who may read there"
        )
        raise invalid(source, name, "", f"it cannot be read: {error.strerror}", hint=look) from error
    if len(data) > max_bytes:
        raise invalid(source, name, "", f"it is larger than {max_bytes} bytes")
    return data


def invalid(source: str, file: str, name: str, problem: str, *, hint: str = REMAKE) -> BundleInvalid:
    """The error for a problem with a file of the bundle `source`, or with the field or tensor `name` in it."""
    where = f"{source}: {file}" + (f", {name}" if name else "")
    facts: dict[str, Any] = {"file": file, "field": name[:100]} if name else {"file": file}
    return BundleInvalid(f"{where}: {problem}", hint=hint, facts=facts)
