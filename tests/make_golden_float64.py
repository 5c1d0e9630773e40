"""Runs the public DDIB code in float64 and writes what it computes: the files `*_float64.safetensors` in tests/data."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from tests.golden import CHANNEL_MULT, Golden, read_golden
from tests.golden_float64 import GRADIENT, PICTURES, POINTS, halved, training_steps

DATA = Path(__file__).parent / "data"


@contextmanager
def float64(noise: list[Tensor]) -> Iterator[None]:
    """The changes that the module's docstring lists; noise that is drawn is appended to `noise`."""
    generator = torch.Generator().manual_seed(64)
    kept = torch.Tensor.float, torch.randn_like

    def drawn(like: Tensor) -> Tensor:
        noise.append(torch.randn(like.shape, generator=generator, dtype=torch.float64))
        return noise[-1]

    torch.Tensor.float, torch.randn_like = torch.Tensor.double, drawn
    modules = [importlib.import_module(f"guided_diffusion.{name}") for name in ("nn", "unet", "synthetic")]
    for module in modules:
        module.timestep_embedding = embedding
    try:
        yield
    finally:
        torch.Tensor.float, torch.randn_like = kept


def embedding(timesteps: Tensor, dim: int, max_period: float = 10000.0) -> Tensor:
    powers = -math.log(max_period) * torch.arange(dim // 2, dtype=torch.float64) / (dim // 2)
    angles = timesteps.double()[:, None] * powers.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def diffusion_of(settings: Mapping[str, Any], *, learn_sigma: bool) -> Any:
    make = importlib.import_module("guided_diffusion.script_util").create_gaussian_diffusion
    return make(
        steps=settings["diffusion_steps"],
        noise_schedule=settings["noise_schedule"],
        timestep_respacing=settings["timestep_respacing"],
        predict_xstart=settings.get("predict_xstart", False),
        rescale_timesteps=settings.get("rescale_timesteps", False),
        learn_sigma=learn_sigma,
    )


def ready(network: Any, state: Mapping[str, Tensor]) -> Any:
    network.load_state_dict(state)
    network.double().eval()
    network.dtype = torch.float64
    return network


def points(golden: Golden) -> dict[str, Tensor]:
    """What the public scripts for 2-D data compute: encode by one network, decode by another, and back."""
    public = importlib.import_module("guided_diffusion.synthetic").SyntheticModel
    channels, blocks = golden.config["num_channels"], golden.config["num_res_blocks"]
    states = golden.state, halved(golden.state)
    source, target = (ready(public(2, channels, 2, blocks), state) for state in states)
    x = golden.io["x"].double()
    found: dict[str, Tensor] = {}
    for name, settings in POINTS.items():
        diffusion, noise = diffusion_of(settings, learn_sigma=False), []
        if settings.get("training"):
            found |= {
                f"{name}.{key}": value for key, value in training(diffusion, source, x, settings).items()
            }
            continue
        clip = {"clip_denoised": settings.get("clip", False)}
        with float64(noise):
            latent = diffusion.ddim_reverse_sample_loop(source, x, clip_denoised=False)
            if settings.get("ancestral"):
                decoded = diffusion.p_sample_loop(target, x.shape, noise=latent, **clip)
            else:
                eta = settings.get("eta", 0.0)
                decoded = diffusion.ddim_sample_loop(target, x.shape, noise=latent, eta=eta, **clip)
            drawn = torch.stack(noise)
            again = diffusion.ddim_reverse_sample_loop(target, decoded, clip_denoised=False)
            back = diffusion.ddim_sample_loop(source, x.shape, noise=again, clip_denoised=False)
        found |= {f"{name}.latent": latent, f"{name}.decoded": decoded}
        if settings.get("ancestral") or settings.get("eta"):
            found[f"{name}.noise"] = drawn
        elif not settings.get("clip"):
            found |= {f"{name}.latent_again": again, f"{name}.returned": back}
    return found


def training(diffusion: Any, network: Any, x: Tensor, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """What the public script for training computes in one step, without dropout."""
    noise: list[Tensor] = []
    with float64(noise):
        loss = diffusion.training_losses(network, x, training_steps(len(x), settings))["loss"]
    (gradient,) = torch.autograd.grad(loss.mean(), network.get_parameter(GRADIENT))
    return {"loss": loss.detach(), "gradient": gradient, "noise": noise[0]}


def pictures(golden: Golden) -> dict[str, Tensor]:
    """What the public script for ImageNet computes: class to class, guided by a classifier while decoding."""
    model, classifier = picture_networks(golden)
    x = golden.io["x"].double()
    found: dict[str, Tensor] = {}
    for name, settings in PICTURES.items():
        diffusion, noise = diffusion_of(settings, learn_sigma=True), []
        rows, scale = settings["rows"], settings["classifier_scale"]

        def gradient(x: Tensor, t: Tensor, y: Tensor, scale: float = scale) -> Tensor:
            with torch.enable_grad():
                leaf = x.detach().requires_grad_()
                chosen = functional.log_softmax(classifier(leaf, t), dim=-1)[range(len(x)), y]
                return torch.autograd.grad(chosen.sum(), leaf)[0] * scale

        device = {"device": torch.device("cpu")}
        with float64(noise):
            classes = [{"y": golden.io[key][:rows]} for key in ("y_source", "y_target")]
            latent = diffusion.ddim_reverse_sample_loop(
                model, x[:rows], clip_denoised=False, model_kwargs=classes[0], **device
            )
            decoded = diffusion.ddim_sample_loop(
                model,
                latent.shape,
                noise=latent,
                clip_denoised=settings["clip"],
                model_kwargs=classes[1],
                cond_fn=gradient,
                eta=settings.get("eta", 0.0),
                **device,
            )
        found |= {f"{name}.latent": latent, f"{name}.decoded": decoded}
        if settings.get("eta"):
            found[f"{name}.noise"] = torch.stack(noise)
    return found


def picture_networks(golden: Golden) -> tuple[Any, Any]:
    """The public code's UNet and classifier with the file's weights."""
    public, config = importlib.import_module("guided_diffusion.unet"), golden.config
    guide = config["classifier"]
    network = public.UNetModel(
        image_size=config["image_size"],
        in_channels=3,
        model_channels=config["num_channels"],
        out_channels=6,
        num_res_blocks=config["num_res_blocks"],
        attention_resolutions=factors(config["image_size"], config["attention_resolutions"]),
        channel_mult=tuple(map(int, config["channel_mult"].split(","))),
        num_classes=config["num_classes"],
        num_heads=config["num_heads"],
        num_head_channels=config["num_head_channels"],
        use_scale_shift_norm=config["use_scale_shift_norm"],
        resblock_updown=config["resblock_updown"],
    )
    classifier = public.EncoderUNetModel(
        image_size=guide["image_size"],
        in_channels=3,
        model_channels=guide["classifier_width"],
        out_channels=guide["out_channels"],
        num_res_blocks=guide["classifier_depth"],
        attention_resolutions=factors(guide["image_size"], guide["classifier_attention_resolutions"]),
        channel_mult=CHANNEL_MULT[guide["image_size"]],
        num_head_channels=64,
        use_scale_shift_norm=guide["classifier_use_scale_shift_norm"],
        resblock_updown=guide["classifier_resblock_updown"],
        pool=guide["classifier_pool"],
    )
    return ready(network, golden.state), ready(classifier, golden.classifier)


def factors(size: int, resolutions: str) -> tuple[int, ...]:
    return tuple(size // int(resolution) for resolution in resolutions.split(","))


def write(name: str, weights: str, cases: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> None:
    described = json.dumps({"weights": weights, "cases": cases})
    tensors = {key: value.contiguous().clone() for key, value in outputs.items()}
    save_file(tensors, DATA / name, {"float64": described})
    print(f"{DATA / name}: {(DATA / name).stat().st_size:,} bytes")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not (Path(arguments[0]) / "guided_diffusion").is_dir():
        print("usage: python -m tests.make_golden_float64 PUBLIC_CODE", file=sys.stderr)
        return 2
    sys.path.insert(0, arguments[0])
    made = (
        ("synthetic_float64.safetensors", "synthetic_linear.safetensors", POINTS, points),
        (
            "unet_adm_class_guided_float64.safetensors",
            "unet_adm_class_guided.safetensors",
            PICTURES,
            pictures,
        ),
    )
    for name, weights, cases, compute in made:
        write(name, weights, cases, compute(read_golden(DATA / weights)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
