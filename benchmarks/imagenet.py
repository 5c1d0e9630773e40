"""The public code's ImageNet translation, end to end, on networks of the published size with random weights.

    python -m benchmarks.imagenet      10 minutes of one core, 7 GiB of memory

Each command runs in a process of its own. The published weights are not needed: a checkpoint of the same names, shapes
and precision costs the same to import and to compute with. What comes out is noise.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.checkpoints import Adm
from benchmarks.command import Rows, Run, command

FLAGS = (
    "--attention_resolutions {attention} --class_cond True --diffusion_steps 1000 --image_size {side} "
    "--learn_sigma True --noise_schedule linear --num_channels {width} --num_head_channels {heads} "
    "--num_res_blocks {blocks} --resblock_updown True --use_fp16 True --use_scale_shift_norm True {more}"
)
LARGE = (
    Adm(256, 256, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), classes=1000),
    Adm(256, 128, (1, 1, 2, 2, 4, 4), 2, (8, 16, 32), head=1000),
    FLAGS.format(attention="32,16,8", side=256, width=256, heads=64, blocks=2, more=""),
)
SMALL = (
    Adm(32, 32, (1, 2), 1, (2,), classes=1000),
    Adm(32, 64, (1, 2), 1, (2,), head=1000),
    FLAGS.format(attention="16", side=32, width=32, heads=16, blocks=1, more="--channel_mult 1,2 ")
    + "--classifier_width 64 --classifier_depth 1 --classifier_attention_resolutions 16",
)
CLASSES = (260, 261)


def measure(run: Run) -> Rows:
    """Import both checkpoints, in a smoke one, and translate two pictures from class to class."""
    network, classifier, flags = run.pick(smoke=SMALL, long=LARGE)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        imports = [("diffusion", network, ()), ("classifier", classifier, ("--classifier",))]
        for name, adm, words in imports[: run.pick(smoke=1, long=2)]:
            state = adm.state(seed=len(name))
            torch.save(state, folder / f"{name}.pt")
            del state
            yield measured(
                folder, "model", "import", f"{name}.pt", "--out", name, *words, "--flags", flags.strip()
            )
            (folder / f"{name}.pt").unlink()
        write_pictures(folder / "val" / str(CLASSES[0]), 2, network.side)
        guided = run.pick(smoke=(), long=("--set", "classifier=classifier"))
        models = ("--source", "diffusion", "--target", "diffusion", *guided)
        pairs = ("--set", f"pairs={CLASSES[0]}:{CLASSES[1]}", "--set", "batch=1", "--evaluations", "3")
        row = measured(folder, "translate", "val", *models, *pairs, "--out", "out")
        yield {**row, "held": len([*(folder / "out").glob(f"*_translated_{CLASSES[1]}.PNG")]) == 2}


def measured(folder: Path, *words: str) -> dict[str, Any]:
    """Run `ddib` in a process of its own, and return what it took."""
    began = time.monotonic()
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("ddib")), *words], cwd=folder, stdout=sys.stderr
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"ddib {words[0]} ended with {process.returncode}")
    seconds, cpu = time.monotonic() - began, used.ru_utime + used.ru_stime
    return {
        "command": f"ddib {' '.join(words)}",
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
        "peak_gib": round(used.ru_maxrss / 2**20, 2),
    }


def write_pictures(folder: Path, count: int, side: int) -> None:
    """Write noise, each number 2 x 2 pixels, so that the public code's halving keeps it white and of full contrast."""
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = np.random.default_rng(index).normal(128.0, 60.0, (side, side * 4 // 3, 3)).clip(0, 255)
        twice = pixels.astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
        Image.fromarray(twice).save(folder / f"{index}.png")


if __name__ == "__main__":
    sys.exit(command(measure, "imagenet"))
