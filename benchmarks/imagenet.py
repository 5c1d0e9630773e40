"""The public code's ImageNet translation, end to end, on networks of the published size with random weights.

    python -m benchmarks.imagenet [--out DIR] [--dtype float32] [--small]

Each command runs in a process of its own; what it took is printed as JSON. The
published weights are not needed: a checkpoint of the same names, shapes and precision costs the same to import and
to compute with. What comes out is noise.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import options
from ddib_fed.data.pictures import encode_png
from ddib_fed.networks.build import build_network
from ddib_fed.networks.config import ClassifierConfig, UNetConfig

# The public README's MODEL_FLAGS for the class-conditional model of 256 x 256 pixels.
FLAGS = (
    "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --image_size 256 --learn_sigma True "
    "--noise_schedule linear --num_channels 256 --num_head_channels 64 --num_res_blocks 2 --resblock_updown True "
    "--use_fp16 True --use_scale_shift_norm True"
)
SMALL_FLAGS = (
    "--attention_resolutions 16 --class_cond True --diffusion_steps 1000 --image_size 32 --learn_sigma True "
    "--noise_schedule linear --num_channels 32 --num_head_channels 16 --num_res_blocks 1 --resblock_updown True "
    "--channel_mult 1,2 --use_fp16 True --use_scale_shift_norm True --classifier_width 64 --classifier_depth 1 "
    "--classifier_attention_resolutions 16"
)


@dataclass(frozen=True)
class Plan:
    """Which networks, and their flags."""

    flags: str
    network: UNetConfig
    classifier: ClassifierConfig


ADM_256 = UNetConfig(
    image_size=256,
    model_channels=256,
    out_channels=6,
    num_res_blocks=2,
    attention_resolutions=(8, 16, 32),
    channel_mult=(1, 1, 2, 2, 4, 4),
    num_classes=1000,
    num_head_channels=64,
    use_scale_shift_norm=True,
    resblock_updown=True,
)
LARGE = Plan(
    FLAGS,
    ADM_256,
    ClassifierConfig(
        image_size=256,
        model_channels=128,
        out_channels=1000,
        num_res_blocks=2,
        attention_resolutions=(8, 16, 32),
        channel_mult=(1, 1, 2, 2, 4, 4),
        num_head_channels=64,
        use_scale_shift_norm=True,
        resblock_updown=True,
        pool="attention",
    ),
)
SMALL = Plan(
    SMALL_FLAGS,
    UNetConfig(
        image_size=32,
        model_channels=32,
        out_channels=6,
        num_res_blocks=1,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        num_classes=1000,
        num_head_channels=16,
        use_scale_shift_norm=True,
        resblock_updown=True,
    ),
    ClassifierConfig(
        image_size=32,
        model_channels=64,
        out_channels=1000,
        num_res_blocks=1,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        num_head_channels=64,
        use_scale_shift_norm=True,
        resblock_updown=True,
        pool="attention",
    ),
)


@dataclass(frozen=True)
class Step:
    """What one command took."""

    command: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def checkpoint(config: UNetConfig | ClassifierConfig, path: Path, seed: int) -> None:
    """Random weights as the public code saves them: a state dict of float32."""
    torch.manual_seed(seed)
    network = build_network(config)
    for parameter in network.parameters():
        if not parameter.any():
            # Branches that begin as nothing would make a network that answers 0.
            torch.nn.init.normal_(parameter, std=0.01)
    if isinstance(config, UNetConfig):
        with torch.no_grad():
            _know_noise(network)
    torch.save(network.state_dict(), path)


def _know_noise(network: Any) -> None:
    """Let a network with random weights answer eps = x / rms(x), as one of white pictures does, and its own on top."""
    colours = (0, 0, 1, 1, 2, 2, 0, 0)
    enter, leave, last = network.input_blocks[0][0], network.out[2], network.output_blocks[-1][0]
    own = last.skip_connection.weight.shape[1] - enter.weight.shape[0]
    for weight in (enter.weight, enter.bias, last.skip_connection.weight, last.skip_connection.bias):
        weight[:8] = 0.0
    for weight in (last.out_layers[3].weight, last.out_layers[3].bias):
        weight[:8] = 0.0
    leave.weight[:3, :8] = 0.0
    for channel, colour in enumerate(colours):
        sign = -1.0 if channel % 2 else 1.0
        enter.weight[channel, colour, 1, 1] = sign
        last.skip_connection.weight[channel, own + channel, 0, 0] = 1.0
        leave.weight[colour, channel, 1, 1] = sign / (colours.count(colour) / 2)


def pictures(folder: Path, count: int = 2) -> None:
    """Pictures of class 260, larger than the network's, in a folder of the class's number: noise, see `_know_noise`."""
    (folder / "260").mkdir(parents=True)
    for index in range(count):
        pixels = np.random.default_rng(index).normal(128.0, 40.0, (375, 500, 3)).clip(0, 255)
        (folder / "260" / f"{index}.png").write_bytes(encode_png(pixels.astype(np.uint8)))


def measured(arguments: Sequence[str], flags: str = "") -> Step:
    """Run `ddib` and say what it took; its output is shown. `flags` are named, not repeated."""
    ddib = str(Path(sys.executable).with_name("ddib"))
    started = time.monotonic()
    process = subprocess.Popen([ddib, *arguments])
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"ddib {arguments[0]} ended with {process.returncode}")
    shown = " ".join('"$MODEL_FLAGS"' if word == flags else word for word in arguments)
    seconds = time.monotonic() - started
    return Step(f"ddib {shown}", seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)


def run(plan: Plan, folder: Path, *, dtype: str, steps: int = 3) -> list[Step]:
    """Checkpoints, two imports, one translation of class 260 to 261, in `folder`, which is not there yet."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    took = []
    for config, name, extra in (
        (plan.network, "diffusion", []),
        (plan.classifier, "classifier", ["--classifier"]),
    ):
        file = Path(f"{name}.pt")
        # In a process of its own: a child's peak memory counts what its parent held when it was started.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(checkpoint, config, file, seed=len(name)).result()
        took.append(
            measured(["model", "import", str(file), "--out", name, *extra, "--flags", plan.flags], plan.flags)
        )
        file.unlink()
    pictures(Path("val"))
    guided = ["--set", "classifier=classifier"]
    solved = ["--evaluations", str(steps), "--set", f"dtype={dtype}", "--set", "batch=1"]
    both = ["--source", "diffusion", "--target", "diffusion"]
    took.append(
        measured(["translate", "val", *both, "--set", "pairs=260:261", *guided, *solved, "--out", "imagenet"])
    )
    return took


def main() -> int:
    """Run it."""
    parser = options(__doc__)
    parser.add_argument(
        "--out", type=Path, default=Path("ddib-imagenet"), help="a folder that is not there yet"
    )
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--small", action="store_true", help="tiny networks of 32 x 32 pixels")
    asked = parser.parse_args()
    folder = asked.out.resolve()
    steps = run(SMALL if asked.small else LARGE, folder, dtype=asked.dtype)
    if len(list((folder / "imagenet").glob("*_translated_261.PNG"))) != 2:
        return 1
    print(json.dumps([asdict(step) for step in steps], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
