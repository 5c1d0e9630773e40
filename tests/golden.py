"""Rebuilds a network of the public code from a golden file and compares what it computes with what that code computed.

    python -m tests.golden FILE...

prints, for each output, the largest difference relative to the output's largest value, and ends 1 when one is above
its tolerance (2 for a file that this release cannot rebuild). The form of the files is in tests/data/README.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ddib_fed.diffusion.bridge import integrate
from ddib_fed.diffusion.denoiser import Denoiser
from ddib_fed.diffusion.grids import Grid, ddib_compat_grids
from ddib_fed.diffusion.schedule import Level, discrete_schedule
from ddib_fed.diffusion.solvers import ddim
from ddib_fed.models.synthetic import SyntheticModel

TOLERANCE = 1e-4
# Constructor arguments that change nothing in what the network computes.
IGNORED = {"use_checkpoint", "use_fp16", "use_kl", "rescale_learned_sigmas"}
# Names under which files keep the network's own output.
NETWORK_OUTPUTS = ("eps", "model_output")


class UnsupportedError(Exception):
    """A golden file that this release cannot rebuild."""


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
    """A file read: the configuration, the state dict in float32, and the inputs and outputs."""

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    io: Mapping[str, Tensor]


def read_golden(path: Path) -> Golden:
    """Read a golden file; UnsupportedError when it is none."""
    try:
        with safe_open(path, "pt") as file:
            config = json.loads((file.metadata() or {}).get("config", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError) as error:
        raise UnsupportedError(
            f"it cannot be read as safetensors with a JSON configuration: {error}"
        ) from error
    if not isinstance(config, dict):
        raise UnsupportedError("its metadata holds no configuration")
    return Golden(config, _part(tensors, "model."), _part(tensors, "io."))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return {key: t.float() if t.is_floating_point() else t for key, t in found.items()}


def synthetic_outputs(golden: Golden) -> dict[str, Tensor]:
    """What our code computes for each output of a 2-D file."""
    settings = dict(golden.config)
    for name in IGNORED:
        settings.pop(name, None)
    channels = settings.pop("in_channels", 2)
    network = SyntheticModel(
        in_channels=channels,
        out_channels=channels * (2 if settings.pop("learn_sigma", False) else 1),
        num_channels=settings.pop("num_channels"),
        num_res_blocks=settings.pop("num_res_blocks"),
        dropout=settings.pop("dropout", 0.0),
    )
    network.load_state_dict(golden.state)
    denoiser = Denoiser(network, "x0" if settings.pop("predict_xstart", False) else "eps", "timestep")
    encode_grid, decode_grid = ddib_compat_grids(
        discrete_schedule(
            settings.pop("noise_schedule"),
            settings.pop("diffusion_steps"),
            rescale_timesteps=settings.pop("rescale_timesteps", False),
        ),
        settings.pop("timestep_respacing", ""),
    )
    if settings:
        raise UnsupportedError(
            f"its configuration has settings that are not known here: {', '.join(sorted(settings))}"
        )
    return _outputs(denoiser, golden.io, encode_grid, decode_grid)


def _outputs(denoiser: Denoiser, io: Mapping[str, Tensor], encode: Grid, decode: Grid) -> dict[str, Tensor]:
    x = io["x"]
    index = io["step_index"].expand(len(x)).tolist()
    last = len(encode) - 1
    latent = integrate(ddim(x, encode), denoiser)
    with torch.no_grad():
        network_output = denoiser.network(x, io["t"].expand(len(x)).float())
        prediction = network_output[:, : x.shape[1]]
        # A learned variance stands behind the prediction; files keep the output with it or without.
        own = {
            key: prediction if io[key].shape == prediction.shape else network_output
            for key in NETWORK_OUTPUTS
            if key in io
        }
        return {
            **own,
            "reverse_step": _step(denoiser, x, [encode.levels[i : i + 2] for i in index]),
            "step": _step(denoiser, x, [decode.levels[last - i : last - i + 2] for i in index]),
            "latent": latent,
            "decoded": integrate(ddim(io.get("latent", latent), decode), denoiser),
        }


def _step(denoiser: Denoiser, x: Tensor, intervals: Sequence[Sequence[Level]]) -> Tensor:
    """One DDIM step in which each row has an interval of its own."""
    starts = torch.tensor([start for start, _ in intervals], dtype=torch.float64)
    v = denoiser.evaluate(x, starts[:, 2], starts[:, 0], starts[:, 1])
    h = torch.tensor([end.phi - start.phi for start, end in intervals], dtype=torch.float64)[:, None]
    return (torch.cos(h) * x + torch.sin(h) * v).float()


def picture_outputs(golden: Golden) -> dict[str, Tensor]:
    """Files of picture networks are told apart by `image_size`."""
    raise UnsupportedError(
        f"it is a UNet of {golden.config['image_size']} pixels; picture networks are not part of this release"
    )


def compare(golden: Golden) -> list[Difference]:
    """Each output of the file against ours; UnsupportedError when the network cannot be rebuilt."""
    rebuild: Callable[[Golden], dict[str, Tensor]] = (
        picture_outputs if "image_size" in golden.config else synthetic_outputs
    )
    try:
        return _differences(rebuild(golden), golden.io)
    except (IndexError, KeyError, RuntimeError) as error:
        raise UnsupportedError(f"its configuration and tensors do not fit: {error}") from error


def _differences(ours: Mapping[str, Tensor], io: Mapping[str, Tensor]) -> list[Difference]:
    inputs = {"x", "t", "step_index"}
    unknown = io.keys() - ours.keys() - inputs
    if unknown:
        raise UnsupportedError(f"it has outputs that are not known here: {', '.join(sorted(unknown))}")
    return [_difference(name, ours[name], value) for name, value in io.items() if name not in inputs]


def _difference(name: str, ours: Tensor, theirs: Tensor) -> Difference:
    if ours.shape != theirs.shape:
        raise UnsupportedError(f"its {name} has shape {tuple(theirs.shape)}, ours {tuple(ours.shape)}")
    relative = float((ours - theirs).abs().max() / theirs.abs().max())
    return Difference(name, relative, TOLERANCE)


def main(paths: Sequence[str]) -> int:
    """Print a table for each file; 0 when all is within tolerance, 1 when not, 2 for files that cannot be rebuilt."""
    if not paths:
        print("usage: python -m tests.golden FILE...", file=sys.stderr)
        return 2
    code = 0
    for path in paths:
        try:
            differences = compare(read_golden(Path(path)))
        except UnsupportedError as error:
            print(f"{path}: {error}", file=sys.stderr)
            code = code or 2
            continue
        print(path)
        for found in differences:
            verdict = "ok" if found.ok else "ABOVE"
            print(f"  {found.output:<14} {found.relative:9.2e}  tolerance {found.tolerance:.0e}  {verdict}")
        if not differences or not all(found.ok for found in differences):
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
