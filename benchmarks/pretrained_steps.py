"""Learns the steps that ship with the package: steps.json of each shipped bundle, as `ddib model tune` writes it.

    python -m benchmarks.pretrained_steps [--domain moons ...] [--evaluations 12 16 20] [--out DIR]

One thread. The bundles' digests do not change.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from ddib_fed.models.sidecars import Tuned
from ddib_fed.terminal import listed
from ddib_fed.training.tune import tune_bundle

DOMAINS = (
    *(
        "moons",
        "checkerboards",
        "concentric-rings",
        "parallel-squares",
        "concentric-squares",
        "parallel-rings",
    ),
    *("satellite", "relief", "brain-t1", "brain-t2", "etopo"),
)


def main() -> int:
    """Tune what was asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", nargs="+", default=list(DOMAINS), choices=DOMAINS)
    parser.add_argument("--evaluations", nargs="+", type=int, default=[12, 16, 20])
    parser.add_argument("--out", type=Path, default=Path("ddib_fed/models/pretrained"))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    numbers = tuple(sorted(asked.evaluations))
    for domain in asked.domain:
        started = time.process_time()
        command = f"ddib model tune MODEL --evaluations {' '.join(map(str, numbers))}"
        tuned = tune_bundle(asked.out / domain, numbers, command=command, say=_tell)
        _show(domain, tuned, time.process_time() - started)
    return 0


def _tell(what: str, done: int, total: int) -> None:
    if done == total:
        print(f"  {what}", flush=True)


def _show(domain: str, tuned: Tuned, spent: float) -> None:
    print(f"{domain}: {spent:.0f} CPU seconds", flush=True)
    for name, said in listed("", tuned.values()).items():
        print(f"  {name}: {said}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
