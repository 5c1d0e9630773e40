"""Rebuilds translations of the public code in float64 and compares them; `tests.golden` calls it for such files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ddib_fed.diffusion.denoiser import Denoiser
from ddib_fed.diffusion.guidance import Classifier, ClassifierGuided, Clipped
from ddib_fed.diffusion.plans import SolverSettings, decode, encode
from ddib_fed.diffusion.schedule import DiscreteSchedule, PublicLevels, discrete_schedule, space_timesteps
from ddib_fed.networks.build import build_network
from ddib_fed.networks.mlp import SyntheticModel
from ddib_fed.training.objective import make_step_batch

# Measured: at most 3e-12 (clipped and guided by a classifier), 1e-14 as a rule.
FLOAT64_TOLERANCE = 1e-10
# Whose gradient is compared in cases of training: the last that the gradient reaches.
GRADIENT = "input_blocks.0.0.weight"


def _case(name: str, steps: int, respacing: str, **more: Any) -> dict[str, Any]:
    return {"noise_schedule": name, "diffusion_steps": steps, "timestep_respacing": respacing, **more}


POINTS: Mapping[str, dict[str, Any]] = {
    "linear": _case("linear", 40, ""),
    "linear-ddim50": _case("linear", 4000, "ddim50"),
    "linear-sections-rescaled": _case("linear", 1000, "10,20,30", rescale_timesteps=True),
    "cosine-ddim50": _case("cosine", 1000, "ddim50"),
    "cosine-250-xstart": _case("cosine", 1000, "250", predict_xstart=True),
    "linear-clip": _case("linear", 1000, "ddim25", clip=True),
    "cosine-clip-eta": _case("cosine", 1000, "ddim25", clip=True, eta=0.3),
    "linear-eta": _case("linear", 1000, "ddim50", eta=0.5),
    "cosine-eta-1": _case("cosine", 1000, "ddim25", eta=1.0),
    "linear-ddpm": _case("linear", 1000, "ddim50", ancestral=True),
    "linear-ddpm-clip": _case("linear", 1000, "25", ancestral=True, clip=True),
    "training-linear": _case("linear", 4000, "", training=True),
    "training-cosine": _case("cosine", 1000, "", training=True),
}
"""Translations of points, and steps of training on them, by name."""
PICTURES: Mapping[str, dict[str, Any]] = {
    "guided-clip": _case("linear", 1000, "8", rows=2, classifier_scale=1.0, clip=True),
    "guided-unclipped": _case("cosine", 1000, "ddim10", rows=1, classifier_scale=2.5, clip=False),
    "guided-clip-eta": _case("linear", 1000, "ddim5", rows=1, classifier_scale=1.0, clip=True, eta=0.5),
}
"""Translations of pictures from class to class, by name."""


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value / 2 if key.startswith("out.2.") else value for key, value in state.items()}


def described(path: Path) -> dict[str, Any] | None:
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("float64")
    return json.loads(text) if text is not None else None


def outputs(path: Path) -> dict[str, Tensor]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping


def compute(
    golden: Any, configs: Any, settings: Mapping[str, Any], noise: Tensor | None
) -> dict[str, Tensor]:
    """Our outputs of one case; `configs` are those of UNet and classifier, for pictures."""
    if settings.get("training"):
        assert noise is not None
        return training(golden, settings, noise)
    if "classifier" in golden.config:
        return pictures(golden, configs, settings, noise)
    return points(golden, settings, noise)


def steps_of(settings: Mapping[str, Any]) -> tuple[SolverSettings, DiscreteSchedule]:
    """The settings of a case as commands make them, and the schedule of its model."""
    name, steps, respacing = (
        settings[key] for key in ("noise_schedule", "diffusion_steps", "timestep_respacing")
    )
    solver = SolverSettings(
        "ddim",
        evaluations=len(space_timesteps(steps, respacing)),
        grid="ddib",
        levels=PublicLevels(name, steps, respacing),
        eta=settings.get("eta", 0.0),
        ancestral=settings.get("ancestral", False),
    )
    return solver, discrete_schedule(name, steps, rescale_timesteps=settings.get("rescale_timesteps", False))


def points(golden: Any, settings: Mapping[str, Any], noise: Tensor | None) -> dict[str, Tensor]:
    """Our outputs of a case on points."""
    channels, blocks = golden.config["num_channels"], golden.config["num_res_blocks"]
    solver, schedule = steps_of(settings)
    predicts = "x0" if settings.get("predict_xstart") else "eps"
    denoisers = []
    for state in (golden.state, halved(golden.state)):
        network = SyntheticModel(2, 2, channels, blocks).double()
        network.load_state_dict(state)
        denoisers.append(Denoiser(network, predicts, "timestep"))
    held = Clipped(denoisers[1]) if settings.get("clip") else denoisers[1]
    draw = None if noise is None else noise.__getitem__
    latent = encode(golden.io["x"].double(), denoisers[0], schedule, solver.of_the_ode())
    decoded = decode(latent, held, schedule, solver, draw=draw)
    if solver.stochastic or settings.get("clip"):
        return {"latent": latent, "decoded": decoded}
    again = encode(decoded, held, schedule, solver)
    returned = decode(again, denoisers[0], schedule, solver)
    return {"latent": latent, "decoded": decoded, "latent_again": again, "returned": returned}


def training_steps(count: int, settings: Mapping[str, Any]) -> Tensor:
    return torch.arange(count) * (settings["diffusion_steps"] - 1) // (count - 1)


def training(golden: Any, settings: Mapping[str, Any], noise: Tensor) -> dict[str, Tensor]:
    """Our loss of each point in a case of training, and the gradient of their mean."""
    network = SyntheticModel(2, 2, golden.config["num_channels"], golden.config["num_res_blocks"]).double()
    network.load_state_dict(golden.state)
    x = golden.io["x"].double()
    u = (training_steps(len(x), settings).double() + 0.5) / settings["diffusion_steps"]
    batch = make_step_batch(x, noise, u, steps_of(settings)[1])
    loss = (network(batch.x, batch.times, batch.rows) - batch.target).square().mean(1)
    gradient = torch.autograd.grad(loss.mean(), network.get_parameter(GRADIENT))[0]
    return {"loss": loss.detach(), "gradient": gradient}


def pictures(
    golden: Any, configs: tuple[Any, Any], settings: Mapping[str, Any], noise: Tensor | None
) -> dict[str, Tensor]:
    """Our outputs of a case on pictures, from class to class."""
    solver, schedule = steps_of(settings)
    network, noisy = (build_network(config).double() for config in configs)
    network.load_state_dict(golden.state)
    noisy.load_state_dict(golden.classifier)
    plain = Denoiser(network, "eps", "timestep")
    held = Clipped(plain) if settings["clip"] else plain
    guided = ClassifierGuided(held, Classifier(noisy, "timestep"), settings["classifier_scale"])
    rows = settings["rows"]
    classes = [{"y": golden.io[key][:rows]} for key in ("y_source", "y_target")]
    draw = None if noise is None else noise.__getitem__
    x = golden.io["x"][:rows].double()
    latent = encode(x, plain, schedule, solver.of_the_ode(), cond=classes[0])
    decoded = decode(latent, guided, schedule, solver, cond=classes[1], draw=draw)
    return {"latent": latent, "decoded": decoded}


def largest(ours: Tensor, theirs: Tensor) -> float:
    if {ours.dtype, theirs.dtype} != {torch.float64} or ours.shape != theirs.shape:
        return float("nan")
    return float((ours - theirs).abs().max() / theirs.abs().max())
