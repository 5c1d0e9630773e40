"""Train the six bundles that ship with the package, one after the other; unfinished ones are resumed.

    python -m benchmarks.pretrained [DOMAIN...] [--force]

Each is what `ddib model train` with the command in its manifest makes. What ships is manifest.json and
model.safetensors; the run folders (checkpoints, progress.csv, pictures) stay under build/pretrained.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from ddib_fed.data.synthetic import DOMAINS, domain_name
from ddib_fed.models.catalogue import MANIFEST_FILE, WEIGHTS_FILE
from ddib_fed.training.config import TrainConfig
from ddib_fed.training.run import TrainingProgress, train

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "ddib_fed" / "models" / "pretrained"
BUILD = ROOT / "build" / "pretrained"
STEPS = 2_500
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("domains", nargs="*", default=list(DOMAINS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--force", action="store_true", help="train again what is there already")
    options = parser.parse_args()
    for name in map(domain_name, options.domains):
        make(name, options.steps, force=options.force)


def make(domain: str, steps: int, *, force: bool) -> None:
    command = (
        f"ddib model train --domain {domain} --steps {steps} --seed {SEED} --dtype float16 --out {domain}"
    )
    config = TrainConfig(
        kind="points", domain=domain, steps=steps, seed=SEED, dtype="float16", command=command
    )

    def show(progress: TrainingProgress) -> None:
        if progress.step % 100 == 0:
            print(
                f"{domain} {progress.step}/{progress.steps} loss {progress.loss:.5f} {progress.rate:.1f}/s",
                flush=True,
            )

    bundle = train(config, BUILD / domain, show, resume=not force, force=force)
    target = SHIPPED / domain
    target.mkdir(parents=True, exist_ok=True)
    for file in (WEIGHTS_FILE, MANIFEST_FILE):
        shutil.copyfile(BUILD / domain / file, target / file)
    print(domain, bundle.digest, bundle.manifest.training.figures, flush=True)


if __name__ == "__main__":
    main()
