"""Exports a bundle of the public code's 2-D network as a checkpoint of that code, with its flags.

A model that the public code would compute differently is refused.
"""

from __future__ import annotations

import io

import torch

from ddib_fed.errors import SettingsInvalid
from ddib_fed.models.bundle import Bundle
from ddib_fed.networks.configs import SyntheticConfig

NAMED = ("linear", "cosine")


def public_checkpoint(bundle: Bundle) -> tuple[bytes, str]:
    """The content of a .pt file, a state dict in float32, and the flags that the public scripts need."""
    manifest, network = bundle.manifest, bundle.manifest.network
    if not isinstance(network, SyntheticConfig):
        raise SettingsInvalid(
            f"{manifest.name} is a network of kind {network.kind}; the public code's for points is `synthetic`",
            hint="train one: ddib model train --domain moons --network public --steps 100000 --out DIR",
        )
    schedule = manifest.schedule
    named = schedule.steps is not None and schedule.name in NAMED and schedule.ends is None
    if not named or manifest.time_input != "timestep" or manifest.parameterisation == "v":
        raise SettingsInvalid(
            f"{manifest.name} predicts {manifest.parameterisation} and takes the time as {manifest.time_input}; the "
            "network of the public code predicts eps or x0 at integer steps of a linear or cosine schedule",
            hint="train one: ddib model train --domain moons --network public --steps 100000 --out DIR",
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
