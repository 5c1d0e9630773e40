"""Trains the picture bundles that ship with the package, each on one core within an hour of CPU.

    python -m benchmarks.pretrained_pictures [--domain satellite ...] [--out ddib_fed/models/pretrained] [--resume]
    python -m benchmarks.pretrained_pictures --thresholds     measure the thresholds of structure again, train nothing
    python -m benchmarks.pretrained_pictures --domain satellite-256-autoencoder relief-256-autoencoder
    python -m benchmarks.pretrained_pictures --domain satellite-256-as-relief-256

The last continues satellite-256 on pictures mapped by the calibration in OUT/satellite-256-as-relief-256.json, which
`ddib calibrate --local satellite-256 relief-256 --kind colour-map --seed 2 --days 731` makes.

What is learned from, and what is kept apart for testing, is decided in ddib_fed/data/shipped.py and heads.py. The
weights are the moving averages, stored as float16. What ships is manifest.json and model.safetensors of each
folder; train elsewhere (--out build/pretrained) and copy the two.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

from benchmarks import options
from ddib_fed.datasets import SHIPPED
from ddib_fed.metrics import calibrate_by_chance
from ddib_fed.models.bundle import amend_bundle, load_bundle
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import TrainingProgress, train
from ddib_fed.training.sources import shipped_source

STEPS = {
    "satellite": 8_000,
    "relief": 8_000,
    "etopo": 4_000,
    "satellite-64": 2_000,
    "relief-64": 1_000,
    "brain-t1": 2_500,
    "brain-t2": 2_500,
    "satellite-256": 4_000,
    "relief-256": 4_000,
    "brain-t1-volume": 1_200,
    "brain-t2-volume": 1_200,
}
# The heads stop early: on the other side's slabs, which are no test, the loss of brain-t1 no longer fell after 2,000
# to 4,000 steps, while the deviation of their latents rose from 1.00 to 1.08: one head is learned by heart.
VOLUMES = ("brain-t1-volume", "brain-t2-volume")
BATCH = dict.fromkeys(("satellite", "relief", "etopo", "satellite-256", "relief-256"), 32) | dict.fromkeys(
    VOLUMES, 8
)
"""Pictures a step; of others 16."""
NETWORK = {
    name: {"channel_mult": (1, 1, 2, 3), "attention_resolutions": (4, 8)}
    for name in ("satellite-64", "relief-64")
}
"""Of pictures of 64 pixels: one level more, so that attention is where it is in those of 32; 0.25 s a step of 16."""
NETWORK |= {name: {"channel_mult": (1, 2, 2)} for name in ("satellite-256", "relief-256")}
# With (1, 2, 3) the held-out loss after 1,500 steps is the same, and a model with its autoencoder has more than 5 MB.
AUTOENCODERS = {f"{name}-autoencoder": name for name in ("satellite-256", "relief-256")}
"""Of the domains whose models are of latents, by the names of their folders, which are trained first."""
RETRAINED = "satellite-256-as-relief-256"
KEPT = (500, 1_000, 2_000, 4_000)
"""Steps whose checkpoints stay, for benchmarks/pictures/training_curve.py."""
# The level to which pictures are softened before they are encoded; docs/quality.md has the table that it is from.
SOFTEN_SIGMA = dict.fromkeys(("brain-t1", "brain-t2", *VOLUMES), 0.1)
# Light and dark are exchanged between sea and land of the two maps, hues are not.
COLOURS = {name: "opponent" for name, domain in SHIPPED.items() if domain.map}


def config(domain: str, out: Path) -> TrainConfig:
    """The run of one domain; the autoencoder of latents lies in the same folder."""
    if domain in AUTOENCODERS:
        return TrainConfig(
            kind="autoencoder",
            domain=AUTOENCODERS[domain],
            colours="opponent",
            steps=15_000,
            command=f"python -m benchmarks.pretrained_pictures --domain {domain}",
        )
    if domain == RETRAINED:
        return TrainConfig(
            kind="pictures",
            domain="satellite-256",
            init=out / "satellite-256",
            calibration=out / f"{domain}.json",
            steps=600,
            batch=32,
            microbatch=32,
            flip=True,
            precision="bfloat16",
            command=f"python -m benchmarks.pretrained_pictures --domain {domain}",
        )
    return TrainConfig(
        kind="pictures",
        domain=domain,
        name=domain,
        preset="volume-32" if domain in VOLUMES else "tiny-32",
        latent=out / f"{domain}-autoencoder" if domain in AUTOENCODERS.values() else None,
        flip=domain in VOLUMES or domain in AUTOENCODERS.values(),
        precision="bfloat16" if domain in (*VOLUMES, *AUTOENCODERS.values()) else "float32",
        steps=STEPS[domain],
        network=NETWORK.get(domain, {}),
        batch=BATCH.get(domain, 16),
        microbatch=BATCH.get(domain, 16),
        learning_rate=1e-3,
        soften_sigma=SOFTEN_SIGMA.get(domain, 0.05),
        colours=COLOURS.get(domain, "rgb"),
        checkpoint_every=500,
        command=f"python -m benchmarks.pretrained_pictures --domain {domain}",
    )


def main() -> int:
    """Train what was asked."""
    parser = options(__doc__)
    parser.add_argument(
        "--domain", nargs="+", default=list(STEPS), choices=[*STEPS, *AUTOENCODERS, RETRAINED]
    )
    parser.add_argument("--out", type=Path, default=Path("ddib_fed/models/pretrained"))
    parser.add_argument("--resume", action="store_true", help="go on with runs that were cut off")
    parser.add_argument(
        "--thresholds", action="store_true", help="only put thresholds of structure into bundles"
    )
    asked = parser.parse_args()
    for domain in asked.domain:
        if asked.thresholds:
            units = load_bundle(asked.out / domain).manifest.normalisation
            pictures = shipped_source(domain)
            structure = calibrate_by_chance(pictures.held_out, pictures.train, units=units)
            found = amend_bundle(asked.out / domain, structure=structure)
            print(f"{domain}: {found.manifest.structure}")
            continue
        started = time.process_time()
        out = asked.out / domain
        train(
            config(domain, asked.out),
            out,
            lambda now, out=out: _tell(now, out),
            resume=asked.resume,
            say=print,
        )
        if domain == RETRAINED:
            amend_bundle(out, name=domain)
        print(f"{domain}: {time.process_time() - started:.0f} CPU seconds", flush=True)
    return 0


def _tell(progress: TrainingProgress, out: Path) -> None:
    if progress.step % 100 == 0:
        print(f"step {progress.step} of {progress.steps}, loss {progress.loss:.4f}", flush=True)
    if progress.step in KEPT:
        (kept := out / "kept").mkdir(exist_ok=True)
        for file in (out / "run").glob(f"checkpoint-{progress.step:08d}-*"):
            shutil.copy(file, kept)


if __name__ == "__main__":
    sys.exit(main())
