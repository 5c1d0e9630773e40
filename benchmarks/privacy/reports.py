"""The privacy reports of the shipped models, as `ddib privacy report` writes them.

    python -m benchmarks.privacy.reports [--domain satellite moons ...]

One thread. privacy.json lies beside the weights of each shipped model; digests do not change.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from ddib_fed.models.bundle import load_bundle, put_beside
from ddib_fed.models.privacy import PRIVACY_FILE
from ddib_fed.runs.privacy.report import Wanted, privacy_report

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "ddib_fed" / "models" / "pretrained"
PICTURES = ("satellite", "relief", "etopo", "brain-t1", "brain-t2")
POINTS = (
    *("moons", "checkerboards", "concentric-rings"),
    *("parallel-squares", "concentric-squares", "parallel-rings"),
)


def main() -> int:
    """Attack what was asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--domain", nargs="+", default=[*POINTS, *PICTURES], choices=[*POINTS, *PICTURES])
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--surrogate-seconds", type=float, default=60.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for domain in given.domain:
        started = time.process_time()
        seconds = f"{given.surrogate_seconds:g}"
        command = (
            f"ddib privacy report --model MODEL --samples {given.samples} --surrogate-seconds {seconds} "
            "--evaluations 24 --seed 41"
        )
        wanted = Wanted(samples=given.samples, surrogate_s=given.surrogate_seconds, command=command)
        found = privacy_report(load_bundle(SHIPPED / domain), wanted, say=print)
        put_beside(SHIPPED / domain, PRIVACY_FILE, found.text())
        print(f"{domain}: {time.process_time() - started:.0f} CPU seconds", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
