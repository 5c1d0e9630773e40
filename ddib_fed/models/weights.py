"""Reads weights from checkpoints of other code, and writes those of the public code's 2-D network."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ddib_fed.errors import BundleInvalid, FileMissing, SettingsInvalid
from ddib_fed.models.bundle import Bundle, make_bundle
from ddib_fed.models.manifest import Manifest
from ddib_fed.networks.config import SyntheticConfig

NAMED = ("linear", "cosine")


def public_checkpoint(bundle: Bundle) -> tuple[bytes, str]:
    """The content of a .pt file, a state dict in float32, and the flags that the public scripts need."""
    manifest, network = bundle.manifest, bundle.manifest.network
    if not isinstance(network, SyntheticConfig):
        raise SettingsInvalid(
            f"{manifest.name} is a network of kind {network.kind}; the public code's for points is `synthetic`",
            hint="train one: ddib model train --domain moons --set network=public --steps 100000 --out DIR",
        )
    schedule = manifest.schedule
    named = schedule.steps is not None and schedule.name in NAMED and schedule.ends is None
    if not named or manifest.time_input != "timestep" or manifest.parameterisation == "v":
        raise SettingsInvalid(
            f"{manifest.name} predicts {manifest.parameterisation} and takes the time as {manifest.time_input}; the "
            "network of the public code predicts eps or x0 at integer steps of a linear or cosine schedule",
            hint="train one: ddib model train --domain moons --set network=public --steps 100000 --out DIR",
        )
    flags = {
        "num_channels": network.num_channels,
        "num_res_blocks": network.num_res_blocks,
        "in_channels": network.in_channels,
        "dropout": network.dropout,
        "diffusion_steps": schedule.steps,
        "noise_schedule": schedule.name,
        "predict_xstart": manifest.parameterisation == "x0",
        "rescale_timesteps": schedule.rescale_timesteps,
    }
    stream = io.BytesIO()
    torch.save({key: value.clone() for key, value in bundle.state.items()}, stream)
    return stream.getvalue(), " ".join(f"--{key} {value}" for key, value in flags.items())


# Names under which training scripts keep the state dict, averaged weights first.
WRAPPERS = (
    "ema",
    "ema_state_dict",
    "model_ema",
    "ema_model",
    "state_dict",
    "model_state_dict",
    "model",
    "network",
)
PREFIXES = ("module.",)
# What the public training code writes: ema_0.9999_500000.pt, model500000.pt and opt500000.pt.
_AVERAGED = re.compile(r"ema_(0?\.\d+)_(\d+)\.pt")
_RAW = re.compile(r"model(\d+)\.pt")
_OPTIMISER = re.compile(r"opt\d*\.pt")


@dataclass(frozen=True, slots=True)
class WeightsFile:
    path: Path
    state: Mapping[str, Tensor] = field(repr=False)
    under: str
    dtypes: tuple[str, ...]

    @property
    def steps(self) -> int:
        found = _AVERAGED.fullmatch(self.path.name) or _RAW.fullmatch(self.path.name)
        return int(found.groups()[-1]) if found else 0

    @property
    def remarks(self) -> tuple[str, ...]:
        said = []
        averaged = _AVERAGED.fullmatch(self.path.name)
        if averaged:
            said.append(f"weights averaged over training (rate {averaged[1]}, step {averaged[2]})")
        if _RAW.fullmatch(self.path.name):
            said.append("weights as they were trained; the averaged ones, ema_*.pt beside them, draw better")
        if self.under:
            said.append(f"weights found under {self.under!r}")
        if self.dtypes != ("float32",):
            said.append(f"{' and '.join(self.dtypes)} widened to float32")
        return tuple(said)


def read_checkpoint(path: Path) -> WeightsFile:
    if not path.is_file():
        raise FileMissing(f"there is no file {path}")
    if _OPTIMISER.fullmatch(path.name):
        raise _optimiser(path)
    try:
        # Mapped, so that a checkpoint of gigabytes is not in memory twice; older file formats cannot be mapped.
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # on damaged bytes an unpickler raises any exception, IndexError included
        raise BundleInvalid(
            f"{path}: it is no checkpoint that can be read safely (weights only)",
            hint="save the state dict alone: torch.save(model.state_dict(), FILE)",
        ) from error
    if isinstance(loaded, Mapping) and "param_groups" in loaded:
        raise _optimiser(path)
    found, under = _unwrap(loaded)
    if found is None:
        raise BundleInvalid(
            f"{path}: it holds no state dict",
            hint=f"one is looked for at the top and under {', '.join(WRAPPERS)}",
        )
    return _checkpoint(path, found, under)


def read_tensors(path: Path) -> WeightsFile:
    return read_safetensors(path) if path.suffix == ".safetensors" else read_checkpoint(path)


def read_safetensors(path: Path) -> WeightsFile:
    if not path.is_file():
        raise FileMissing(f"there is no file {path}")
    try:
        found = safetensors.torch.load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise BundleInvalid(f"{path}: it cannot be read as safetensors", hint="copy it again") from error
    return _checkpoint(path, found, "")


def _checkpoint(path: Path, found: Mapping[str, Tensor], under: str) -> WeightsFile:
    dtypes = sorted({str(tensor.dtype).removeprefix("torch.") for tensor in found.values()})
    state = {key: tensor.float() for key, tensor in renamed(found, _plain, path).items()}
    return WeightsFile(path, state, under, tuple(dtypes))


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


def _unwrap(loaded: Any) -> tuple[dict[str, Tensor] | None, str]:
    """The state dict in the loaded object, at most one level down, and its key."""
    if not isinstance(loaded, Mapping) or not loaded:
        return None, ""
    inner = [(loaded[name], name) for name in WRAPPERS if isinstance(loaded.get(name), Mapping)]
    for candidate, name in ((loaded, ""), *inner):
        if candidate and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in candidate.items()):
            return dict(candidate), name
    return None, ""


def _plain(key: str) -> str:
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _optimiser(path: Path) -> BundleInvalid:
    return BundleInvalid(
        f"{path}: it holds the state of an optimiser, not weights",
        hint="the public code writes the weights beside it: ema_0.9999_STEP.pt, or modelSTEP.pt",
    )


@dataclass(frozen=True, slots=True)
class Fact:
    key: str
    value: str
    basis: str


def import_note(where: str, warnings: tuple[str, ...] = ()) -> str:
    said = f"imported weights: {where} does not say what they were trained on"
    return "; ".join((said, *warnings))[:4000]


@dataclass(frozen=True, slots=True)
class Imported:
    """A model read from other code's files, not yet a bundle."""

    manifest: Manifest
    state: Mapping[str, Tensor] = field(repr=False)
    facts: tuple[Fact, ...]
    ignored: Mapping[str, str]
    remarks: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    @property
    def of_files(self) -> bool:
        return any(fact.basis == "scheduler_config.json" for fact in self.facts)

    @property
    def bundle(self) -> Bundle:
        return make_bundle(self.manifest, self.state, source=self.manifest.name)
