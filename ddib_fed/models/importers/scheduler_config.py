"""Reads the training schedule and the prediction type from scheduler_config.json of diffusers.

Unknown settings of the process are refused by their key; sampling settings, which change no
level and no weight, are listed as not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ddib_fed.diffusion.denoiser import Parameterisation
from ddib_fed.diffusion.schedule import SCALED_LINEAR, ScheduleConfig, schedule_from_config
from ddib_fed.errors import SettingsInvalid

# Schedulers whose betas are those that the network was trained on.
SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
)
PREDICTIONS: Mapping[str, Parameterisation] = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_DEFAULT_BETAS = {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}
# Settings that would give the network other times or levels than its betas imply.
PROCESS: Mapping[str, Any] = {
    "use_flow_sigmas": False,
    "timestep_type": "discrete",
    "use_dynamic_shifting": False,
}
_READ = frozenset({*_DEFAULT_BETAS, *PROCESS, "trained_betas", "prediction_type", "beta_schedule"}) | {
    "rescale_betas_zero_snr"
}
# Parts of settings that are listed separately.
_PARTS = frozenset({"clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value"})
_CLIPS = "of sampling, where the library clips predictions"
_GRID = "of sampling: steps are placed by --grid"
_SAMPLING: Mapping[str, str] = {
    "clip_sample": _CLIPS,
    "thresholding": _CLIPS,
    **dict.fromkeys(("timestep_spacing", "steps_offset", "use_karras_sigmas", "set_alpha_to_one"), _GRID),
    **dict.fromkeys(
        ("use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas", "final_sigmas_type"), _GRID
    ),
    "variance_type": "of sampling with noise: the ODE has none",
}


def read_schedule(source: Mapping[str, Any], where: str) -> tuple[ScheduleConfig, Parameterisation]:
    """The schedule in a scheduler_config.json, and the prediction type."""
    if source.get("_class_name") not in SCHEDULERS:
        raise refused_key(where, "_class_name", source.get("_class_name"), f"one of {', '.join(SCHEDULERS)}")
    if source.get("trained_betas") is not None:
        raise refused_key(where, "trained_betas", "...", "custom betas are not supported")
    for key, only in PROCESS.items():
        if source.get(key, only) != only:
            raise refused_key(where, key, source[key], f"only {json.dumps(only)} is read")
    steps, ends = _steps_and_ends(source, where)
    prediction = source.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise refused_key(where, "prediction_type", prediction, f"one of {', '.join(PREDICTIONS)}")
    kind, zero = source.get("beta_schedule", "linear"), source.get("rescale_betas_zero_snr", False)
    if not isinstance(zero, bool):
        raise refused_key(where, "rescale_betas_zero_snr", zero, "true or false is needed")
    if kind == "squaredcos_cap_v2" and not zero:
        schedule = ScheduleConfig("cosine", steps)
    elif kind == "linear" or (kind == "scaled_linear" and not zero):
        usual = kind == "linear" and steps == 1000 and ends == (0.0001, 0.02)
        name = "zero-terminal-snr" if zero else SCALED_LINEAR if kind == "scaled_linear" else "linear"
        first, last = (None, None) if usual else ends
        schedule = ScheduleConfig(name, steps, beta_start=first, beta_end=last)
    elif zero and kind in ("squaredcos_cap_v2", "scaled_linear"):
        raise refused_key(where, "rescale_betas_zero_snr", zero, "it is read with linear betas alone")
    else:
        raise refused_key(where, "beta_schedule", kind, "linear, scaled_linear or squaredcos_cap_v2")
    schedule_from_config(schedule)
    return schedule, PREDICTIONS[prediction]


def _steps_and_ends(source: Mapping[str, Any], where: str) -> tuple[int, tuple[float, float]]:
    """How many steps there are, and the first and last beta."""
    said = {key: source.get(key, default) for key, default in _DEFAULT_BETAS.items()}
    for key, value in said.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise refused_key(where, key, value, "a number is needed")
    steps = said["num_train_timesteps"]
    if not float(steps).is_integer():
        raise refused_key(where, "num_train_timesteps", steps, "a whole number is needed")
    return int(steps), (float(said["beta_start"]), float(said["beta_end"]))


def unused(source: Mapping[str, Any]) -> dict[str, str]:
    """Each enabled setting of a scheduler_config.json that has no effect here, with the reason."""
    return {
        key: _SAMPLING.get(key, "of sampling, or not known to this release")
        for key, value in source.items()
        if key not in _READ | _PARTS and not key.startswith("_") and value not in (None, False, 0, [])
    }


def refused_key(where: str, key: str, value: object, why: str) -> SettingsInvalid:
    """The error for a setting in a file that cannot be computed exactly."""
    return SettingsInvalid(
        f"{where}: {key} is {json.dumps(value, default=str)[:80]}: {why}",
        hint="the model cannot be computed exactly here: import another, or train one",
        facts={"field": key[:100]},
    )
