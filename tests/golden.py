"""Rebuilds a network of the public code from a golden file and compares what it computes with what that code
computed.
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

from ddib_fed.diffusion.denoiser import Condition, Denoiser, LevelTable, Places
from ddib_fed.diffusion.guidance import Classifier, ClassifierGuided, Clipped
from ddib_fed.diffusion.schedule import Level, LevelGrid, ddib_compat_grids, discrete_schedule
from ddib_fed.diffusion.solvers import ddim, integrate
from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import ClassifierConfig, UNetConfig
from ddib_fed.networks.mlp import SyntheticModel
from tests import golden_float64

TOLERANCE = 1e-4
# Clipping and guidance make the loop ill-conditioned: moving x by 2e-7 moves its end by 1e-3.
GUIDED_LOOP_TOLERANCE = 2e-2
# Constructor arguments that change nothing in what the network computes.
IGNORED = {"use_checkpoint", "use_fp16", "use_kl", "rescale_learned_sigmas", "classifier_use_fp16"}
# Of the public constructors, by image size, where a file does not say.
CHANNEL_MULT = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (2, 3, 4),
}
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
    """A file read: the configuration, the state dicts in float32, and the inputs and outputs."""

    config: Mapping[str, Any]
    state: Mapping[str, Tensor]
    io: Mapping[str, Tensor]
    classifier: Mapping[str, Tensor]


@dataclass(frozen=True)
class Model:
    """How one file's outputs are computed: by which denoiser each way, told which classes."""

    encoder: Denoiser
    decoder: Denoiser
    source: Condition
    target: Condition
    encode: LevelGrid
    decode: LevelGrid


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
    return Golden(config, _part(tensors, "model."), _part(tensors, "io."), _part(tensors, "classifier."))


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return {key: t.float() if t.is_floating_point() else t for key, t in found.items()}


def synthetic_outputs(golden: Golden) -> dict[str, Tensor]:
    """What our code computes for each output of a 2-D file."""
    settings = _settings(golden.config)
    channels = settings.pop("in_channels", 2)
    network = SyntheticModel(
        in_channels=channels,
        out_channels=channels * (2 if settings.pop("learn_sigma", False) else 1),
        num_channels=settings.pop("num_channels"),
        num_res_blocks=settings.pop("num_res_blocks"),
        dropout=settings.pop("dropout", 0.0),
    )
    network.load_state_dict(golden.state)
    denoiser, encode, decode = _diffusion(network, settings)
    _nothing_left(settings)
    return _outputs(Model(denoiser, denoiser, None, None, encode, decode), golden.io)


def picture_outputs(golden: Golden) -> dict[str, Tensor]:
    """What our code computes for each output of a file of a picture network, with or without a classifier."""
    settings = _settings(golden.config)
    described = settings.pop("classifier", None)
    conditional = settings.pop("class_cond", False)
    network = build_network(_unet(settings, conditional=conditional))
    network.load_state_dict(golden.state)
    denoiser, encode, decode = _diffusion(network, settings)
    _nothing_left(settings)
    held: Denoiser = Clipped(denoiser) if conditional else denoiser
    extra: dict[str, Tensor] = {}
    if described is not None:
        noisy = build_network(_classifier(described))
        noisy.load_state_dict(golden.classifier)
        held = ClassifierGuided(held, Classifier(noisy, "timestep"), 1.0)
        with torch.no_grad():
            extra = {"classifier_logits": noisy(golden.io["x"], golden.io["t"].float())}
    source, target = ({"y": golden.io[key]} if key in golden.io else None for key in ("y_source", "y_target"))
    told = source if conditional else None
    return extra | _outputs(Model(denoiser, held, told, target, encode, decode), golden.io)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in IGNORED}


def _nothing_left(settings: Mapping[str, Any]) -> None:
    if settings:
        raise UnsupportedError(
            f"its configuration has settings that are not known here: {', '.join(sorted(settings))}"
        )


