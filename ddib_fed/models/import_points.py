"""Imports checkpoints of the public code's 2-D network.

Sizes are inferred from the shapes; a missing or unexpected tensor, or one of another shape, is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ddib_fed.diffusion.denoiser import Parameterisation
from ddib_fed.diffusion.schedule import ScheduleConfig, schedule_from_config
from ddib_fed.errors import BundleInvalid
from ddib_fed.models.bundle import Bundle, make_bundle, misfits
from ddib_fed.models.manifest import Manifest, Training
from ddib_fed.models.units import Normalisation
from ddib_fed.models.weights import read_checkpoint
from ddib_fed.networks.config import SyntheticConfig

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
    """A bundle of the public code's 2-D checkpoint (`SyntheticModel`)."""
    schedule = ScheduleConfig(noise_schedule, diffusion_steps, rescale_timesteps)
    schedule_from_config(schedule)
    state = read_checkpoint(path).state
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


def infer_synthetic(state: Mapping[str, Tensor], source: str) -> SyntheticConfig:
    """The constructor arguments of the `SyntheticModel` that `state` belongs to."""
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
    for key, problem in misfits(config, state):
        raise _refused(source, key, problem)
    return config


def _refused(source: str, key: str, problem: str) -> BundleInvalid:
    return BundleInvalid(
        f"{source}: {key}: {problem}",
        hint="this importer reads the public code's 2-D network; check that the file is one",
        facts={"field": key[:100]},
    )
