"""`make bench`: the short form of every benchmark of speed, one after another, and the table of docs/speed.md.

    python -m benchmarks.speed.everything

A benchmark whose extra is not installed is left out. Ends with 1 when a bound is missed.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks import tables
from benchmarks.speed.shared.harness import ROOT, SKIPPED

NAMES = (
    "clients",
    "engine",
    "federated",
    "overhead",
    "ray",
    "soak",
    "startup",
    "training",
    "wire",
    "workers",
)


def run() -> int:
    """Run them all; 1 when one failed or missed a bound."""
    failed = []
    for name in NAMES:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.speed.{name}", "--short"]
        if subprocess.run(command, check=False, cwd=ROOT).returncode not in {0, SKIPPED}:
            failed.append(name)
    tables.main()
    if failed:
        print(f"missed a bound, or failed: {', '.join(failed)}")
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(run())