def _diffusion(network: torch.nn.Module, settings: dict[str, Any]) -> tuple[Denoiser, LevelGrid, LevelGrid]:
    """The denoiser, and the public code's levels for encoding and decoding; takes what it reads from `settings`."""
    schedule = discrete_schedule(
        settings.pop("noise_schedule"),
        settings.pop("diffusion_steps"),
        rescale_timesteps=settings.pop("rescale_timesteps", False),
    )
    grids = ddib_compat_grids(schedule, settings.pop("timestep_respacing", ""))
    return Denoiser(network, "x0" if settings.pop("predict_xstart", False) else "eps", "timestep"), *grids


def _unet(settings: dict[str, Any], *, conditional: bool) -> UNetConfig:
    """From the public code's flags; takes what it reads from `settings`."""
    size, channels = settings.pop("image_size"), settings.pop("in_channels", 3)
    classes = settings.pop("num_classes", 1000)
    given = settings.pop("channel_mult", "")
    return UNetConfig(
        image_size=size,
        in_channels=channels,
        model_channels=settings.pop("num_channels"),
        out_channels=channels * (2 if settings.pop("learn_sigma", False) else 1),
        attention_resolutions=_factors(size, settings.pop("attention_resolutions")),
        channel_mult=tuple(map(float, given.split(","))) if given else CHANNEL_MULT[size],
        num_classes=classes if conditional else None,
        **{
            key: settings.pop(key)
            for key in (
                "num_res_blocks",
                "dropout",
                "num_heads",
                "num_head_channels",
                "num_heads_upsample",
                "use_scale_shift_norm",
                "resblock_updown",
                "use_new_attention_order",
            )
            if key in settings
        },
    )


def _classifier(flags: Mapping[str, Any]) -> ClassifierConfig:
    settings = _settings(flags)
    size = settings.pop("image_size")
    config = ClassifierConfig(
        image_size=size,
        in_channels=settings.pop("in_channels", 3),
        model_channels=settings.pop("classifier_width"),
        out_channels=settings.pop("out_channels", 1000),
        num_res_blocks=settings.pop("classifier_depth"),
        attention_resolutions=_factors(size, settings.pop("classifier_attention_resolutions")),
        channel_mult=CHANNEL_MULT[size],
        num_head_channels=64,
        use_scale_shift_norm=settings.pop("classifier_use_scale_shift_norm"),
        resblock_updown=settings.pop("classifier_resblock_updown"),
        pool=settings.pop("classifier_pool"),
    )
    _nothing_left(settings)
    return config


