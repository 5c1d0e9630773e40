"""Rebuilds networks and translations of the public code from golden files and compares what both compute.

A file has either the weights, inputs and float32 outputs of one network, or float64 outputs of several cases whose
weights and inputs are in another file beside it. Networks are built as the importer builds them.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ddib_fed.diffusion.denoiser import Condition, Denoiser, LevelTable, Places
from ddib_fed.diffusion.guidance import Classifier, ClassifierGuided, Clipped
from ddib_fed.diffusion.plans import SolverSettings, decode, encode
from ddib_fed.diffusion.schedule import (
    DiscreteSchedule,
    Level,
    PublicLevels,
    ddib_compat_grids,
    discrete_schedule,
    space_timesteps,
)
from ddib_fed.diffusion.solvers import ddim, integrate
from ddib_fed.importers.guided import parse_flags, settle
from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import SyntheticConfig
from ddib_fed.networks.mlp import SyntheticModel
from ddib_fed.training.objective import make_step_batch

TOLERANCE = 1e-4
# Clipping and guidance make the loop ill-conditioned: moving x by 2e-7 moves its end by 1e-3.
GUIDED_LOOP_TOLERANCE = 2e-2
# Measured: at most 3e-12 (clipped and guided by a classifier), 1e-14 as a rule.
FLOAT64_TOLERANCE = 1e-10
# Whose gradient is compared in cases of training: the last that the gradient reaches.
GRADIENT = "input_blocks.0.0.weight"
# Names under which files keep the network's own output.
NETWORK_OUTPUTS = ("eps", "model_output")
INPUTS = {"x", "t", "step_index", "y_source", "y_target"}


@dataclass(frozen=True)
class Difference:
    """One output's largest difference over the output's largest value."""

    output: str
    relative: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.relative <= self.tolerance


@dataclass(frozen=True)
class Golden:
    """A file read: the configuration, the state dicts in float32, and the inputs and outputs."""

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    io: Mapping[str, Tensor]
    classifier: Mapping[str, Tensor]


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata of a file, from JSON, and its tensors."""
    with safe_open(path, "pt") as file:
        metadata = {key: json.loads(text) for key, text in file.metadata().items()}
        return metadata, {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping


def read_golden(path: Path) -> Golden:
    metadata, tensors = read(path)

    def part(prefix: str) -> dict[str, Tensor]:
        found = {k.removeprefix(prefix): value for k, value in tensors.items() if k.startswith(prefix)}
        return {k: value.float() if value.is_floating_point() else value for k, value in found.items()}

    return Golden(metadata["config"], part("model."), part("io."), part("classifier."))


# What our code computes


def networks(golden: Golden) -> tuple[nn.Module, nn.Module | None]:
    """The network, and the classifier if there is one."""
    config = dict(golden.config)
    guide = config.pop("classifier", None)
    flags = parse_flags(" ".join(f"--{key} {value}" for key, value in config.items() if value != ""))
    if "image_size" in config:
        made = build_network(settle(golden.state, flags, classifier=False, source="the file").network)
    else:
        out_channels, channels = len(golden.state["out.2.weight"]), golden.state[GRADIENT].shape[1]
        sizes = {name: config[name] for name in ("num_channels", "num_res_blocks")}
        made = SyntheticModel(SyntheticConfig(in_channels=channels, out_channels=out_channels, **sizes))
    made.load_state_dict(golden.state)
    if guide is None:
        return made, None
    # As the public code has it for classifiers of 32 pixels; the importer takes it from the flags.
    line = "--channel_mult 2,3,4 " + " ".join(f"--{key} {value}" for key, value in guide.items())
    flags = parse_flags(line, classifier=True)
    noisy = build_network(settle(golden.classifier, flags, classifier=True, source="the file").network)
    noisy.load_state_dict(golden.classifier)
    return made, noisy


def schedule_of(settings: Mapping[str, Any]) -> DiscreteSchedule:
    name, steps = settings["noise_schedule"], settings["diffusion_steps"]
    return discrete_schedule(name, steps, rescale_timesteps=settings.get("rescale_timesteps", False))


def predicted(settings: Mapping[str, Any]) -> Any:
    return "x0" if settings.get("predict_xstart") else "eps"


def float32_outputs(golden: Golden) -> dict[str, Tensor]:
    """Each output of a file: the network's own, steps both ways, the latent and what it is decoded to."""
    io, x, conditional = golden.io, golden.io["x"], bool(golden.config.get("class_cond"))
    network, noisy = networks(golden)
    up, down = ddib_compat_grids(schedule_of(golden.config), golden.config.get("timestep_respacing", ""))
    plain = Denoiser(network, predicted(golden.config), "timestep")
    source, target = ({"y": io[key]} if key in io else None for key in ("y_source", "y_target"))
    source = source if conditional else None
    held: Denoiser = Clipped(plain) if conditional else plain
    found: dict[str, Tensor] = {}
    if noisy is not None:
        held = ClassifierGuided(held, Classifier(noisy, "timestep"), 1.0)
        with torch.no_grad():
            found["classifier_logits"] = noisy(x, io["t"].float())
    with torch.no_grad():
        answer = network(x, io["t"].expand(len(x)).float(), **(source or {}))
    # A learned variance stands behind the prediction; files keep the output with it or without.
    own = answer[:, : x.shape[1]]
    found |= {key: own if io[key].shape == own.shape else answer for key in NETWORK_OUTPUTS if key in io}
    index, last = io["step_index"].expand(len(x)).tolist(), len(up) - 1
    found["reverse_step"] = _step(plain, x, [up.levels[i : i + 2] for i in index], source)
    found["step"] = _step(held, x, [down.levels[last - i : last - i + 2] for i in index], target)
    found["latent"] = integrate(x, ddim(up), plain, cond=source)
    start = io.get("latent", found["latent"])
    return found | {"decoded": integrate(start, ddim(down), held, cond=target)}


def _step(denoiser: Denoiser, x: Tensor, intervals: Sequence[Sequence[Level]], cond: Condition) -> Tensor:
    starts = torch.tensor([start for start, _ in intervals], dtype=torch.float64)
    table, rows = torch.unique(starts, dim=0, return_inverse=True)
    with torch.no_grad():
        v = denoiser.at(x, Places.by_row(x, LevelTable(table), rows), cond)
    h = torch.tensor([end.phi - start.phi for start, end in intervals], dtype=torch.float64)
    h = h.reshape(-1, *(1,) * (x.ndim - 1))
    return (torch.cos(h) * x + torch.sin(h) * v).float()


def float64_outputs(golden: Golden, settings: Mapping[str, Any], noise: Tensor | None) -> dict[str, Tensor]:
    """Our outputs of one case: a step of training, or a translation of pictures from class to class, or of points."""
    if settings.get("training"):
        assert noise is not None
        return _training(golden, settings, noise)
    schedule, respacing = schedule_of(settings), settings["timestep_respacing"]
    solver = SolverSettings(
        "ddim", evaluations=len(space_timesteps(schedule.steps, respacing)), grid="ddib",
        levels=PublicLevels(schedule.name, schedule.steps, respacing), eta=settings.get("eta", 0.0),
        ancestral=settings.get("ancestral", False),
    )  # fmt: skip
    network, noisy = networks(golden)
    first = Denoiser(network.double(), predicted(settings), "timestep")
    # Points are decoded by the same network with its last layer halved.
    halved = {key: value / 2 if key.startswith("out.2.") else value for key, value in golden.state.items()}
    second = first
    if noisy is None:
        other = networks(replace(golden, state=halved))[0]
        second = Denoiser(other.double(), predicted(settings), "timestep")
    held: Denoiser = Clipped(second) if settings.get("clip") else second
    x, classes = golden.io["x"][: settings.get("rows")].double(), (None, None)
    if noisy is not None:
        held = ClassifierGuided(held, Classifier(noisy.double(), "timestep"), settings["classifier_scale"])
        classes = tuple({"y": golden.io[key][: len(x)]} for key in ("y_source", "y_target"))
    draw = None if noise is None else noise.__getitem__
    latent = encode(x, first, schedule, solver.of_the_ode(), cond=classes[0])
    decoded = decode(latent, held, schedule, solver, cond=classes[1], draw=draw)
    if noisy is not None or solver.stochastic or settings.get("clip"):
        return {"latent": latent, "decoded": decoded}
    again = encode(decoded, held, schedule, solver)
    returned = decode(again, first, schedule, solver)
    return {"latent": latent, "decoded": decoded, "latent_again": again, "returned": returned}


def _training(golden: Golden, settings: Mapping[str, Any], noise: Tensor) -> dict[str, Tensor]:
    """Our loss of each point in a case of training, and the gradient of their mean."""
    network, x = networks(golden)[0].double(), golden.io["x"].double()
    steps = torch.arange(len(x)) * (settings["diffusion_steps"] - 1) // (len(x) - 1)
    u = (steps.double() + 0.5) / settings["diffusion_steps"]
    batch = make_step_batch(x, noise, u, schedule_of(settings))
    loss = (network(batch.x, batch.times, batch.rows) - batch.target).square().mean(1)
    gradient = torch.autograd.grad(loss.mean(), network.get_parameter(GRADIENT))[0]
    return {"loss": loss.detach(), "gradient": gradient}


# Comparison


def compare_file(path: Path) -> list[Difference]:
    """Each output of a file of either form against ours."""
    metadata, tensors = read(path)
    if "float64" in metadata:
        return _compare_float64(path, metadata["float64"], tensors)
    golden = read_golden(path)
    ours = float32_outputs(golden)
    assert not golden.io.keys() - ours.keys() - INPUTS, "outputs that are not known here"
    loose = {"decoded": GUIDED_LOOP_TOLERANCE} if golden.classifier else {}
    return [
        Difference(name, largest(name, ours[name], value), loose.get(name, TOLERANCE))
        for name, value in golden.io.items()
        if name not in INPUTS
    ]


def _compare_float64(path: Path, described: Mapping[str, Any], found: dict[str, Tensor]) -> list[Difference]:
    golden = read_golden(path.with_name(described["weights"]))
    differences = []
    for case, settings in described["cases"].items():
        for output, value in float64_outputs(golden, settings, found.get(f"{case}.noise")).items():
            name = f"{case}.{output}"
            wide = value.dtype == found[name].dtype == torch.float64
            relative = largest(name, value, found.pop(name)) if wide else float("nan")
            differences.append(Difference(name, relative, FLOAT64_TOLERANCE))
    assert all(name.endswith(".noise") for name in found), "outputs that are not known here"
    return differences


def largest(name: str, ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape, name
    return float((ours - theirs).abs().max() / theirs.abs().max())


def main(paths: Sequence[str]) -> int:
    """Print a table for each file; 0 when all is within tolerance, 1 when not."""
    code = 0
    for path in paths:
        differences = compare_file(Path(path))
        print(path)
        for found in differences:
            verdict = "ok" if found.ok else "ABOVE"
            print(f"  {found.output:<28} {found.relative:9.2e}  tolerance {found.tolerance:.0e}  {verdict}")
        if not differences or not all(found.ok for found in differences):
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
