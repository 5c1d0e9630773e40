"""Checkpoints of the public code to bundles: a pickle is read here, with `weights_only`, and nowhere else.

The rule: sizes are inferred from the shapes, and a tensor too many, too few or of another shape is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddib_fed.diffusion.denoiser import Parameterisation
from ddib_fed.diffusion.schedule import ScheduleConfig, schedule_from_config
from ddib_fed.errors import BundleInvalid, FileMissing
from ddib_fed.models.bundle import Bundle, make_bundle, state_problem
from ddib_fed.models.manifest import Manifest, Normalisation, SyntheticConfig, Training
from ddib_fed.models.networks import build_network

# Names under which training scripts keep the state dict, the averaged weights first.
WRAPPERS = ("ema", "state_dict", "model")
PREFIXES = ("module.",)
ENTER = "input_blocks.0.0.weight"
LEAVE = "out.2.weight"


def import_synthetic(
    path: Path,
    *,
    domain: str,
    name: str = "",
    noise_schedule: str = "linear",
    diffusion_steps: int = 4000,
    rescale_timesteps: bool = False,
    predict_xstart: bool = False,
    normalisation: Normalisation | None = None,
) -> Bundle:
    """A bundle of the public code's 2-D checkpoint (`SyntheticModel`).

    Args:
        path: The .pt file: a state dict, or one under "ema", "state_dict" or "model".
        domain: What it was trained on.
        name: Of the model; the file's name when empty.
        noise_schedule: "linear" or "cosine", as it was trained.
        diffusion_steps: As it was trained; the public code's default for 2-D is 4,000.
        rescale_timesteps: Whether the network hears times up to 1,000 whatever the steps.
        predict_xstart: Whether it predicts x0 instead of eps.
        normalisation: Of the raw data; none by default.

    Raises:
        FileMissing: There is no such file.
        BundleInvalid: It is no checkpoint, or not of this network; the detail names the first tensor that differs.
        SettingsInvalid: No such schedule.
    """
    schedule = ScheduleConfig(noise_schedule, diffusion_steps, rescale_timesteps)
    schedule_from_config(schedule)
    state = read_state_dict(path)
    network = infer_synthetic(state, str(path))
    parameterisation: Parameterisation = "x0" if predict_xstart else "eps"
    manifest = Manifest(
        name=name or path.stem,
        domain=domain,
        sample_shape=(network.in_channels,),
        network=network,
        parameterisation=parameterisation,
        time_input="timestep",
        schedule=schedule,
        normalisation=normalisation or Normalisation(),
        training=Training(command=f"imported from a public checkpoint, {path.name}"[:2000]),
    )
    return make_bundle(manifest, state, source=str(path))


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a .pt file, float tensors as float32, without the prefixes of wrappers.

    Raises:
        FileMissing: There is no such file.
        BundleInvalid: It cannot be read with `weights_only`, or holds no state dict.
    """
    if not path.is_file():
        raise FileMissing(f"there is no file {path}")
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on broken bytes an unpickler raises anything, IndexError included
        raise BundleInvalid(
            f"{path}: it is no checkpoint that can be read safely (weights only)",
            hint="save the state dict alone: torch.save(model.state_dict(), FILE)",
        ) from error
    found = _unwrap(loaded)
    if found is None:
        raise BundleInvalid(
            f"{path}: it holds no state dict",
            hint=f"one is looked for at the top and under {', '.join(WRAPPERS)}",
        )
    return {_plain(key): tensor.float() for key, tensor in found.items()}


def infer_synthetic(state: Mapping[str, Tensor], source: str) -> SyntheticConfig:
    """The constructor arguments of the `SyntheticModel` that `state` belongs to.

    Raises:
        BundleInvalid: It belongs to none; the detail names the first tensor that differs.
    """
    for key in (ENTER, LEAVE):
        if key not in state or state[key].ndim != 2:
            raise _refused(source, key, "the tensor is missing or has another number of dimensions")
    blocks = {key.split(".")[2] for key in state if key.startswith("input_blocks.1.")}
    num_channels, in_channels = state[ENTER].shape
    fields = {
        "in_channels": in_channels,
        "out_channels": len(state[LEAVE]),
        "num_channels": num_channels,
        "num_res_blocks": len(blocks),
    }
    try:
        config = SyntheticConfig.model_validate(fields)
    except ValueError as error:
        raise _refused(source, ENTER, f"no network of this kind has these sizes: {fields}") from error
    expected = build_network(config).state_dict()
    for key in (*expected, *(key for key in state if key not in expected)):
        problem = state_problem(key, expected, state)
        if problem:
            raise _refused(source, key, problem)
    return config


def _unwrap(loaded: Any) -> dict[str, Tensor] | None:
    """The state dict in what was loaded, one level down at most."""
    if not isinstance(loaded, Mapping) or not loaded:
        return None
    inner = [loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), Mapping)]
    for candidate in (loaded, *inner):
        if candidate and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in candidate.items()):
            return dict(candidate)
    return None


def _plain(key: str) -> str:
    for prefix in PREFIXES:
        key = key.removeprefix(prefix)
    return key


def _refused(source: str, key: str, problem: str) -> BundleInvalid:
    return BundleInvalid(
        f"{source}: {key}: {problem}",
        hint="this importer reads the public code's 2-D network; check that the file is one",
        facts={"field": key[:100]},
    )