def _factors(size: int, resolutions: str) -> tuple[int, ...]:
    return tuple(size // int(resolution) for resolution in resolutions.split(","))


def _outputs(model: Model, io: Mapping[str, Tensor]) -> dict[str, Tensor]:
    x = io["x"]
    index = io["step_index"].expand(len(x)).tolist()
    last = len(model.encode) - 1
    latent = integrate(ddim(x, model.encode, cond=model.source), model.encoder)
    start = io.get("latent", latent)
    up = [model.encode.levels[i : i + 2] for i in index]
    down = [model.decode.levels[last - i : last - i + 2] for i in index]
    with torch.no_grad():
        network_output = model.encoder.network(x, io["t"].expand(len(x)).float(), **(model.source or {}))
        prediction = network_output[:, : x.shape[1]]
        # A learned variance stands behind the prediction; files keep the output with it or without.
        own = {
            key: prediction if io[key].shape == prediction.shape else network_output
            for key in NETWORK_OUTPUTS
            if key in io
        }
        return {
            **own,
            "reverse_step": _step(model.encoder, x, up, model.source),
            "step": _step(model.decoder, x, down, model.target),
            "latent": latent,
            "decoded": integrate(ddim(start, model.decode, cond=model.target), model.decoder),
        }


def _step(denoiser: Denoiser, x: Tensor, intervals: Sequence[Sequence[Level]], cond: Condition) -> Tensor:
    starts = torch.tensor([start for start, _ in intervals], dtype=torch.float64)
    table, rows = torch.unique(starts, dim=0, return_inverse=True)
    v = denoiser.at(x, Places.by_row(x, LevelTable(table), rows), cond)
    h = torch.tensor([end.phi - start.phi for start, end in intervals], dtype=torch.float64)
    h = h.reshape(-1, *(1,) * (x.ndim - 1))
    return (torch.cos(h) * x + torch.sin(h) * v).float()


def compare_file(path: Path) -> list[Difference]:
    """Each output of a file of either form against ours; UnsupportedError when it cannot be rebuilt."""
    try:
        described = golden_float64.described(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise UnsupportedError(f"it cannot be read as a golden file: {error}") from error
    return compare(read_golden(path)) if described is None else _compare_float64(path, described)


def _compare_float64(path: Path, described: Mapping[str, Any]) -> list[Difference]:
    """A file of float64 outputs of several cases, whose weights and inputs are in another file beside it."""
    try:
        golden, found = read_golden(path.with_name(described["weights"])), golden_float64.outputs(path)
        configs = _guided_configs(golden.config) if "classifier" in golden.config else None
        ours = {
            f"{case}.{output}": value
            for case, settings in described["cases"].items()
            for output, value in golden_float64.compute(
                golden, configs, settings, found.get(f"{case}.noise")
            ).items()
        }
        theirs = {name: value for name, value in found.items() if not name.endswith(".noise")}
        return [
            Difference(name, golden_float64.largest(ours[name], value), golden_float64.FLOAT64_TOLERANCE)
            for name, value in theirs.items()
        ]
    except (IndexError, KeyError, RuntimeError, ValueError) as error:
        raise UnsupportedError(f"its cases and tensors do not fit: {error}") from error


def _guided_configs(config: Mapping[str, Any]) -> tuple[UNetConfig, ClassifierConfig]:
    settings = _settings(config)
    guide = _classifier(settings.pop("classifier"))
    return _unet(settings, conditional=settings.pop("class_cond", False)), guide


def compare(golden: Golden) -> list[Difference]:
    """Each output of the file against ours; UnsupportedError when the network cannot be rebuilt."""
    rebuild: Callable[[Golden], dict[str, Tensor]] = (
        picture_outputs if "image_size" in golden.config else synthetic_outputs
    )
    try:
        return _differences(rebuild(golden), golden)
    except (IndexError, KeyError, RuntimeError, ValueError) as error:
        raise UnsupportedError(f"its configuration and tensors do not fit: {error}") from error


def _differences(ours: Mapping[str, Tensor], golden: Golden) -> list[Difference]:
    io, inputs = golden.io, {"x", "t", "step_index", "y_source", "y_target"}
    unknown = io.keys() - ours.keys() - inputs
    if unknown:
        raise UnsupportedError(f"it has outputs that are not known here: {', '.join(sorted(unknown))}")
    loose = {"decoded": GUIDED_LOOP_TOLERANCE} if "classifier" in golden.config else {}
    return [
        _difference(name, ours[name], value, loose.get(name, TOLERANCE))
        for name, value in io.items()
        if name not in inputs
    ]


def _difference(name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> Difference:
    if ours.shape != theirs.shape:
        raise UnsupportedError(f"its {name} has shape {tuple(theirs.shape)}, ours {tuple(ours.shape)}")
    relative = float((ours - theirs).abs().max() / theirs.abs().max())
    return Difference(name, relative, tolerance)


def main(paths: Sequence[str]) -> int:
    """Print a table for each file; 0 when all is within tolerance, 1 when not, 2 for files that cannot be rebuilt."""
    if not paths:
        print("usage: python -m tests.golden FILE...", file=sys.stderr)
        return 2
    code = 0
    for path in paths:
        try:
            differences = compare_file(Path(path))
        except UnsupportedError as error:
            print(f"{path}: {error}", file=sys.stderr)
            code = code or 2
            continue
        print(path)
        for found in differences:
            verdict = "ok" if found.ok else "ABOVE"
            print(f"  {found.output:<28} {found.relative:9.2e}  tolerance {found.tolerance:.0e}  {verdict}")
        if not differences or not all(found.ok for found in differences):
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
