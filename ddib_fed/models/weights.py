"""Reads weights from checkpoints of other code, and writes those of the public code's 2-D network."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ddib_fed.errors import BundleInvalid, FileMissing, SettingsInvalid
from ddib_fed.models.bundle import Bundle
from ddib_fed.models.manifest import Manifest
from ddib_fed.networks.config import SyntheticConfig

# Names under which training scripts keep the state dict, averaged weights first.
WRAPPERS = (
    "ema", "ema_state_dict", "model_ema", "ema_model", "state_dict", "model_state_dict", "model", "network",
)  # fmt: skip
# What the public training code writes: ema_0.9999_500000.pt, model500000.pt and opt500000.pt.
_AVERAGED = re.compile(r"ema_(0?\.\d+)_(\d+)\.pt")
_RAW = re.compile(r"model(\d+)\.pt")
_OPTIMISER = re.compile(r"opt\d*\.pt")


class WeightsFile(NamedTuple):
    """Tensors in float32; the optimiser steps that the file's name tells; what is said of the file."""

    state: Mapping[str, Tensor]
    steps: int
    remarks: tuple[str, ...]


def read_tensors(path: Path) -> WeightsFile:
    """The state dict in a file of safetensors or in a pickled checkpoint, of which only tensors are read."""
    if not path.is_file():
        raise FileMissing(f"there is no file {path}")
    if path.suffix == ".safetensors":
        try:
            found = safetensors.torch.load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise BundleInvalid(f"{path}: it cannot be read as safetensors", hint="copy it again") from error
    else:
        found = _unpickled(path)
    averaged, raw = _AVERAGED.fullmatch(path.name), _RAW.fullmatch(path.name)
    remarks = []
    if averaged:
        remarks.append(f"weights averaged over training (rate {averaged[1]}, step {averaged[2]})")
    if raw:
        remarks.append("weights as they were trained; the averaged ones, ema_*.pt beside them, draw better")
    plain = renamed(found, lambda key: key.removeprefix("module."), path)  # DataParallel's prefix
    steps = int(averaged[2]) if averaged else int(raw[1]) if raw else 0
    return WeightsFile({key: tensor.float() for key, tensor in plain.items()}, steps, tuple(remarks))


def _unpickled(path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint, at most one level down."""
    loaded: Any = None
    if not _OPTIMISER.fullmatch(path.name):
        try:
            # Mapped, so that a checkpoint of gigabytes is not in memory twice; older formats cannot be mapped.
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:  # on damaged bytes an unpickler raises any exception, IndexError included
            raise BundleInvalid(
                f"{path}: it is no checkpoint that can be read safely (weights only)",
                hint="save the state dict alone: torch.save(model.state_dict(), FILE)",
            ) from error
    if _OPTIMISER.fullmatch(path.name) or (isinstance(loaded, Mapping) and "param_groups" in loaded):
        raise BundleInvalid(
            f"{path}: it holds the state of an optimiser, not weights",
            hint="the public code writes the weights beside it: ema_0.9999_STEP.pt, or modelSTEP.pt",
        )
    if isinstance(loaded, Mapping):
        for candidate in (loaded, *map(loaded.get, WRAPPERS)):
            if not isinstance(candidate, Mapping) or not candidate:
                continue
            if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in candidate.items()):
                return dict(candidate)
    problem = f"{path}: it holds no state dict"
    raise BundleInvalid(problem, hint=f"one is looked for at the top and under {', '.join(WRAPPERS)}")


def renamed(found: Mapping[str, Tensor], rename: Callable[[str], str], path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for key, tensor in found.items():
        if rename(key) in state:
            raise BundleInvalid(
                f"{path}: {rename(key)[:100]}: two tensors are this one, under two names",
                hint="save the state dict of the model alone",
                facts={"field": key[:100]},
            )
        state[rename(key)] = tensor
    return state


class Fact(NamedTuple):
    key: str
    value: str
    basis: str


@dataclass(frozen=True, slots=True)
class Imported:
    """A model read from other code's files, not yet a bundle."""

    manifest: Manifest
    state: Mapping[str, Tensor] = field(repr=False)
    facts: tuple[Fact, ...]
    ignored: Mapping[str, str]
    remarks: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def import_note(where: str, warnings: tuple[str, ...] = ()) -> str:
    said = f"imported weights: {where} does not say what they were trained on"
    return "; ".join((said, *warnings))[:4000]


def public_checkpoint(bundle: Bundle) -> tuple[bytes, str]:
    """The content of a .pt file, a state dict in float32, and the flags that the public scripts need."""
    manifest, network, schedule = bundle.manifest, bundle.manifest.network, bundle.manifest.schedule
    named = schedule.steps is not None and schedule.name in ("linear", "cosine") and schedule.ends is None
    timed = manifest.time_input == "timestep" and manifest.parameterisation != "v"
    if not isinstance(network, SyntheticConfig) or not named or not timed:
        raise SettingsInvalid(
            f"{manifest.name} is a network of kind {network.kind} that predicts {manifest.parameterisation}; the "
            "public code's for points is `synthetic`, and predicts eps or x0 at integer steps of a linear or cosine "
            "schedule",
            hint="train one: ddib model train --domain moons --set network=public --steps 100000 --out DIR",
        )
    flags = {
        **network.model_dump(exclude={"kind", "out_channels"}),
        "diffusion_steps": schedule.steps,
        "noise_schedule": schedule.name,
        "predict_xstart": manifest.parameterisation == "x0",
        "rescale_timesteps": schedule.rescale_timesteps,
    }
    stream = io.BytesIO()
    torch.save({key: value.clone() for key, value in bundle.state.items()}, stream)
    return stream.getvalue(), " ".join(f"--{key} {value}" for key, value in flags.items())
