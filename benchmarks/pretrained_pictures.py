"""Trains the picture models that ship with the package, each on one core within an hour of CPU.

    python -m benchmarks.pretrained_pictures      six hours of one core, below build/pretrained
    python -m benchmarks.pretrained_pictures --domain satellite ... [--out DIR]

What is learned from, and what is kept apart for testing, is decided in ddib_fed/datasets.py. The weights are the moving
averages, stored as float16. What ships is manifest.json and model.safetensors of each folder, and those of the
autoencoder beside it. A run that was cut off is continued.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ddib_fed
from benchmarks.command import ROOT, Rows, Run, command
from ddib_fed import CalibrationRequest, Model, TrainConfig
from ddib_fed.datasets import shipped_domain

AUTOENCODERS = {f"{name}-autoencoder": name for name in ("satellite-256", "relief-256")}
"""Of the domains whose models are of latents, by the names of their folders, which are trained first."""
STEPS = dict.fromkeys(AUTOENCODERS, 15_000) | dict.fromkeys(("satellite", "relief"), 8_000)
STEPS |= dict.fromkeys(("etopo", "satellite-256", "relief-256"), 4_000)
STEPS |= {"satellite-64": 2_000, "relief-64": 1_000, "satellite-256-as-relief-256": 600}
# The heads stop early: on the other side's slabs, which are no test, the loss of brain-t1 no longer fell after 2,000 to
# 4,000 steps, while the deviation of their latents rose from 1.00 to 1.08: the networks overfit their one head.
STEPS |= dict.fromkeys(("brain-t1", "brain-t2"), 2_500)
STEPS |= dict.fromkeys(("brain-t1-volume", "brain-t2-volume"), 1_200)
RETRAINED = "satellite-256-as-relief-256"
"""Continues satellite-256, whose name it keeps, on pictures mapped by a calibration, which is made first."""
BATCH = dict.fromkeys(("satellite", "relief", "etopo", "satellite-256", "relief-256"), 32)
"""Pictures a step; of volumes 8, of others 16."""
# Of pictures of 64 pixels one level more, so that attention is where it is in those of 32; of 256 less, because with
# (1, 2, 3) the held-out loss after 1,500 steps is the same, and a model with its autoencoder has more than 5 MB.
DEEPER: dict[str, Any] = {"channel_mult": (1, 1, 2, 3), "attention_resolutions": (4, 8)}
NETWORK = {"64": DEEPER, "256": {"channel_mult": (1, 2, 2)}}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    parser.add_argument("--domain", nargs="+", default=[*STEPS], choices=STEPS, metavar="NAME")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "pretrained")


def measure(run: Run) -> Rows:
    """Train what is asked for; in a smoke a model of points."""
    out = run.options.out.resolve()
    for name in run.options.domain:
        began, settings = time.process_time(), TrainConfig.model_validate(config(name, out))
        if run.smoke:
            yield {"model": name, "steps": settings.steps}
            continue
        if name == RETRAINED and not (out / f"{name}.json").exists():
            request = CalibrationRequest(kind="colour-map", seed=2, days=731)
            models = Model.open(out / "satellite-256"), Model.open(out / "relief-256")
            ddib_fed.calibrate(*models, request).save(out / f"{name}.json")
        model = ddib_fed.train(settings, out / name, resume=True)
        seconds = round(time.process_time() - began)
        yield {"model": name, "steps": settings.steps, "digest": model.digest, "cpu_seconds": seconds}
    if run.smoke:
        with tempfile.TemporaryDirectory() as folder:
            points = TrainConfig.model_validate({"domain": "moons", "steps": 2, "width": 16, "blocks": 1})
            yield {"model": "moons", "digest": ddib_fed.train(points, Path(folder) / "moons").digest}


def config(name: str, out: Path) -> dict[str, Any]:
    """Return the settings of a run; an autoencoder of latents lies in the same folder."""
    domain = AUTOENCODERS.get(name, "satellite-256" if name == RETRAINED else name)
    volume, latent = domain.endswith("-volume"), domain in AUTOENCODERS.values()
    noted = f"python -m benchmarks.pretrained_pictures --domain {name}"
    values: dict[str, Any] = {"domain": domain, "steps": STEPS[name], "command": noted}
    if name in AUTOENCODERS:
        return {**values, "kind": "autoencoder", "colours": "opponent"}
    values |= {"kind": "pictures", "flip": volume or latent}
    values["batch"] = values["microbatch"] = 8 if volume else BATCH.get(domain, 16)
    values["precision"] = "bfloat16" if volume or latent else "float32"
    if name == RETRAINED:
        return {**values, "init": out / domain, "calibration": out / f"{name}.json"}
    return {
        **values,
        "name": name,
        "preset": "volume-32" if volume else "tiny-32",
        "latent": out / f"{domain}-autoencoder" if latent else None,
        "network": NETWORK.get(name.rpartition("-")[2], {}),
        "learning_rate": 1e-3,
        # The level to which pictures are softened before they are encoded; docs/quality.md says why.
        "soften_sigma": 0.1 if domain.startswith("brain") else 0.05,
        # Light and dark are exchanged between sea and land of the two maps, hues are not.
        "colours": "opponent" if shipped_domain(domain).map else "rgb",
        "checkpoint_every": 500,
    }


if __name__ == "__main__":
    sys.exit(command(measure, "pictures/trained", arguments=arguments))
