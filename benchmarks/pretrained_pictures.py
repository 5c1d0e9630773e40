"""Trains the picture bundles that ship with the package, each on one core within an hour of CPU.

    python benchmarks/pretrained_pictures.py [--domain satellite ...] [--out ddib_fed/models/pretrained] [--resume]

What is learned from, and what is kept apart for testing, is decided in ddib_fed/data/shipped.py. The weights are the
moving averages, stored as float16.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from ddib_fed.data.shipped import SHIPPED
from ddib_fed.training.pictures.config import PictureTrainConfig
from ddib_fed.training.pictures.loop import Progress
from ddib_fed.training.pictures.run import train_pictures

NETWORK = {
    "model_channels": 32,
    "channel_mult": (1, 2, 3),
    "num_res_blocks": 1,
    "attention_resolutions": (2, 4),
    "num_head_channels": 32,
    "patch": 2,
    "norm_groups": 8,
    "global_mean": True,
}
STEPS = {"satellite": 3_500, "relief": 3_500, "brain-t1": 2_000, "brain-t2": 2_000}
BATCH = {"satellite": 32, "relief": 32, "brain-t1": 16, "brain-t2": 16}
# The level to which pictures are softened before they are encoded; docs/latents.md has the table that it is from.
SOFTEN_SIGMA = {"satellite": 0.02, "relief": 0.02, "brain-t1": 0.02, "brain-t2": 0.02}


def config(domain: str) -> PictureTrainConfig:
    """The run of one domain."""
    return PictureTrainConfig(
        domain=domain,
        name=domain,
        preset="tiny-32",
        network=NETWORK,
        steps=STEPS[domain],
        batch=BATCH[domain],
        microbatch=BATCH[domain],
        learning_rate=1e-3,
        soften_sigma=SOFTEN_SIGMA[domain],
        command=f"python benchmarks/pretrained_pictures.py --domain {domain}",
    )


def main() -> int:
    """Train what was asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", nargs="+", default=list(SHIPPED), choices=list(SHIPPED))
    parser.add_argument("--out", type=Path, default=Path("ddib_fed/models/pretrained"))
    parser.add_argument("--resume", action="store_true", help="go on with runs that were cut off")
    asked = parser.parse_args()
    for domain in asked.domain:
        started = time.process_time()
        train_pictures(config(domain), asked.out / domain, _tell, resume=asked.resume, say=print)
        print(f"{domain}: {time.process_time() - started:.0f} CPU seconds", flush=True)
    return 0


def _tell(progress: Progress) -> None:
    if progress.step % 100 == 0:
        print(f"step {progress.step} of {progress.steps}, loss {progress.loss:.4f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
