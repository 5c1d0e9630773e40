"""The state of a training run on disk: `run/checkpoint-000250/` with state.safetensors and state.json.

A checkpoint appears whole (written under another name, synced, renamed) and is verified by digest before
any of it is used; the one before it is kept until the next is there.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ddib_fed.errors import BundleInvalid
from ddib_fed.files import model_folder, sync_folder, write_file

FORMAT_VERSION = 1
KEPT = 2
_PREFIX = "checkpoint-"


class CheckpointInfo(BaseModel):
    """state.json: what state.safetensors is a state of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    step: int
    config: dict[str, Any]
    identity: str
    torch_version: str = str(torch.__version__)
    cpu_seconds: float
    seconds: float = 0.0
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What is needed to resume."""

    info: CheckpointInfo
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors of one prefix, without it."""
        start = f"{prefix}."
        return {
            name.removeprefix(start): value for name, value in self.tensors.items() if name.startswith(start)
        }


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{number}.{name}": value for number, entry in state.items() for name, value in entry.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Give the optimiser the state that `optimizer_tensors` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def write_checkpoint(folder: Path, info: CheckpointInfo, tensors: dict[str, Tensor]) -> None:
    """Write a checkpoint into the run's folder and drop those that are no longer needed."""
    final = folder / f"{_PREFIX}{info.step:08d}"
    scratch = folder / f".{final.name}"
    for old in (scratch, final):
        shutil.rmtree(old, ignore_errors=True)
    model_folder(folder)
    scratch.mkdir(mode=0o700)
    content = save({name: value.contiguous() for name, value in tensors.items()})
    signed = info.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
    write_file(scratch / "state.safetensors", content, private=True)
    write_file(scratch / "state.json", signed.model_dump_json(indent=2).encode(), private=True)
    scratch.rename(final)
    sync_folder(folder)
    for path in _checkpoints(folder)[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    found = _checkpoints(folder)
    return read_checkpoint(found[-1]) if found else None


def latest_identity(folder: Path) -> str | None:
    found = _checkpoints(folder)
    return _read_info(found[-1]).identity if found else None


def read_checkpoint(path: Path) -> Checkpoint:
    """One checkpoint, verified."""
    hint = _hint(path)
    info = _read_info(path)
    try:
        content = (path / "state.safetensors").read_bytes()
    except OSError as error:
        raise BundleInvalid(f"the checkpoint {path} cannot be read: {error}", hint=hint) from error
    if info.format_version != FORMAT_VERSION:
        raise BundleInvalid(
            f"the checkpoint {path} has format {info.format_version}, not {FORMAT_VERSION}", hint=hint
        )
    if hashlib.sha256(content).hexdigest() != info.sha256:
        raise BundleInvalid(f"the checkpoint {path} is damaged: its digest is wrong", hint=hint)
    try:
        return Checkpoint(info, load(content))
    except SafetensorError as error:
        raise BundleInvalid(f"the checkpoint {path} is no safetensors file: {error}", hint=hint) from error


def _read_info(path: Path) -> CheckpointInfo:
    try:
        return CheckpointInfo.model_validate_json((path / "state.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise BundleInvalid(f"the checkpoint {path} cannot be read: {error}", hint=_hint(path)) from error


def _hint(path: Path) -> str:
    return f"remove {path} to resume from the checkpoint before it"


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*"))
