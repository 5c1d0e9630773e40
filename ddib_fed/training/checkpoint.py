"""The folder of a training run: what is there, what may be replaced, how a checkpoint and the bundle are written.

out/manifest.json, out/model.safetensors      the finished bundle; the manifest is moved in last
out/run/run.json                              the run, settled
out/run/checkpoint-00000250/                  state.safetensors and state.json

A checkpoint appears whole (written under another name, synced, renamed) and is verified by digest before any of it is
used; the one before it is kept until the next is there.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ddib_fed.errors import AlreadyExists, BundleInvalid, StateConflict
from ddib_fed.files import model_folder, sync_folder, write_file
from ddib_fed.models.bundle import BESIDE, load_bundle, save_bundle
from ddib_fed.models.catalogue import MANIFEST_FILE, WEIGHTS_FILE
from ddib_fed.models.manifest import Manifest

RUN_FOLDER = "run"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
Config = TypeVar("Config", bound=BaseModel)
KEPT = 2
_PREFIX = "checkpoint-"


class CheckpointInfo(BaseModel):
    """state.json: what state.safetensors is a state of."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    config: dict[str, Any]
    identity: str
    cpu_seconds: float
    seconds: float
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
    """The newest checkpoint, verified."""
    found = _checkpoints(folder)
    if not found:
        return None
    path = found[-1]
    info = _read_info(path)
    try:
        content = (path / "state.safetensors").read_bytes()
        if hashlib.sha256(content).hexdigest() != info.sha256:
            raise _damaged(path, "its digest is wrong")
        return Checkpoint(info, load(content))
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from error


def _read_info(path: Path) -> CheckpointInfo:
    try:
        return CheckpointInfo.model_validate_json((path / "state.json").read_bytes())
    except (OSError, ValidationError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, why: object) -> BundleInvalid:
    return BundleInvalid(
        f"the checkpoint {path} is damaged: {why}",
        hint=f"remove {path} to resume from the checkpoint before it",
    )


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*"))


def run_identity(config: str, data: str) -> str:
    return hashlib.sha256(f"{config} {data}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class RunFolder:
    """One run's place on the disk."""

    out: Path
    data: str

    @property
    def run(self) -> Path:
        return self.out / RUN_FOLDER

    def found(self, kind: type[Config], *, resume: bool, force: bool) -> Config | None:
        """The stored run to resume, or None when there is none, or none any more."""
        if force:
            for name in (MANIFEST_FILE, WEIGHTS_FILE, *BESIDE):
                (self.out / name).unlink(missing_ok=True)
            shutil.rmtree(self.run, ignore_errors=True)
        stored = self._stored(kind)
        if resume and stored is not None:
            return stored
        if (self.out / MANIFEST_FILE).exists():
            raise AlreadyExists(
                f"{self.out} holds a finished model", hint="choose another folder, or --force to replace it"
            )
        if stored is not None:
            raise AlreadyExists(
                f"{self.out} holds an unfinished run",
                hint="--resume to resume it, --force to start again",
            )
        return None

    def begin(self, settled: BaseModel) -> None:
        """Write the settings of a new run."""
        model_folder(self.out)
        model_folder(self.run)
        write_file(self.run / "run.json", settled.model_dump_json(indent=2).encode(), private=True)

    def finished(self, identities: Collection[str]) -> bool:
        """Whether a bundle is there, of a run with one of these identities."""
        if not (self.out / MANIFEST_FILE).exists():
            return False
        checkpoints = _checkpoints(self.run)
        if checkpoints and _read_info(checkpoints[-1]).identity not in identities:
            raise self.other_run()
        return True

    def require_own(self, checkpoint: Checkpoint, identities: Collection[str]) -> None:
        if checkpoint.info.identity not in identities:
            raise self.other_run()

    def put(self, manifest: Manifest, state: Mapping[str, Tensor]) -> None:
        """Move the finished bundle in."""
        model_folder(self.out)
        staged = self.run / "bundle"
        weights = save_bundle(staged, manifest, state, overwrite=True).manifest.weights_sha256
        if (self.out / MANIFEST_FILE).exists() and load_bundle(self.out).manifest.weights_sha256 != weights:
            # Without its manifest no bundle is here until the new one is.
            for name in (MANIFEST_FILE, *BESIDE):
                (self.out / name).unlink(missing_ok=True)
        for name in (WEIGHTS_FILE, MANIFEST_FILE):
            (staged / name).replace(self.out / name)
            sync_folder(self.out)
        shutil.rmtree(staged)

    def other_run(self) -> StateConflict:
        """What is said when the run here is not the one that was asked for."""
        return StateConflict(
            f"the run in {self.out} was started with other settings or other {self.data}",
            hint=f"the settings are in {self.run / 'run.json'}; --force starts again",
        )

    def _stored(self, kind: type[Config]) -> Config | None:
        path = self.run / "run.json"
        if not path.exists():
            return None
        try:
            return kind.model_validate_json(path.read_bytes())
        except ValidationError as error:
            raise BundleInvalid(
                f"{path} cannot be read: {error}", hint="--force starts the run again"
            ) from error
