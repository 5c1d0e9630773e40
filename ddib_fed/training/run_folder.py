"""The folder of a training run: what is there, what may be replaced, how the bundle is moved in.

out/manifest.json, out/model.safetensors      the finished bundle; the manifest is moved in last
out/run/run.json                              the run, settled
out/run/checkpoint-00000250/                  see `checkpoint`
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from ddib_fed.errors import AlreadyExists, BundleInvalid, StateConflict
from ddib_fed.files import model_folder, sync_folder, write_file
from ddib_fed.models.bundle import BESIDE, load_bundle, save_bundle
from ddib_fed.models.catalogue import MANIFEST_FILE, WEIGHTS_FILE
from ddib_fed.models.manifest import Manifest
from ddib_fed.training.checkpoint import Checkpoint, latest_identity

RUN_FOLDER = "run"
DTYPES = {"float32": torch.float32, "float16": torch.float16}
Config = TypeVar("Config", bound=BaseModel)


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
        if latest_identity(self.run) not in {None, *identities}:
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
